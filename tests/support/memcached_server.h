// A memcached of the test's own: on a free port of loopback and on no other, gone with the test.
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
  // Whether there is a memcached on this machine.
  static bool is_installed();
  // One for all stories of this process, with the default options.
  static MemcachedServer& shared();

  // `options` are added to those every server gets: "-m", "1". With `by_socket` it listens on a
  // unix socket instead. Throws std::runtime_error if it does not start.
  explicit MemcachedServer(std::vector<std::string> options = {}, bool by_socket = false);
  MemcachedServer(const MemcachedServer&) = delete;
  MemcachedServer& operator=(const MemcachedServer&) = delete;
  ~MemcachedServer();

  std::uint16_t port() const { return port_; }
  // As the option `memcached` of a log's URL has it: "127.0.0.1:4711", "/tmp/.../socket".
  std::string address() const;

  void start();  // empty, on the same port
  void kill();   // at once, as by kill -9
  // Kept by the kernel from running, and let run again.
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

// A connection of the test's own, which speaks memcached's text protocol itself. All throw
// std::runtime_error.
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
  // Of "stats": "curr_items".
  std::uint64_t statistic(const std::string& name);

 private:
  void send(const std::string& text);
  std::string read_line();
  std::string read_bytes(std::size_t size);

  int socket_;
  std::string received_;
};

}  // namespace whycache::testing
