#include "state/file/state_lock.h"

#include <utility>

#include "base/fork_handlers.h"
#include "state/file/lock_queue.h"

namespace whycache {

HeldLock::HeldLock(const LockFile& file, StateLock lock,
                   std::unique_lock<std::timed_mutex> thread_lock)
    : file_(&file), lock_(lock), thread_lock_(std::move(thread_lock)), fork_count_(fork_count()) {}

HeldLock::HeldLock(HeldLock&& other) noexcept
    : file_(std::exchange(other.file_, nullptr)),
      lock_(other.lock_),
      thread_lock_(std::move(other.thread_lock_)),
      fork_count_(other.fork_count_) {}

void HeldLock::release() noexcept {
  if (file_ == nullptr) return;
  if (fork_count_ == fork_count()) {
    release_lock(*file_, lock_);
    thread_lock_.unlock();
  } else {
    thread_lock_
        .release();  // the mutex was locked by the parent, and constructed again in this child
  }
  file_ = nullptr;
}

}  // namespace whycache
