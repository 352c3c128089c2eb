// Helpers of the tests of the log in MySQL (mysql_*_test.cc).
#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "log/mysql_log.h"
#include "log/server_test_support.h"
#include "log/stores.h"
#include "support/mariadb_server.h"

namespace whycache {

using testing::MariadbClient;
using testing::MariadbServer;

inline std::uint64_t status_variable(const MariadbServer& server, const std::string& name) {
  return std::stoull(MariadbClient(server).run("SHOW GLOBAL STATUS LIKE '" + name + "'"));
}

// Returns the id of the connection that waits for a lock, or "" if there is none. The server
// refreshes this table only if it was not queried for 0.1 s.
inline std::string waiting_connection(const MysqlStore& store) {
  std::string found;
  for (int i = 0; i < 50 && found.empty(); ++i) {
    std::this_thread::sleep_for(milliseconds(150));
    found = store.run(
        "SELECT trx_mysql_thread_id FROM information_schema.INNODB_TRX WHERE trx_state = 'LOCK "
        "WAIT' LIMIT 1");
  }
  return found;
}

inline std::vector<std::string> documented_sql(const std::string& document) {
  return fenced_blocks(document, "mysql");
}

// The statements of docs/formats/sql.md that create the procedures for followers, as a client of
// its own sends them: without the delimiter of the command line.
inline std::string documented_procedures() {
  std::string sql = fenced_blocks("formats/sql.md", "mysql procedures").at(0);
  sql = replace_all(sql, "DELIMITER //\n", "");
  sql = replace_all(sql, "DELIMITER ;\n", "");
  return replace_all(sql, "END //", "END;");
}

// Options of a server that shows the certificate of `authority`.
inline std::vector<std::string> tls_options(const CertificateAuthority& authority) {
  return {"--ssl-ca=" + authority.ca(), "--ssl-cert=" + authority.certificate(),
          "--ssl-key=" + authority.key()};
}

class MysqlTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!MariadbServer::is_installed()) GTEST_SKIP() << "NOT TESTED: mariadbd is not installed";
  }
};

// A primary and a replica of it.
class ReplicatedPair {
 public:
  ReplicatedPair()
      : primary({"--log-bin=bin", "--sync-binlog=1", "--server-id=1"}),
        replica({"--server-id=2", "--log-bin=bin", "--sync-binlog=1"}) {
    MariadbClient(replica).run("CHANGE MASTER TO master_host = '127.0.0.1', master_port = " +
                               std::to_string(primary.port()) +
                               ", master_user = 'root', master_use_gtid = slave_pos, "
                               "master_connect_retry = 1; START SLAVE");
  }
  // Waits until the replica has what the primary has.
  void catch_up() {
    const std::string position = MariadbClient(primary).run("SELECT @@gtid_binlog_pos");
    ASSERT_EQ(MariadbClient(replica).run("SELECT MASTER_GTID_WAIT('" + position + "', 20)"), "0");
  }
  void stop_replication() { MariadbClient(replica).run("STOP SLAVE"); }
  void start_replication() { MariadbClient(replica).run("START SLAVE"); }

  MariadbServer primary;
  MariadbServer replica;
};

inline MysqlLogOptions with_replica(const MysqlStore& store, const MariadbServer& replica) {
  MysqlLogOptions options = store.options(milliseconds(2000));
  options.replica = options.server;
  options.replica->port = replica.port();
  return options;
}

}  // namespace whycache
