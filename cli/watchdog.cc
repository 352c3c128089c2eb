#include "cli/watchdog.h"

#include <pthread.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string_view>

#include "cli/service_manager.h"

namespace whycache::cli {
namespace {

// Waits beyond this are as good as endless, and cannot overflow a time.
constexpr std::chrono::hours longest_wait{24 * 365};

std::optional<std::uint64_t> number_in_environment(const char* name) {
  const char* const text = std::getenv(name);
  if (text == nullptr) return std::nullopt;
  const std::string_view digits(text);
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
  if (error != std::errc() || end != digits.data() + digits.size()) return std::nullopt;
  return number;
}

std::chrono::nanoseconds interval_in_environment() {
  // A variable that was inherited from another process is not for this one.
  const std::optional<std::uint64_t> process_id = number_in_environment("WATCHDOG_PID");
  if (std::getenv("WATCHDOG_PID") != nullptr &&
      process_id != static_cast<std::uint64_t>(::getpid()))
    return std::chrono::nanoseconds(0);
  constexpr std::uint64_t microseconds_max =
      std::chrono::duration_cast<std::chrono::microseconds>(longest_wait).count();
  const std::uint64_t microseconds = number_in_environment("WATCHDOG_USEC").value_or(0);
  return std::chrono::microseconds(std::min(microseconds, microseconds_max)) / 2;
}

}  // namespace

Watchdog::Watchdog() : interval_(interval_in_environment()) {
  if (interval_.count() == 0 || ::pthread_getcpuclockid(::pthread_self(), &thread_clock_) != 0)
    return;
  thread_ = std::thread([this] { run(); });
}

Watchdog::~Watchdog() {
  {
    const MutexLock lock(mutex_);
    is_ending_ = true;
  }
  ending_.notify_all();
  if (thread_.joinable()) thread_.join();
}

void Watchdog::note_wait(std::chrono::nanoseconds at_most) { note(at_most, false); }

void Watchdog::note_work(std::chrono::nanoseconds at_most) { note(at_most, true); }

void Watchdog::note(std::chrono::nanoseconds at_most, bool begins_again) {
  const MutexLock lock(mutex_);
  at_most_ = std::min<std::chrono::nanoseconds>(at_most, longest_wait) + interval_;
  begins_again_ = begins_again;
  end_ = Clock::now() + at_most_;
}

std::chrono::nanoseconds Watchdog::time_run() const {
  timespec time{};
  if (::clock_gettime(thread_clock_, &time) != 0) return std::chrono::nanoseconds(0);
  return std::chrono::seconds(time.tv_sec) + std::chrono::nanoseconds(time.tv_nsec);
}

bool Watchdog::is_at_work() {
  const std::chrono::nanoseconds time_run_now = time_run();
  const bool has_run = time_run_now > time_run_before_;
  time_run_before_ = time_run_now;
  const Clock::time_point now = Clock::now();
  if (begins_again_ && has_run) end_ = std::max(end_, now + at_most_);
  return now < end_;
}

void Watchdog::run() {
  MutexLock lock(mutex_);
  while (!is_ending_) {
    if (is_at_work()) notify_service_manager("WATCHDOG=1");
    ending_.wait_for(lock.native(), interval_);
  }
}

}  // namespace whycache::cli
