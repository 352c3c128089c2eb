// The servers of the tiers, each on a unix socket in the directory given. A server ends with its
// object.
#pragma once

#include <unistd.h>

#include <cstddef>
#include <string>
#include <utility>
#include <vector>

#include "bench/server.h"

namespace bench {

// With one thread, which is enough for the clients of one machine.
class MemcachedServer {
 public:
  static constexpr const char* program = "memcached";

  MemcachedServer(const std::string& directory, std::vector<std::string> options)
      : socket_(directory + "/memcached.sock"), server_(command(std::move(options))) {
    server_.wait_until([&] { return accepts_connections(socket_); });
  }
  const std::string& socket() const { return socket_; }
  const Server& server() const { return server_; }

 private:
  std::vector<std::string> command(std::vector<std::string> options) const {
    const std::string user = ::geteuid() == 0 ? "root" : "";
    options.insert(options.begin(),
                   {program, "--unix-socket=" + socket_, "--user=" + user, "--threads=1"});
    return options;
  }

  std::string socket_;
  Server server_;
};

// Saves nothing.
class RedisServer {
 public:
  static constexpr const char* program = "redis-server";

  explicit RedisServer(const std::string& directory, std::vector<std::string> options = {})
      : socket_(directory + "/redis.sock"), server_(command(directory, std::move(options))) {
    server_.wait_until([&] { return accepts_connections(socket_); });
  }
  const std::string& socket() const { return socket_; }
  const Server& server() const { return server_; }

 private:
  std::vector<std::string> command(const std::string& directory,
                                   std::vector<std::string> options) const {
    options.insert(options.begin(),
                   {program, "--port", "0", "--unixsocket", socket_, "--dir", directory, "--save",
                    "", "--appendonly", "no", "--daemonize", "no"});
    return options;
  }

  std::string socket_;
  Server server_;
};

}  // namespace bench
