// A Redis of a test, on a free port of loopback only. Its destructor kills it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "support/temporary_directory.h"

namespace whycache::testing {

class RedisTestServer {
 public:
  // Whether redis-server is installed.
  static bool is_installed();
  // The server that all tests of this process share.
  static RedisTestServer& shared();

  // `options` are words of the command line: "--maxmemory", "3mb". With `by_socket` the server
  // listens on a unix socket only. Throws std::runtime_error if it does not start.
  explicit RedisTestServer(std::vector<std::string> options = {}, bool by_socket = false);
  RedisTestServer(const RedisTestServer&) = delete;
  RedisTestServer& operator=(const RedisTestServer&) = delete;
  ~RedisTestServer();

  std::uint16_t port() const { return port_; }
  // Returns the address in the form of the URL option `redis`: "127.0.0.1:4711", "/tmp/.../socket".
  std::string address() const;

  // On the same port, with what the server has saved: nothing, unless it was told to save.
  void start();
  void kill();  // by SIGKILL
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

// A separate connection, which implements the protocol itself. All functions throw
// std::runtime_error on failure.
class RedisClient {
 public:
  explicit RedisClient(const RedisTestServer& server);
  RedisClient(const RedisClient&) = delete;
  RedisClient& operator=(const RedisClient&) = delete;
  ~RedisClient();

  // Returns all texts and numbers of the answer in their order, lists within lists included.
  // Without nil. An error of the server is thrown.
  std::vector<std::string> run(const std::vector<std::string>& words);
  std::optional<std::string> get(const std::string& key);
  // Returns a field of INFO: "evicted_keys".
  std::string info(const std::string& name);

 private:
  std::string read_line();
  std::string read_bytes(std::size_t size);
  void read_reply(std::vector<std::string>& texts);

  int socket_;
  std::string received_;
};

}  // namespace whycache::testing
