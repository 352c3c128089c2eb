#include "base/clock.h"

#include <time.h>

#include <thread>

namespace whycache {
namespace {

std::int64_t read_clock_ns(clockid_t clock) noexcept {
  struct timespec now;
  ::clock_gettime(clock, &now);
  return static_cast<std::int64_t>(now.tv_sec) * 1'000'000'000 + now.tv_nsec;
}

}  // namespace

std::int64_t boot_time_ns() noexcept { return read_clock_ns(CLOCK_BOOTTIME); }

void Deadline::sleep(std::chrono::nanoseconds time) const {
  const std::int64_t until_ns = boot_time_ns() + std::min(time, remaining()).count();
  // A request to stop wakes this thread, which need not look for one at intervals.
  std::mutex mutex;
  std::condition_variable stopped;
  const std::stop_callback on_stop(stop_, [&] {
    const std::lock_guard lock(mutex);
    stopped.notify_all();
  });
  std::unique_lock lock(mutex);
  for (;;) {
    const std::chrono::nanoseconds left(until_ns - boot_time_ns());
    if (left.count() <= 0 || stop_.stop_requested()) return;
    if (stop_.stop_possible()) {
      stopped.wait_for(lock, left);
    } else {
      std::this_thread::sleep_for(left);
    }
  }
}

std::int64_t wall_time_us() noexcept { return read_clock_ns(CLOCK_REALTIME) / 1000; }

}  // namespace whycache
