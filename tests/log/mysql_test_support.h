// Helpers of the tests of the log in MySQL (mysql_*_test.cc).
#pragma once

#include <gtest/gtest.h>
#include <whycache/cache.h>
#include <whycache/log.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "log/child.h"
#include "log/log_helpers.h"
#include "log/mysql_log.h"
#include "log/stores.h"
#include "support/mariadb_server.h"
#include "support/seed.h"
#include "support/temporary_directory.h"
#include "support/thrown_error.h"

namespace whycache {

using std::chrono::milliseconds;
using std::chrono::steady_clock;
using testing::expect_error;
using testing::MariadbClient;
using testing::MariadbServer;
using testing::TemporaryDirectory;
using testing::thrown_error;

// Appends `bytes`, which must be unique in the log, exactly once: retries while the log is
// unavailable, and reads it after an uncertain append.
inline void append_until_acknowledged(Log& log, const std::string& bytes) {
  std::optional<UpdateId> uncertain_from;
  for (;;) {
    try {
      if (uncertain_from) {
        const Updates since = updates_of(log, *uncertain_from);
        if (std::any_of(since.begin(), since.end(),
                        [&](const auto& update) { return update.second == bytes; }))
          return;
        uncertain_from.reset();
      }
      const UpdateId head = log.extent().head;
      // Read from the head itself: a log with a new connection requires that before an append.
      uncertain_from = head;
      if (log.append(head + 1, bytes) == Appended::yes) return;
      uncertain_from.reset();
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::unavailable && error.kind() != ErrorKind::uncertain) throw;
      std::this_thread::sleep_for(milliseconds(10));
    }
  }
}

inline milliseconds measure_duration(const std::function<void()>& call) {
  const auto began = steady_clock::now();
  call();
  return std::chrono::duration_cast<milliseconds>(steady_clock::now() - began);
}

inline bool becomes_true_within(milliseconds timeout, const std::function<bool()>& what) {
  const auto end = steady_clock::now() + timeout;
  while (!what()) {
    if (steady_clock::now() > end) return false;
    std::this_thread::sleep_for(milliseconds(5));
  }
  return true;
}

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

inline std::string replace_all(std::string text, const std::string& what, const std::string& with) {
  for (std::size_t at = text.find(what); at != std::string::npos;
       at = text.find(what, at + with.size()))
    text.replace(at, what.size(), with);
  return text;
}

// The statements of docs/formats/sql.md that create the procedures for followers, as a client of
// its own sends them: without the delimiter of the command line.
inline std::string documented_procedures() {
  std::string sql = fenced_blocks("formats/sql.md", "mysql procedures").at(0);
  sql = replace_all(sql, "DELIMITER //\n", "");
  sql = replace_all(sql, "DELIMITER ;\n", "");
  return replace_all(sql, "END //", "END;");
}

class MysqlTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!MariadbServer::is_installed()) GTEST_SKIP() << "NOT TESTED: mariadbd is not installed";
  }
};

// A certificate authority, and a certificate for `host` that it signed.
class CertificateAuthority {
 public:
  explicit CertificateAuthority(const std::string& host) {
    const auto openssl = [&](const std::string& words) {
      const std::string command =
          "cd " + directory_.path() + " && openssl " + words + " >output 2>&1";
      if (std::system(command.c_str()) != 0) throw std::runtime_error("openssl failed: " + words);
    };
    openssl(
        "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 "
        "-subj /CN=authority -keyout ca.key -out ca.pem");
    openssl(
        "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=server "
        "-keyout server.key -out server.csr");
    std::ofstream(directory_.file("extensions")) << "subjectAltName=" << host << '\n';
    openssl(
        "x509 -req -in server.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 "
        "-extfile extensions -out server.pem");
  }
  std::string ca() const { return directory_.file("ca.pem"); }
  std::vector<std::string> server_options() const {
    return {"--ssl-ca=" + ca(), "--ssl-cert=" + directory_.file("server.pem"),
            "--ssl-key=" + directory_.file("server.key")};
  }

 private:
  TemporaryDirectory directory_;
};

// Options of a cache with its own state file.
inline Options options_for(const TemporaryDirectory& directory, const std::string& name) {
  Options options;
  options.state_path = directory.file(name);
  options.any_file_system = true;
  return options;
}

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
