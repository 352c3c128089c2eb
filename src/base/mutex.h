// A mutex and its lock, annotated for Clang's thread-safety analysis: a clang build fails where a
// member marked WHYCACHE_GUARDED_BY is used without its mutex. Other compilers ignore the marks.
// https://clang.llvm.org/docs/ThreadSafetyAnalysis.html
#pragma once

#include <condition_variable>
#include <mutex>
#include <new>

#if defined(__clang__)
#define WHYCACHE_THREAD_ANNOTATION(attribute) __attribute__((attribute))
#else
#define WHYCACHE_THREAD_ANNOTATION(attribute)
#endif

// A member that may only be used while the mutex is held; the same for the target of a pointer.
#define WHYCACHE_GUARDED_BY(mutex) WHYCACHE_THREAD_ANNOTATION(guarded_by(mutex))
#define WHYCACHE_POINTEE_GUARDED_BY(mutex) WHYCACHE_THREAD_ANNOTATION(pt_guarded_by(mutex))
// A function whose caller must hold the mutex; must not hold it.
#define WHYCACHE_REQUIRES(...) WHYCACHE_THREAD_ANNOTATION(requires_capability(__VA_ARGS__))
#define WHYCACHE_EXCLUDES(...) WHYCACHE_THREAD_ANNOTATION(locks_excluded(__VA_ARGS__))
// A function that locks the mutex and keeps it locked; unlocks it.
#define WHYCACHE_ACQUIRE(...) WHYCACHE_THREAD_ANNOTATION(acquire_capability(__VA_ARGS__))
#define WHYCACHE_RELEASE(...) WHYCACHE_THREAD_ANNOTATION(release_capability(__VA_ARGS__))
#define WHYCACHE_TRY_ACQUIRE(...) WHYCACHE_THREAD_ANNOTATION(try_acquire_capability(__VA_ARGS__))
// A function that the analysis cannot follow. A comment beside it says why it is correct.
#define WHYCACHE_NO_THREAD_SAFETY_ANALYSIS WHYCACHE_THREAD_ANNOTATION(no_thread_safety_analysis)

namespace whycache {

// For a forked child: makes it destructible. Its destructor would wait without end for threads of
// the parent that waited for `changed` during the fork.
inline void forget_waiters_of_parent(std::condition_variable& changed) noexcept {
  new (&changed) std::condition_variable;
}

// A std::mutex with annotations. In a forked child it is still locked if another thread of the
// parent held it. Either a fork handler (base/fork_handlers.h) locks it around the fork or
// constructs it again, or the child never uses it (abandon_parent_context() in client/cache.cc).
class WHYCACHE_THREAD_ANNOTATION(capability("mutex")) Mutex {
 public:
  void lock() WHYCACHE_ACQUIRE() { mutex_.lock(); }
  void unlock() WHYCACHE_RELEASE() { mutex_.unlock(); }
  bool try_lock() WHYCACHE_TRY_ACQUIRE(true) { return mutex_.try_lock(); }

 private:
  friend class MutexLock;
  std::mutex mutex_;
};

// Holds a Mutex until the end of its scope, or until unlock().
class WHYCACHE_THREAD_ANNOTATION(scoped_lockable) MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) WHYCACHE_ACQUIRE(mutex) : lock_(mutex.mutex_) {}
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;
  ~MutexLock() WHYCACHE_RELEASE() = default;

  void lock() WHYCACHE_ACQUIRE() { lock_.lock(); }
  void unlock() WHYCACHE_RELEASE() { lock_.unlock(); }
  // Returns the lock for std::condition_variable::wait(), which returns with the mutex held again.
  // The analysis need not know that the mutex was released in between.
  std::unique_lock<std::mutex>& native() { return lock_; }

 private:
  std::unique_lock<std::mutex> lock_;
};

}  // namespace whycache
