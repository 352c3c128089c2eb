// Clocks. The wall clock is for people, and for leases: no other decision depends on it.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <stop_token>
#include <utility>

namespace whycache {

// Nanoseconds since boot, including suspend (CLOCK_BOOTTIME). Processes of one boot can compare
// them.
std::int64_t boot_time_ns() noexcept;
// Microseconds since 1970.
std::int64_t wall_time_us() noexcept;

// The time at which to give up. Passes early if a stop is requested.
class Deadline {
 public:
  explicit Deadline(std::chrono::milliseconds timeout, std::stop_token stop = {})
      : at_ns_(boot_time_ns() + std::chrono::nanoseconds(std::min(timeout, timeout_max)).count()),
        stop_(std::move(stop)) {}

  bool passed() const noexcept { return stop_.stop_requested() || boot_time_ns() >= at_ns_; }
  std::chrono::nanoseconds remaining() const noexcept {
    const std::int64_t left = stop_.stop_requested() ? 0 : at_ns_ - boot_time_ns();
    return std::chrono::nanoseconds(left > 0 ? left : 0);
  }
  // The same, whether or not a stop is requested.
  std::chrono::nanoseconds time_left() const noexcept {
    return std::chrono::nanoseconds(std::max<std::int64_t>(at_ns_ - boot_time_ns(), 0));
  }
  const std::stop_token& stop() const noexcept { return stop_; }
  // Returns a deadline that passes with this one, or after `timeout` if that is earlier.
  Deadline at_most(std::chrono::milliseconds timeout) const {
    Deadline earlier(timeout, stop_);
    earlier.at_ns_ = std::min(earlier.at_ns_, at_ns_);
    return earlier;
  }
  // Returns a deadline at the same time, with another stop.
  Deadline with_stop(std::stop_token stop) const {
    Deadline other = *this;
    other.stop_ = std::move(stop);
    return other;
  }

  // Sleeps for `time`, or until the deadline has passed.
  void sleep(std::chrono::nanoseconds time) const;
  // Waits until `is_done`, or until the deadline has passed. Returns is_done().
  template <typename IsDone>
  bool wait(std::unique_lock<std::mutex>& lock, std::condition_variable& changed,
            const IsDone& is_done) const {
    while (!is_done()) {
      const std::chrono::nanoseconds left = next_wait();
      if (left.count() == 0) return is_done();
      changed.wait_for(lock, left);
    }
    return true;
  }
  // Returns how long a wait may last before passed() has to be asked again.
  std::chrono::nanoseconds next_wait() const noexcept {
    const std::chrono::nanoseconds left = remaining();
    return stop_.stop_possible() ? std::min<std::chrono::nanoseconds>(left, stop_check_interval)
                                 : left;
  }

 private:
  static constexpr std::chrono::milliseconds timeout_max = std::chrono::hours(24 * 365);
  // A waiting thread notices a stop after this time at most.
  static constexpr std::chrono::milliseconds stop_check_interval{10};

  std::int64_t at_ns_;
  std::stop_token stop_;
};

}  // namespace whycache
