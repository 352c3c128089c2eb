// Waiting for a log that fails: until a deadline, with pauses that double, each shortened by a random part, so
// that machines that failed together do not come back together.
#pragma once

#include <algorithm>
#include <chrono>
#include <thread>

#include "base/clock.h"
#include "base/random.h"

namespace whycache {

class Patience {
 public:
  explicit Patience(std::chrono::milliseconds limit)
      : limit_(std::clamp(limit, std::chrono::milliseconds(0), limit_max)), deadline_(limit_) {}

  const Deadline& deadline() const { return deadline_; }
  std::chrono::milliseconds limit() const { return limit_; }
  // Pauses since the last renew().
  int pauses() const { return pauses_; }

  // Waits before the next attempt. False, at once, when the deadline has passed. The last pause ends at the
  // deadline, so that there is an attempt after it.
  bool pause() {
    const std::chrono::nanoseconds left = deadline_.left();
    if (left.count() == 0) return false;
    const double share = 0.5 + 0.5 * static_cast<double>(random_u64() >> 11) * 0x1p-53;
    const auto shortened = std::chrono::duration_cast<std::chrono::nanoseconds>(next_pause_ * share);
    std::this_thread::sleep_for(std::min(shortened, left));
    next_pause_ = std::min(next_pause_ * 2, pause_max);
    ++pauses_;
    return true;
  }

  // There was an answer: the next silence may last as long as the first.
  void renew() {
    deadline_ = Deadline(limit_);
    next_pause_ = pause_min;
    pauses_ = 0;
  }

 private:
  using Pause = std::chrono::duration<double, std::milli>;
  static constexpr Pause pause_min{2};
  static constexpr Pause pause_max{500};
  static constexpr std::chrono::milliseconds limit_max = std::chrono::hours(24 * 365);

  std::chrono::milliseconds limit_;
  Deadline deadline_;
  Pause next_pause_ = pause_min;
  int pauses_ = 0;
};

}  // namespace whycache
