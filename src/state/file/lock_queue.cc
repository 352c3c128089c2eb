#include "state/file/lock_queue.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cassert>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <optional>
#include <thread>

#include "base/backoff.h"
#include "base/process_lock.h"

namespace whycache {
namespace {

using std::chrono::microseconds;
using std::chrono::nanoseconds;

// The bytes from 0 on are the StateLocks themselves.
constexpr std::uint64_t append_gate_byte = 15;
static_assert(append_gate_byte < lock_byte_count);
constexpr Backoff::Pauses lock_pauses{microseconds(100), microseconds(1000)};
// A waiter that is woken before the lock is free spins for this long.
constexpr microseconds spin_time_max{40};
// Longer than many processes that write to a slow disk need to pass the gate.
constexpr std::chrono::milliseconds gate_timeout{100};

constexpr std::uint32_t no_waiters = 0;
constexpr std::uint32_t may_have_waiters = 1;

std::uint64_t byte_of(StateLock lock) { return static_cast<std::uint64_t>(lock); }

// A byte of the lock file, and the word on which its waiters sleep.
class LockByte {
 public:
  LockByte(const LockFile& file, std::uint64_t number)
      : file_(file.descriptor()), number_(number), waiters_(file.header().waiters[number]) {
    assert(number < lock_byte_count);
  }

  bool try_acquire() const { return try_lock_byte(file_, number_); }

  // Calls `try_take` until it returns true. Returns false if the deadline passes first.
  template <typename TryTake>
  bool acquire_until(const Deadline& deadline, const TryTake& try_take) const {
    if (try_take()) return true;
    Backoff backoff(deadline, lock_pauses);
    while (const std::optional<nanoseconds> pause = backoff.next_pause()) {
      // Pairs with the fence in wake_one(): either the releasing process sees this store, or we see
      // that the byte is unlocked.
      waiters_.store(may_have_waiters, std::memory_order_seq_cst);
      if (try_take()) return true;
      const SleepResult slept = sleep(*pause);
      const std::int64_t until = boot_time_ns() + std::chrono::nanoseconds(spin_time_max).count();
      for (bool taken = try_take();; taken = try_take()) {
        if (taken) {
          // Only one waiter was woken, and the word is 0 now. Have the next release wake another.
          // Relaxed: this thread loads it, in wake_one().
          waiters_.store(may_have_waiters, std::memory_order_relaxed);
          return true;
        }
        if (slept != SleepResult::woken || boot_time_ns() >= until) break;
        std::this_thread::yield();
      }
      if (slept == SleepResult::not_slept) std::this_thread::sleep_for(*pause);
    }
    return false;
  }

  void unlock() const noexcept { unlock_byte(file_, number_); }

  // Whether a process may be asleep on the word.
  bool may_have_sleepers() const noexcept {
    return waiters_.load(std::memory_order_relaxed) != no_waiters;
  }

  void wake_one() const noexcept {
    // Between the unlock and the load: see acquire_until().
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (may_have_sleepers() &&
        waiters_.exchange(no_waiters, std::memory_order_seq_cst) != no_waiters) {
      ::syscall(SYS_futex, &waiters_, FUTEX_WAKE, 1, nullptr, nullptr, 0);
    }
  }

 private:
  // not_slept: the word has just changed, or this system does not allow futexes.
  enum class SleepResult : std::uint8_t { woken, timed_out, not_slept };
  SleepResult sleep(nanoseconds at_most) const noexcept {
    const timespec timeout{0, at_most.count()};
    if (::syscall(SYS_futex, &waiters_, FUTEX_WAIT, may_have_waiters, &timeout, nullptr, 0) == 0)
      return SleepResult::woken;
    return errno == ETIMEDOUT || errno == EINTR ? SleepResult::timed_out : SleepResult::not_slept;
  }

  int file_;
  std::uint64_t number_;
  std::atomic<std::uint32_t>& waiters_;
};

// Holds the byte of the gate from try_pass() on.
class Gate {
 public:
  explicit Gate(const LockByte& byte) : byte_(byte) {}
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;
  ~Gate() {
    if (!held_) return;
    byte_.unlock();
    byte_.wake_one();
  }

  bool try_pass() { return held_ = byte_.try_acquire(); }

 private:
  const LockByte& byte_;
  bool held_ = false;
};

bool acquire_through_gate(const LockFile& file, const LockByte& lock, const Deadline& deadline) {
  std::atomic<std::uint32_t>& is_awaited = file.header().append_is_awaited;
  const LockByte gate_byte(file, append_gate_byte);
  Gate gate(gate_byte);
  const Deadline gate_deadline(gate_timeout);
  bool taken = false;
  const bool passed = gate_byte.acquire_until(deadline, [&] {
    taken = gate_deadline.passed() && lock.try_acquire();
    if (taken || gate.try_pass()) return true;
    is_awaited.store(1, std::memory_order_relaxed);
    return false;
  });
  if (!passed || taken) return taken;
  taken = lock.acquire_until(deadline, [&] {
    is_awaited.store(1, std::memory_order_relaxed);
    return lock.try_acquire();
  });
  is_awaited.store(0, std::memory_order_relaxed);
  return taken;
}

// Where no process waits, the gate would only cost two system calls. A process with a version of
// the library that does not store append_is_awaited, and always passes the gate, is seen by the
// words that it sleeps on.
bool acquire_append(const LockFile& file, const LockByte& lock, const Deadline& deadline) {
  const bool is_awaited = file.header().append_is_awaited.load(std::memory_order_relaxed) != 0 ||
                          lock.may_have_sleepers() ||
                          LockByte(file, append_gate_byte).may_have_sleepers();
  return (!is_awaited && lock.try_acquire()) || acquire_through_gate(file, lock, deadline);
}

// Wakes the next waiter. Until that has the lock, the word that it slept on is 0.
void wake_next(const LockFile& file, const LockByte& lock, StateLock which) noexcept {
  if (which == StateLock::append && lock.may_have_sleepers())
    file.header().append_is_awaited.store(1, std::memory_order_relaxed);
  lock.wake_one();
}

}  // namespace

bool wait_for_lock(const LockFile& file, StateLock which, const Deadline& deadline) {
  const LockByte lock(file, byte_of(which));
  if (which == StateLock::append) return acquire_append(file, lock, deadline);
  return lock.acquire_until(deadline, [&] { return lock.try_acquire(); });
}

void wake_next_waiter(const LockFile& file, StateLock which) noexcept {
  wake_next(file, LockByte(file, byte_of(which)), which);
}

void release_lock(const LockFile& file, StateLock which) noexcept {
  const LockByte lock(file, byte_of(which));
  lock.unlock();
  wake_next(file, lock, which);
}

}  // namespace whycache
