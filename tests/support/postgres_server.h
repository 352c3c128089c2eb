// A PostgreSQL server of a test: in a temporary directory and on a free port of loopback. Its
// destructor kills it and deletes its data.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "support/temporary_directory.h"

namespace whycache::testing {

class PostgresTestServer {
 public:
  // Whether the server's programs are installed, and can run here: not as root without a user
  // `postgres` to become.
  static bool is_installed();
  // The server that all tests of this process share, with the default options.
  static PostgresTestServer& shared();

  // `settings` are appended to the default ones: "fsync=off". `data` is the data directory of
  // another, stopped server; it is copied. Throws std::runtime_error with the server's log if the
  // server does not start.
  explicit PostgresTestServer(std::vector<std::string> settings = {}, const std::string& data = "");
  PostgresTestServer(const PostgresTestServer&) = delete;
  PostgresTestServer& operator=(const PostgresTestServer&) = delete;
  ~PostgresTestServer();

  // A replica of `primary`, which streams from it.
  static std::unique_ptr<PostgresTestServer> replica_of(const PostgresTestServer& primary);

  std::uint16_t port() const { return port_; }
  // The directory of the socket.
  const std::string& socket() const { return directory_.path(); }
  // Returns a URL without options: "postgres://postgres@127.0.0.1:4711/database".
  std::string url(const std::string& database, const std::string& user = "postgres") const;
  std::string file(const std::string& name) const { return directory_.file(name); }

  void start();
  void stop();  // by SIGINT, a fast shutdown
  void kill();  // by SIGKILL, with all processes of the server
  // Stops all processes of the server by SIGSTOP, and continues them.
  void pause();
  void resume();
  // Makes a replica a primary.
  void promote();
  // Runs the server with other settings from the next start on.
  void set_settings(std::vector<std::string> settings) { settings_ = std::move(settings); }

  // Creates a database, and returns its unique name.
  std::string make_database();

 private:
  struct CopyOf {
    const PostgresTestServer& primary;
  };
  explicit PostgresTestServer(CopyOf copy);

  void give_to_server(const std::string& path) const;
  void launch(std::uint16_t port);
  bool wait_until_ready();
  void signal_all(int signal) const;

  std::vector<std::string> settings_;
  TemporaryDirectory directory_;
  std::uint16_t port_ = 0;
  pid_t pid_ = -1;
  pid_t owner_pid_;
  int database_count_ = 0;
};

// A separate connection, as any other program would open. All functions throw std::runtime_error on
// failure.
class PostgresClient {
 public:
  // Connects to the server's socket.
  explicit PostgresClient(const PostgresTestServer& server,
                          const std::string& database = "postgres",
                          const std::string& user = "postgres");
  PostgresClient(const PostgresClient&) = delete;
  PostgresClient& operator=(const PostgresClient&) = delete;
  ~PostgresClient();

  // Runs statements; returns the last value of the last row as text.
  std::string run(const std::string& sql);
  // Returns all rows of the last query as text, with tabs between values.
  std::vector<std::string> rows(const std::string& sql);

 private:
  struct Session;
  std::unique_ptr<Session> session_;
};

}  // namespace whycache::testing
