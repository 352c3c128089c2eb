// How soon a process learns of an update. Workloads:
//
//   set_to_wait  from the return of set() in one process to the return of wait() in another
//   futex_wake   from just before FUTEX_WAKE in one process to the return of FUTEX_WAIT in another
//
// Both between the same two processes, in turn. Figures are nanoseconds of wall time, one for each
// wake-up. The state and the log, in files, are in the directory given. The waiter is asleep when
// it is woken. --items is the number of wake-ups.
#include <fmt/format.h>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <climits>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>

#include <whycache/cache.h>

#include "bench/child.h"
#include "bench/clock.h"
#include "bench/program.h"
#include "bench/report.h"
#include "bench/temporary_directory.h"

namespace bench {
namespace {

// Long enough for the other process to fall asleep, and for its processor to be idle.
constexpr std::chrono::milliseconds pause_between{1};

struct WakeUps {
  std::atomic<std::uint32_t> word = 0;   // of the bare futex
  std::atomic<std::uint64_t> woken = 0;  // how many times the other process was
  std::atomic<double> woken_at_ns = 0;
};

long futex(std::atomic<std::uint32_t>& word, int operation, std::uint32_t value) {
  return ::syscall(SYS_futex, &word, operation, value, nullptr, nullptr, 0);
}

whycache::Cache open(const std::string& directory) {
  whycache::Options options;
  options.state_path = directory + "/state";
  return whycache::Cache("file://" + directory + "/log", options);
}

// The process that is woken: by an update, and by the futex, in turn.
void be_woken(const std::string& directory, WakeUps& shared, whycache::UpdateId id,
              std::uint64_t count) {
  whycache::Cache cache = open(directory);
  const auto note = [&] {
    shared.woken_at_ns = monotonic_time_ns();
    ++shared.woken;
  };
  ++shared.woken;  // ready
  for (std::uint32_t i = 0; i < count; ++i) {
    while (cache.applied_id() <= id) cache.wait(id);
    note();
    ++id;
    while (shared.word == i) futex(shared.word, FUTEX_WAIT, i);
    note();
  }
}

// Calls `wake`, which returns when it began to wake or had done so. Returns the time from then to
// when the other process was awake; less than 0 if that was before.
template <typename Wake>
double measure_wake_up(WakeUps& shared, Child& waiter, const Wake& wake) {
  const std::uint64_t woken_before = shared.woken;
  std::this_thread::sleep_for(pause_between);
  const double began_ns = wake();
  while (shared.woken == woken_before) {
    waiter.throw_if_failed();
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  return shared.woken_at_ns - began_ns;
}

void measure(const BenchmarkOptions& options, std::uint64_t count, Report& report) {
  const TemporaryDirectory directory(options.directory);
  whycache::Cache cache = open(directory.path());
  const whycache::UpdateId first = cache.set("key", "value");
  const SharedWithChildren<WakeUps> shared;
  Child waiter([&] { be_woken(directory.path(), *shared, first, count); });
  while (shared->woken == 0) {
    waiter.throw_if_failed();
    std::this_thread::sleep_for(pause_between);
  }
  for (std::uint64_t i = 0; i < count; ++i) {
    stop_if_interrupted();
    report.add("set_to_wait", count, "whycache", "ns", measure_wake_up(*shared, waiter, [&] {
                 cache.set("key", std::to_string(i));
                 return monotonic_time_ns();
               }));
    report.add("futex_wake", count, "futex", "ns", measure_wake_up(*shared, waiter, [&] {
                 const double now_ns = monotonic_time_ns();
                 ++shared->word;
                 futex(shared->word, FUTEX_WAKE, INT_MAX);
                 return now_ns;
               }));
  }
  waiter.wait();
  report.print("set_to_wait", count);
  report.print("futex_wake", count);
  const std::optional<double> set_to_wait = report.median("set_to_wait", count, "whycache");
  const std::optional<double> futex_wake = report.median("futex_wake", count, "futex");
  if (set_to_wait && futex_wake)
    fmt::print("\nmedian of set_to_wait against futex_wake: {:.2f} x\n",
               *set_to_wait / *futex_wake);
}

}  // namespace
}  // namespace bench

int main(int argument_count, char** arguments) {
  bench::Program program{.description = "How soon another process learns of an update.",
                         .workloads = {"set_to_wait", "futex_wake"},
                         .options = {},
                         .measure = bench::measure};
  program.options.items = {1'000};
  return program.run(argument_count, arguments);
}
