// A MariaDB server for the benchmark, on a unix socket in its directory; both end with the object.
// Acknowledged commits are durable: it syncs at every commit (innodb_flush_log_at_trx_commit is 1,
// the default). It writes no binary log.
#pragma once

#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench/server.h"
#include "log/mysql_connection.h"

namespace bench {

class Database {
 public:
  Database(const std::string& directory, std::size_t connections_max)
      : socket_(directory + "/mysql.sock") {
    const std::string data = "--datadir=" + directory + "/data";
    const std::vector<std::string> as_root = {"--user=root"};
    std::vector<std::string> install = {
        "mariadb-install-db",
        "--no-defaults",
        data,
        "--skip-test-db",
        "--auth-root-authentication-method=normal",
        "--innodb-log-file-size=8M",
        "--tmpdir=" + directory};  // a starting server clears its directory for temporary files
    std::vector<std::string> serve = {"mariadbd",
                                      "--no-defaults",
                                      data,
                                      "--socket=" + socket_,
                                      "--pid-file=" + directory + "/pid",
                                      "--tmpdir=" + directory,
                                      "--skip-networking",
                                      "--skip-log-bin",
                                      "--performance-schema=off",
                                      "--innodb-log-file-size=8M",
                                      "--innodb-buffer-pool-size=64M",
                                      "--innodb-flush-method=fsync",
                                      "--max-connections=" + std::to_string(connections_max),
                                      "--back-log=4096"};
    for (auto* const command : {&install, &serve}) {
      if (::geteuid() == 0) command->insert(command->end(), as_root.begin(), as_root.end());
    }
    run_command(install, "mariadb-server");
    server_ = std::make_unique<Server>(serve);
    server_->wait_until([&] {
      try {
        whycache::MysqlConnection(server_for("mysql"), std::chrono::seconds(5))
            .run("CREATE DATABASE bench");
        return true;
      } catch (const whycache::MysqlFailure&) {
        return false;
      }
    });
    monitor_connection_ = connect();
  }

  // Returns the URL of a log in it; each instance is another log.
  std::string url(const std::string& instance) const {
    return "mysql://root@/bench?socket=" + socket_ + "&instance=" + instance;
  }

  // Returns a connection with the settings of a log's own.
  std::unique_ptr<whycache::MysqlConnection> connect() const {
    return std::make_unique<whycache::MysqlConnection>(server_for("bench"),
                                                       std::chrono::seconds(60));
  }

  // The server's own counters. Reading them counts as a statement.
  std::map<std::string, double> status() {
    std::map<std::string, double> numbers;
    whycache::MysqlRows rows = monitor_connection_->query(
        "SHOW GLOBAL STATUS WHERE Variable_name IN ('Questions', 'Connections', "
        "'Threads_connected', "
        "'Max_used_connections', 'Innodb_data_fsyncs')");
    while (rows.next()) {
      numbers[std::string(rows.at(0).value_or(""))] =
          std::strtod(std::string(rows.at(1).value_or("0")).c_str(), nullptr);
    }
    return numbers;
  }
  // Resets Max_used_connections.
  void reset_counters() { monitor_connection_->run("FLUSH STATUS"); }

 private:
  whycache::MysqlServer server_for(const std::string& database) const {
    whycache::MysqlServer place;
    place.socket = socket_;
    place.user = "root";
    place.database = database;
    return place;
  }

  std::string socket_;
  std::unique_ptr<Server> server_;
  std::unique_ptr<whycache::MysqlConnection> monitor_connection_;
};

}  // namespace bench
