// A memcached server for the fleet, on a unix socket in its directory; both end with the object.
#pragma once

#include <unistd.h>

#include <cstddef>
#include <string>

#include "bench/server.h"

namespace bench {

class FleetMemcached {
 public:
  FleetMemcached(const std::string& directory, std::size_t connections_max)
      : socket_(directory + "/memcached.sock"),
        server_({"memcached", "--unix-socket=" + socket_,
                 "--user=" + std::string(::geteuid() == 0 ? "root" : ""), "--threads=1",
                 "--conn-limit=" + std::to_string(connections_max)}) {
    server_.wait_until([&] { return ::access(socket_.c_str(), W_OK) == 0; });
  }
  const std::string& socket() const { return socket_; }

 private:
  std::string socket_;
  Server server_;
};

}  // namespace bench
