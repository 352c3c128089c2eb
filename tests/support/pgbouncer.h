// A pgbouncer of a test, in front of a PostgreSQL server, on a free port of loopback. It gives each
// transaction a connection to the server. Its destructor kills it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>

#include "support/temporary_directory.h"

namespace whycache::testing {

class Pgbouncer {
 public:
  static bool is_installed();

  // `server_port`: of a server on loopback. Throws std::runtime_error if it does not start.
  explicit Pgbouncer(std::uint16_t server_port);
  Pgbouncer(const Pgbouncer&) = delete;
  Pgbouncer& operator=(const Pgbouncer&) = delete;
  ~Pgbouncer();

  std::uint16_t port() const { return port_; }
  std::string url(const std::string& database) const {
    return "postgres://postgres@127.0.0.1:" + std::to_string(port_) + '/' + database;
  }

 private:
  void launch(std::uint16_t server_port);

  TemporaryDirectory directory_;
  std::uint16_t port_ = 0;
  pid_t pid_ = -1;
  pid_t owner_pid_;
};

}  // namespace whycache::testing
