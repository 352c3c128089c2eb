// Clocks. The wall clock is for people: no decision depends on it.
#pragma once

#include <chrono>
#include <cstdint>

#include <whycache/types.h>

namespace whycache {

// Nanoseconds since boot, including suspend (CLOCK_BOOTTIME). Processes of one boot can compare
// them.
std::int64_t boot_time_ns() noexcept;
// Microseconds since 1970.
std::int64_t wall_time_us() noexcept;
// The kernel's random id of this boot; all zero if it cannot be read.
Uuid boot_id();

// The time at which to give up.
class Deadline {
 public:
  explicit Deadline(std::chrono::milliseconds timeout)
      : at_ns_(boot_time_ns() +
               std::chrono::duration_cast<std::chrono::nanoseconds>(timeout).count()) {}

  bool passed() const noexcept { return boot_time_ns() >= at_ns_; }
  std::chrono::nanoseconds remaining() const noexcept {
    const std::int64_t left = at_ns_ - boot_time_ns();
    return std::chrono::nanoseconds(left > 0 ? left : 0);
  }

 private:
  std::int64_t at_ns_;
};

}  // namespace whycache
