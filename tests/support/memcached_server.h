// A memcached of a test, on a free port of loopback only. Its destructor kills it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "support/temporary_directory.h"

namespace whycache::testing {

class MemcachedServer {
 public:
  // Whether memcached is installed.
  static bool is_installed();
  // The server that all tests of this process share, with the default options.
  static MemcachedServer& shared();

  // `options` are appended to the default options: "-m", "1". With `by_socket` the server listens
  // on a unix socket instead. Throws std::runtime_error if it does not start.
  explicit MemcachedServer(std::vector<std::string> options = {}, bool by_socket = false);
  MemcachedServer(const MemcachedServer&) = delete;
  MemcachedServer& operator=(const MemcachedServer&) = delete;
  ~MemcachedServer();

  std::uint16_t port() const { return port_; }
  // Returns the address in the form of the URL option `memcached`: "127.0.0.1:4711",
  // "/tmp/.../socket".
  std::string address() const;

  void start();  // without items, on the same port
  void kill();   // by SIGKILL
  // Stops the process by SIGSTOP, and continues it.
  void pause();
  void resume();

 private:
  std::vector<std::string> options_;
  bool uses_socket_;
  TemporaryDirectory directory_;
  std::uint16_t port_ = 0;
  pid_t pid_ = -1;
  pid_t owner_pid_;
};

// A separate connection, which implements memcached's text protocol itself. All functions throw
// std::runtime_error on failure.
class MemcachedClient {
 public:
  explicit MemcachedClient(const MemcachedServer& server);
  MemcachedClient(const MemcachedClient&) = delete;
  MemcachedClient& operator=(const MemcachedClient&) = delete;
  ~MemcachedClient();

  std::optional<std::string> get(const std::string& key);
  void set(const std::string& key, const std::string& bytes);
  void remove(const std::string& key);
  void flush_all();
  // Returns a value of "stats": "curr_items".
  std::uint64_t statistic(const std::string& name);

 private:
  void send(const std::string& text);
  std::string read_line();
  std::string read_bytes(std::size_t size);

  int socket_;
  std::string received_;
};

}  // namespace whycache::testing
