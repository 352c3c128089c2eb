// Holding one of the named locks of a machine's state.
#pragma once

#include <cstdint>
#include <mutex>

#include "state/file/lock_file.h"

namespace whycache {

// Holds one StateLock, for this thread and this process, until it is released or destroyed.
class HeldLock {
 public:
  // The caller has taken both: `thread_lock` and the lock's byte of `file`, which outlives this.
  HeldLock(const LockFile& file, StateLock lock, std::unique_lock<std::timed_mutex> thread_lock);
  HeldLock(HeldLock&& other) noexcept;
  HeldLock& operator=(HeldLock&&) = delete;
  ~HeldLock() { release(); }

  // The file of the lock. The lock is held.
  const LockFile& file() const { return *file_; }

  // Releases the lock before the end of the scope. Does nothing if it is released already.
  void release() noexcept;

 private:
  const LockFile* file_;
  StateLock lock_;
  std::unique_lock<std::timed_mutex> thread_lock_;
  std::uint64_t fork_count_;
};

}  // namespace whycache
