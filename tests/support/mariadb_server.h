// A MariaDB server of a test: in a temporary directory and on a free port of loopback. Its
// destructor kills it and deletes its data.
#pragma once

#include <mysql.h>
#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "support/temporary_directory.h"

namespace whycache::testing {

class MariadbServer {
 public:
  // Whether mariadbd is installed.
  static bool is_installed();
  // The server that all tests of this process share, with the default options.
  static MariadbServer& shared();

  // `options` are appended to the default options: "--max-allowed-packet=1M". Before them come
  // those of the environment variable WHYCACHE_TEST_MARIADB_OPTIONS, to run all tests with another
  // setting. `data` is the directory of another, stopped server; it is copied. `parent` is where
  // the server's directory is created, if not in memory. Throws std::runtime_error with the
  // server's error log if the server does not start.
  explicit MariadbServer(std::vector<std::string> options = {}, const std::string& data = "",
                         const std::string& parent = "");
  MariadbServer(const MariadbServer&) = delete;
  MariadbServer& operator=(const MariadbServer&) = delete;
  ~MariadbServer();

  std::uint16_t port() const { return port_; }
  std::string socket() const { return directory_.file("socket"); }
  // Returns a URL without options: "mysql://root@127.0.0.1:4711/database".
  std::string url(const std::string& database, const std::string& user = "root") const;
  std::string file(const std::string& name) const { return directory_.file(name); }

  void start();
  void stop();  // by SIGTERM
  void kill();  // by SIGKILL
  // Stops the process by SIGSTOP, and continues it.
  void pause();
  void resume();

  // Creates a database, and returns its unique name.
  std::string make_database();

 private:
  void launch(std::uint16_t port);
  bool wait_until_ready();
  std::string error_log() const;

  std::vector<std::string> options_;
  TemporaryDirectory directory_;
  std::uint16_t port_ = 0;
  pid_t pid_ = -1;
  pid_t owner_pid_;
  int database_count_ = 0;
};

// A separate connection, as any other program would open. All functions throw std::runtime_error on
// failure.
class MariadbClient {
 public:
  // Connects to the server's socket.
  explicit MariadbClient(const MariadbServer& server, const std::string& database = "",
                         const std::string& user = "root");
  MariadbClient(const MariadbClient&) = delete;
  MariadbClient& operator=(const MariadbClient&) = delete;
  ~MariadbClient();

  // Runs statements; returns the last value of the last row as text.
  std::string run(const std::string& sql);
  // Returns all rows of a query as text, with tabs between values.
  std::vector<std::string> rows(const std::string& sql);

 private:
  MYSQL* mysql_;
};

}  // namespace whycache::testing
