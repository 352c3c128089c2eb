// A MariaDB server of the test's own: in a temporary folder, on a free port of loopback, gone with
// the test.
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
  // Whether there is a mariadbd on this machine.
  static bool is_installed();
  // One for all stories of this process, with the default options.
  static MariadbServer& shared();

  // `options` are added to those every server gets: "--max-allowed-packet=1M"; so are, before them,
  // those of the environment variable WHYCACHE_TEST_MARIADB_OPTIONS, to run all stories with
  // another setting. Throws std::runtime_error with what the server's error log says if it does not
  // start. `data` is the folder of another server, which was stopped: it is copied. `parent`: where
  // its own folder is made, if not in memory.
  explicit MariadbServer(std::vector<std::string> options = {}, const std::string& data = "",
                         const std::string& parent = "");
  MariadbServer(const MariadbServer&) = delete;
  MariadbServer& operator=(const MariadbServer&) = delete;
  ~MariadbServer();

  std::uint16_t port() const { return port_; }
  std::string socket() const { return directory_.file("socket"); }
  // A URL without options: "mysql://root@127.0.0.1:4711/database".
  std::string url(const std::string& database, const std::string& user = "root") const;
  std::string file(const std::string& name) const { return directory_.file(name); }

  void start();
  void stop();  // in good order
  void kill();  // at once, as by kill -9
  // Kept by the kernel from running, and let run again.
  void pause();
  void resume();

  // Makes a database, and returns its name, which no other has.
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

// A connection of the test's own, as any other program would have it.
class MariadbClient {
 public:
  // By the server's socket. Throws std::runtime_error, as all do.
  explicit MariadbClient(const MariadbServer& server, const std::string& database = "",
                         const std::string& user = "root");
  MariadbClient(const MariadbClient&) = delete;
  MariadbClient& operator=(const MariadbClient&) = delete;
  ~MariadbClient();

  // Runs statements; returns the last value of the last row as text.
  std::string run(const std::string& sql);
  // All rows of a query, as text, values with a tab in between.
  std::vector<std::string> rows(const std::string& sql);

 private:
  MYSQL* mysql_;
};

}  // namespace whycache::testing
