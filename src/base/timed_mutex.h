// A mutex for calls that may take long, whose waiters give up at their deadlines.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <utility>

#include "base/clock.h"
#include "base/fork_handlers.h"
#include "base/mutex.h"

namespace whycache {

// Not a std::timed_mutex, whose waits not all thread sanitizers know, and which no request to stop
// can end. A forked child may only destroy a TimedMutex of its parent, whatever threads of the
// parent held it or waited for it during the fork.
class WHYCACHE_THREAD_ANNOTATION(capability("mutex")) TimedMutex {
 public:
  TimedMutex() = default;
  TimedMutex(const TimedMutex&) = delete;
  TimedMutex& operator=(const TimedMutex&) = delete;
  ~TimedMutex() {
    if (fork_count() != owner_fork_count_) forget_waiters_of_parent(released_);
  }

  void lock() WHYCACHE_ACQUIRE() {
    MutexLock lock(mutex_);
    while (is_locked_) released_.wait(lock.native());
    is_locked_ = true;
  }
  bool try_lock() WHYCACHE_TRY_ACQUIRE(true) {
    const MutexLock lock(mutex_);
    return !std::exchange(is_locked_, true);
  }
  // Returns false if the deadline passes first.
  bool try_lock_until(const Deadline& deadline) WHYCACHE_TRY_ACQUIRE(true) {
    MutexLock lock(mutex_);
    // The mutex is held while it runs.
    const auto is_free = [&]() WHYCACHE_NO_THREAD_SAFETY_ANALYSIS { return !is_locked_; };
    if (!deadline.wait(lock.native(), released_, is_free)) return false;
    is_locked_ = true;
    return true;
  }
  void unlock() WHYCACHE_RELEASE() {
    {
      const MutexLock lock(mutex_);
      is_locked_ = false;
    }
    released_.notify_one();
  }

 private:
  // fork_count() of the process whose threads may wait.
  const std::uint64_t owner_fork_count_ = fork_count();
  Mutex mutex_;
  std::condition_variable released_;
  bool is_locked_ WHYCACHE_GUARDED_BY(mutex_) = false;
};

}  // namespace whycache
