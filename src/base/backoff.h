// Exponential backoff: the pauses between attempts double up to a longest one, until a deadline. A
// request to stop ends a pause early.
//
// Jitter shortens each pause by a random part, so that machines that failed together do not all
// retry at the same time.
#pragma once

#include <algorithm>
#include <cassert>
#include <chrono>
#include <optional>
#include <stop_token>
#include <string>
#include <utility>

#include "base/clock.h"
#include "base/random.h"

namespace whycache {

class Backoff {
 public:
  struct Pauses {
    std::chrono::nanoseconds first;
    std::chrono::nanoseconds longest;
    // The greatest share of a pause that is randomly left out: 0 for none, 1 for all of it.
    double jitter = 0;
  };
  // Between calls to a log that does not answer.
  static constexpr Pauses log_pauses{std::chrono::milliseconds(2), std::chrono::milliseconds(500),
                                     0.5};

  explicit Backoff(std::chrono::milliseconds timeout, const Pauses& pauses = log_pauses)
      : Backoff(timeout, {}, pauses) {}
  Backoff(std::chrono::milliseconds timeout, std::stop_token stop,
          const Pauses& pauses = log_pauses)
      : pauses_(pauses),
        timeout_(std::clamp(timeout, std::chrono::milliseconds(0), timeout_max)),
        deadline_(timeout_, std::move(stop)) {
    check_pauses();
  }
  Backoff(const Deadline& deadline, const Pauses& pauses)
      : pauses_(pauses),
        timeout_(std::chrono::ceil<std::chrono::milliseconds>(deadline.remaining())),
        deadline_(deadline) {
    check_pauses();
  }

  const Deadline& deadline() const { return deadline_; }
  // From now on, the deadline also passes if this stop is requested, and no other.
  void replace_stop(std::stop_token stop) { deadline_ = deadline_.with_stop(std::move(stop)); }
  // The time from the constructor or reset() to the deadline.
  std::chrono::milliseconds timeout() const { return timeout_; }
  // Why the last attempt failed, for a message if the deadline cuts the next one short.
  const std::string& last_failure() const { return last_failure_; }
  int last_system_error() const { return last_system_error_; }
  void note_failure(std::string why, int system_error) {
    last_failure_ = std::move(why);
    last_system_error_ = system_error;
  }
  // Pauses since the constructor or reset().
  int pause_count() const { return pause_count_; }

  // Waits before the next attempt. Returns false, at once, if the deadline has passed.
  bool pause() {
    const std::optional<std::chrono::nanoseconds> pause = next_pause();
    if (pause) deadline_.sleep(*pause);
    return pause.has_value();
  }
  // Returns the next pause, for a caller that waits by other means; nullopt if the deadline has
  // passed. The last pause ends at the deadline, so that one attempt follows it.
  std::optional<std::chrono::nanoseconds> next_pause() {
    const std::chrono::nanoseconds left = deadline_.remaining();
    if (left.count() == 0) return std::nullopt;
    const std::chrono::nanoseconds pause = std::min(with_jitter(next_pause_), left);
    next_pause_ = std::min(next_pause_ * 2, pauses_.longest);
    ++pause_count_;
    return pause;
  }

  // Restarts the timeout and the pauses, after an attempt that succeeded.
  void reset() {
    deadline_ = Deadline(timeout_, deadline_.stop());
    next_pause_ = pauses_.first;
    pause_count_ = 0;
    last_failure_.clear();
    last_system_error_ = 0;
  }

 private:
  static constexpr std::chrono::milliseconds timeout_max = std::chrono::hours(24 * 365);

  void check_pauses() const {
    assert(pauses_.first.count() > 0 && pauses_.first <= pauses_.longest);
    assert(pauses_.jitter >= 0 && pauses_.jitter <= 1);
  }
  std::chrono::nanoseconds with_jitter(std::chrono::nanoseconds pause) const {
    if (pauses_.jitter == 0) return pause;
    const double random = static_cast<double>(random_u64() >> 11) * 0x1p-53;  // in [0, 1)
    return std::chrono::duration_cast<std::chrono::nanoseconds>(pause *
                                                                (1 - pauses_.jitter * random));
  }

  Pauses pauses_;
  std::chrono::milliseconds timeout_;
  Deadline deadline_;
  std::chrono::nanoseconds next_pause_ = pauses_.first;
  int pause_count_ = 0;
  std::string last_failure_;
  int last_system_error_ = 0;
};

}  // namespace whycache
