#include "base/clock.h"

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include <thread>

#include "base/file.h"
#include "base/hex.h"

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
  for (;;) {
    const std::chrono::nanoseconds left(until_ns - boot_time_ns());
    if (left.count() <= 0 || stop_.stop_requested()) return;
    std::this_thread::sleep_for(std::min(left, std::max(next_wait(), std::chrono::nanoseconds(1))));
  }
}

std::int64_t wall_time_us() noexcept { return read_clock_ns(CLOCK_REALTIME) / 1000; }

Uuid boot_id() {
  Uuid id{};
  const FileDescriptor file(::open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC));
  char text[64];
  const ssize_t size = file ? ::read(file.number(), text, sizeof text) : 0;
  std::size_t digits = 0;
  for (ssize_t i = 0; i < size && digits < 32; ++i) {
    const int digit = hex_value(text[i]);
    if (digit < 0) continue;
    id[digits / 2] = static_cast<std::uint8_t>(id[digits / 2] << 4 | digit);
    ++digits;
  }
  return id;
}

}  // namespace whycache
