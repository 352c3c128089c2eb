#include "state/file/lock_queue.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdint>
#include <ctime>
#include <thread>

#include "base/process_lock.h"

namespace whycache {
namespace {

using std::chrono::microseconds;

constexpr std::uint64_t append_gate = 15;  // its byte; those from 0 on are the StateLocks themselves
static_assert(append_gate < lock_byte_count);
constexpr microseconds pause_at_first{100};
constexpr microseconds pause_max{1000};
// Who was woken before the lock is free stays awake for it for so long.
constexpr microseconds awake_max{40};
// Longer than many processes that write to a slow disk need to pass it.
constexpr std::chrono::milliseconds gate_patience{100};

constexpr std::uint32_t nobody_sleeps = 0;
constexpr std::uint32_t somebody_may_sleep = 1;

std::uint64_t byte_of(StateLock lock) { return static_cast<std::uint64_t>(lock); }

// A byte of the lock file, and the word on which those sleep who want it.
class LockByte {
 public:
  LockByte(const LockFile& file, std::uint64_t number)
      : file_(file.descriptor()), number_(number), sleepers_(file.header().sleepers[number]) {}

  bool try_take() const { return try_lock_byte(file_, number_); }

  // Calls `take` until it returns true. False: not before the deadline.
  template <typename Take>
  bool take_until(const Deadline& deadline, const Take& take) const {
    if (take()) return true;
    for (microseconds pause = pause_at_first; !deadline.passed(); pause = std::min(pause * 2, pause_max)) {
      // Either who lets go sees this, or we see that he has let go.
      sleepers_.store(somebody_may_sleep, std::memory_order_seq_cst);
      if (take()) return true;
      const Slept slept = sleep(pause);
      const std::int64_t until = boot_time_ns() + std::chrono::nanoseconds(awake_max).count();
      for (bool taken = take();; taken = take()) {
        if (taken) {
          // Of several one was woken: another has to be when he lets go.
          sleepers_.store(somebody_may_sleep, std::memory_order_relaxed);
          return true;
        }
        if (slept != Slept::woken || boot_time_ns() >= until) break;
        std::this_thread::yield();
      }
      if (slept == Slept::not_at_all) std::this_thread::sleep_for(pause);
    }
    return false;
  }

  void release() const noexcept {
    unlock_byte(file_, number_);
    wake_one();
  }

  void wake_one() const noexcept {
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_relaxed) != nobody_sleeps &&
        sleepers_.exchange(nobody_sleeps, std::memory_order_seq_cst) != nobody_sleeps) {
      ::syscall(SYS_futex, &sleepers_, FUTEX_WAKE, 1, nullptr, nullptr, 0);
    }
  }

 private:
  // not_at_all: the word was changed just now, or this system lets nobody sleep on words.
  enum class Slept : std::uint8_t { woken, to_the_end, not_at_all };
  Slept sleep(microseconds at_most) const noexcept {
    const timespec patience{0, std::chrono::nanoseconds(at_most).count()};
    if (::syscall(SYS_futex, &sleepers_, FUTEX_WAIT, somebody_may_sleep, &patience, nullptr, 0) == 0)
      return Slept::woken;
    return errno == ETIMEDOUT || errno == EINTR ? Slept::to_the_end : Slept::not_at_all;
  }

  int file_;
  std::uint64_t number_;
  std::atomic<std::uint32_t>& sleepers_;
};

class Gate {
 public:
  explicit Gate(const LockByte& byte) : byte_(byte) {}
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;
  ~Gate() {
    if (held_) byte_.release();
  }

  bool try_pass() { return held_ = byte_.try_take(); }

 private:
  const LockByte& byte_;
  bool held_ = false;
};

bool wait_in_turn(const LockFile& file, const LockByte& lock, const Deadline& deadline) {
  const LockByte gate_byte(file, append_gate);
  Gate gate(gate_byte);
  const Deadline patience(gate_patience);
  bool taken = false;
  const bool passed = gate_byte.take_until(deadline, [&] {
    taken = patience.passed() && lock.try_take();
    return taken || gate.try_pass();
  });
  if (!passed || taken) return taken;
  return lock.take_until(deadline, [&] { return lock.try_take(); });
}

}  // namespace

bool wait_for_lock(const LockFile& file, StateLock which, const Deadline& deadline) {
  const LockByte lock(file, byte_of(which));
  if (which == StateLock::append) return wait_in_turn(file, lock, deadline);
  return lock.take_until(deadline, [&] { return lock.try_take(); });
}

void wake_next(const LockFile& file, StateLock which) noexcept { LockByte(file, byte_of(which)).wake_one(); }

void release_lock(const LockFile& file, StateLock which) noexcept { LockByte(file, byte_of(which)).release(); }

}  // namespace whycache
