// Waiting for a log that fails: until a deadline, with pauses that double, each shortened by a
// random part, so that machines that failed together do not come back together.
#pragma once

#include <algorithm>
#include <chrono>
#include <thread>

#include "base/clock.h"
#include "base/random.h"

namespace whycache {

class Backoff {
 public:
  explicit Backoff(std::chrono::milliseconds limit)
      : timeout_(std::clamp(limit, std::chrono::milliseconds(0), timeout_max)),
        deadline_(timeout_) {}

  const Deadline& deadline() const { return deadline_; }
  std::chrono::milliseconds timeout() const { return timeout_; }
  // Pauses since the last renew().
  int pause_count() const { return pause_count_; }

  // Waits before the next attempt. False, at once, when the deadline has passed. The last pause
  // ends at the deadline, so that there is an attempt after it.
  bool pause() {
    const std::chrono::nanoseconds left = deadline_.remaining();
    if (left.count() == 0) return false;
    const double share = 0.5 + 0.5 * static_cast<double>(random_u64() >> 11) * 0x1p-53;
    const auto shortened =
        std::chrono::duration_cast<std::chrono::nanoseconds>(next_pause_ * share);
    std::this_thread::sleep_for(std::min(shortened, left));
    next_pause_ = std::min(next_pause_ * 2, pause_max);
    ++pause_count_;
    return true;
  }

  // There was an answer: the next silence may last as long as the first.
  void reset() {
    deadline_ = Deadline(timeout_);
    next_pause_ = pause_min;
    pause_count_ = 0;
  }

 private:
  using Pause = std::chrono::duration<double, std::milli>;
  static constexpr Pause pause_min{2};
  static constexpr Pause pause_max{500};
  static constexpr std::chrono::milliseconds timeout_max = std::chrono::hours(24 * 365);

  std::chrono::milliseconds timeout_;
  Deadline deadline_;
  Pause next_pause_ = pause_min;
  int pause_count_ = 0;
};

}  // namespace whycache
