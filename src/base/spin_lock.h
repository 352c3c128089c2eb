// A lock for sections that mostly take some nanoseconds, and are entered very often. One atomic
// instruction takes it, and a plain store releases it. A mutex needs an atomic instruction for
// both.
//
// The price is that waiting threads are not woken. They look again: a hundred times, then after a
// pause, in which a holder that was preempted can run, and so on with pauses of up to a
// millisecond. It is a test-and-test-and-set lock with backoff (M. Herlihy, N. Shavit, "The Art of
// Multiprocessor Programming", chapter 7), as folly::MicroSpinLock.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

#include "base/mutex.h"

namespace whycache {

// Any thread may take it; the one that did releases it. In a forked child it is still taken if
// another thread of the parent had it.
class WHYCACHE_THREAD_ANNOTATION(capability("mutex")) SpinLock {
 public:
  void lock() noexcept WHYCACHE_ACQUIRE() {
    // Pairs with unlock(): what the last holder wrote is visible.
    if (taken_.exchange(true, std::memory_order_acquire)) [[unlikely]]
      wait();
  }
  void unlock() noexcept WHYCACHE_RELEASE() { taken_.store(false, std::memory_order_release); }

 private:
  [[gnu::noinline]] void wait() noexcept {
    constexpr int looks_max = 100;
    constexpr std::chrono::microseconds pause_max{1000};
    for (std::chrono::microseconds pause{20};; pause = std::min(2 * pause, pause_max)) {
      for (int look = 0; look < looks_max; ++look) {
        // A load keeps the cache line shared among those who wait.
        if (!taken_.load(std::memory_order_relaxed) &&
            !taken_.exchange(true, std::memory_order_acquire))
          return;
      }
      std::this_thread::sleep_for(pause);
    }
  }

  // Those that want the lock exchange true (acquire); its holder stores false (release).
  std::atomic<bool> taken_{false};
};

// Holds a SpinLock until the end of its scope.
class WHYCACHE_THREAD_ANNOTATION(scoped_lockable) SpinLockGuard {
 public:
  explicit SpinLockGuard(SpinLock& lock) noexcept WHYCACHE_ACQUIRE(lock) : lock_(lock) {
    lock.lock();
  }
  SpinLockGuard(const SpinLockGuard&) = delete;
  SpinLockGuard& operator=(const SpinLockGuard&) = delete;
  ~SpinLockGuard() WHYCACHE_RELEASE() { lock_.unlock(); }

 private:
  SpinLock& lock_;
};

}  // namespace whycache
