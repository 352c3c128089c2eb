// A mutex and its lock, annotated for Clang's thread-safety analysis: a clang build fails where a
// member marked WHYCACHE_GUARDED_BY is used without its mutex. Other compilers ignore the marks.
// https://clang.llvm.org/docs/ThreadSafetyAnalysis.html
#pragma once

#include <mutex>

#if defined(__clang__)
#define WHYCACHE_THREAD_ANNOTATION(attribute) __attribute__((attribute))
#else
#define WHYCACHE_THREAD_ANNOTATION(attribute)
#endif

// A member that may only be used while the mutex is held; what a pointer member points to.
#define WHYCACHE_GUARDED_BY(mutex) WHYCACHE_THREAD_ANNOTATION(guarded_by(mutex))
#define WHYCACHE_POINTEE_GUARDED_BY(mutex) WHYCACHE_THREAD_ANNOTATION(pt_guarded_by(mutex))
// A function whose caller holds the mutex; does not hold it.
#define WHYCACHE_REQUIRES(...) WHYCACHE_THREAD_ANNOTATION(requires_capability(__VA_ARGS__))
#define WHYCACHE_EXCLUDES(...) WHYCACHE_THREAD_ANNOTATION(locks_excluded(__VA_ARGS__))
// A function that takes the mutex and keeps it; releases it.
#define WHYCACHE_ACQUIRE(...) WHYCACHE_THREAD_ANNOTATION(acquire_capability(__VA_ARGS__))
#define WHYCACHE_RELEASE(...) WHYCACHE_THREAD_ANNOTATION(release_capability(__VA_ARGS__))
#define WHYCACHE_TRY_ACQUIRE(...) WHYCACHE_THREAD_ANNOTATION(try_acquire_capability(__VA_ARGS__))
// A function the analysis cannot follow. A comment beside it says why it is correct.
#define WHYCACHE_NO_THREAD_SAFETY_ANALYSIS WHYCACHE_THREAD_ANNOTATION(no_thread_safety_analysis)

namespace whycache {

// std::mutex. Not recursive. Like it, a copy in a forked child is held if another thread of the
// parent held it: fork handlers (base/fork_handlers.h) lock it, or construct it again.
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
  // What std::condition_variable::wait() takes. It returns with the mutex held, so the analysis
  // need not know that it was released in between.
  std::unique_lock<std::mutex>& native() { return lock_; }

 private:
  std::unique_lock<std::mutex> lock_;
};

}  // namespace whycache
