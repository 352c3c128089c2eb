// The limit of the calls that a thread makes to a log. The cache sets it around each call; a log
// waits no longer than it allows. A log has no parameter for it, since most waits are deep inside
// (a busy handler, a lock, a socket).
#pragma once

#include <chrono>
#include <stop_token>

#include "base/clock.h"

namespace whycache {

class CallLimit {
 public:
  // Limits the calls of this thread until the end of the scope. `deadline` must outlive it, and may
  // be moved forward meanwhile.
  explicit CallLimit(const Deadline& deadline) : previous_(current) { current = &deadline; }
  explicit CallLimit(const Deadline&&) = delete;
  CallLimit(const CallLimit&) = delete;
  CallLimit& operator=(const CallLimit&) = delete;
  ~CallLimit() { current = previous_; }

  // Returns the deadline of a wait that may take at most `timeout` by itself.
  static Deadline deadline(std::chrono::milliseconds timeout) {
    return current != nullptr ? current->at_most(timeout) : Deadline(timeout);
  }
  // Sleeps for `time`, or until the deadline of this thread's calls has passed.
  static void sleep(std::chrono::nanoseconds time) {
    if (current != nullptr) {
      current->sleep(time);
    } else {
      Deadline(std::chrono::milliseconds::max()).sleep(time);
    }
  }
  // Returns the token that stops this thread's calls; one that no stop can be requested of if they
  // have no limit.
  static std::stop_token stop() { return current != nullptr ? current->stop() : std::stop_token(); }
  // Returns what is left to this thread; the greatest duration if its calls have no limit.
  static std::chrono::nanoseconds remaining() noexcept {
    return current != nullptr ? current->remaining() : std::chrono::nanoseconds::max();
  }

 private:
  static constinit thread_local const Deadline* current;

  const Deadline* previous_;
};

inline constinit thread_local const Deadline* CallLimit::current = nullptr;

}  // namespace whycache
