// Ends a thread's wait on a socket when a deadline passes. For client libraries whose timeouts are
// whole seconds, and start again with each piece of an answer.
//
// One thread per process watches all deadlines. It starts with the first of them, and again in a
// forked child. It shuts the socket down, which makes the library's wait return as if the server
// had closed the connection.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <stop_token>

#include "base/clock.h"
#include "base/file.h"

namespace whycache {

class SocketTimeout {
 public:
  // Until the end of the scope, shuts the socket down when `deadline` has passed, or when a stop is
  // requested. A deadline that is about to pass is extended to `shortest_wait` from now. The
  // descriptor must be a duplicate of the library's, which the library does not close. Costs about
  // 100 ns.
  SocketTimeout(std::shared_ptr<const FileDescriptor> socket, const Deadline& deadline);
  ~SocketTimeout();
  SocketTimeout(const SocketTimeout&) = delete;
  SocketTimeout& operator=(const SocketTimeout&) = delete;

  // A call that begins when its deadline has just passed gets this long: a server that is well
  // answers in time.
  static constexpr std::chrono::milliseconds shortest_wait{10};

 private:
  struct Stop {
    std::uint64_t number;
    void operator()() const noexcept;
  };

  const std::shared_ptr<const FileDescriptor> socket_;
  std::uint64_t number_;
  std::optional<std::stop_callback<Stop>> on_stop_;
};

}  // namespace whycache
