#include "state/file/applied_wait.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <thread>

#include "base/fork_handlers.h"
#include "base/random.h"

namespace whycache {
namespace {

// Shared, not private: other processes map the same file, each at an address of its own. Waiting
// and waking only read the word, which may be mapped without write access.
void wake(const Header& header, std::uint32_t waiters) noexcept {
  ::syscall(SYS_futex, header.applied_id.low_half(), FUTEX_WAKE_BITSET, INT_MAX, nullptr, nullptr,
            waiters);
}

// Returns the time in `duration` as the kernel wants it: by CLOCK_MONOTONIC.
struct timespec time_after(std::chrono::nanoseconds duration) noexcept {
  struct timespec time {};
  ::clock_gettime(CLOCK_MONOTONIC, &time);
  const std::int64_t ns = time.tv_nsec + duration.count();
  time.tv_sec += ns / 1'000'000'000;
  time.tv_nsec = ns % 1'000'000'000;
  return time;
}

}  // namespace

void wake_applied_waiters(const Header& header) noexcept { wake(header, FUTEX_BITSET_MATCH_ANY); }

void sleep_until_applied(const Header& header, std::uint64_t seen, std::chrono::nanoseconds at_most,
                         const std::stop_token& stop) {
  if (at_most.count() <= 0) return;
  // A stop wakes only waiters with the same bit, most of which are not of other processes.
  const std::uint32_t own_bit = std::uint32_t{1} << random_u64() % 32;
  // The waiter stores is_asleep, then loads was_stopped; the callback the other way round (both
  // seq_cst). Either the waiter sees the stop, or the callback wakes until the waiter is awake: the
  // waiter may be about to sleep.
  std::atomic<bool> is_asleep{false};
  std::atomic<bool> was_stopped{false};
  // A forked child that requests the stop has a copy of the callback, but not the waiter.
  const std::uint64_t forks = fork_count();
  const std::stop_callback on_stop(stop, [&] {
    was_stopped.store(true);
    while (is_asleep.load() && fork_count() == forks) {
      wake(header, own_bit);
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
  });
  const struct timespec until =
      time_after(std::min<std::chrono::nanoseconds>(at_most, applied_sleep_max));
  is_asleep.store(true);
  bool is_refused = false;
  if (!was_stopped.load()) {
    const long slept = ::syscall(SYS_futex, header.applied_id.low_half(), FUTEX_WAIT_BITSET,
                                 static_cast<std::uint32_t>(seen), &until, nullptr, own_bit);
    is_refused = slept != 0 && errno != EAGAIN && errno != ETIMEDOUT && errno != EINTR;
  }
  is_asleep.store(false);
  // A system that does not allow futexes: the caller looks again a hundred times a second.
  constexpr std::chrono::milliseconds look_interval{10};
  if (is_refused)
    std::this_thread::sleep_for(std::min<std::chrono::nanoseconds>(at_most, look_interval));
}

}  // namespace whycache
