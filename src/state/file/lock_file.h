// The lock file beside the state file: the locks of those who write to the state.
//
// OFD locks on bytes 0 to 15 are the StateLocks and the gate to one of them (lock_queue.h). The
// kernel drops them however a process ends, in any PID namespace
// (docs/decisions/liveness-by-lock.md). The first page holds words on which waiters sleep.
//
// Processes that only read the state neither need the file nor may open it: who can open it can
// keep others from writing. What readers share is in use_locks.h.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "base/clock.h"
#include "base/file.h"
#include "base/fork_handlers.h"
#include "base/mutex.h"

namespace whycache {

// The named locks of a machine's state. Threads and processes queue alike.
enum class StateLock : std::uint8_t {
  writer = 0,   // may change the state file
  follow = 1,   // asks the log what is new
  append = 2,   // appends to the log
  install = 3,  // creates or replaces the state file
  // Polls the log again and again for this machine (client/follow_loop.h). Held for as long as the
  // process does; it takes the others as it needs them.
  follower = 4
};
inline constexpr std::size_t state_lock_count = 5;

inline constexpr std::size_t lock_byte_count = 16;

struct LockFileHeader {
  char magic[8];  // "whylock2"
  // See state_change.h. A process changes the file, executes a seq_cst fence, and loads this. The
  // process that stores this (seq_cst) executes one, and looks at the file's ctime once more.
  // Either the first one sees the new value, or the second one the change.
  std::atomic<std::uint64_t> last_own_change;
  // 1 if a process may be waiting for StateLock::append, or at its gate (lock_queue.h). A process
  // takes the lock without passing the gate only if this is 0, and no process seems to sleep until
  // either is unlocked. Waiters store 1 each time they try, and so does the process that unlocks it
  // and wakes one. The process that has passed the gate stores 0 once it has the lock or gives up.
  // If it dies before that, the next one that passes the gate does. Relaxed: a hint, which protects
  // nothing.
  std::atomic<std::uint32_t> append_is_awaited;
  std::uint32_t reserved[43];
  // For each of the bytes 0 to 15: 1 if a process may be asleep until it is unlocked (a futex,
  // lock_queue.h). A waiter stores 1 (seq_cst), tries the lock once more, and sleeps. The process
  // that unlocks the byte stores 0 behind a seq_cst fence, and wakes one waiter if it replaced a 1.
  // Either it sees the 1, or the waiter gets the lock. If it dies before it wakes anybody, waiters
  // time out within a millisecond. If a waiter dies asleep, the only cost is one wasted wake-up.
  alignas(64) std::atomic<std::uint32_t> waiters[lock_byte_count];
};
static_assert(offsetof(LockFileHeader, last_own_change) == 8);  // docs/formats/state.md
static_assert(offsetof(LockFileHeader, append_is_awaited) == 16);
static_assert(offsetof(LockFileHeader, waiters) == 192);
inline constexpr char lock_file_magic[8] = {'w', 'h', 'y', 'l', 'o', 'c', 'k', '2'};
// A new lock file has this behind its name, and a random token, until it is complete.
inline constexpr const char* new_lock_file_suffix = ".new-";

// One process's opening of the lock file, one per State. Safe to use from any number of threads.
class LockFile final : public ForkHandler {
 public:
  // Opens the file at `path`, and creates it first if it is missing, or is what a power cut left
  // of a new one. Replaces the lock file of an earlier version of the library, as soon as none of
  // its processes holds a lock: they then cannot write any more. Gives the file the stricter of its
  // own mode and `mode`, if this user owns it. Throws Error(invalid) if the file belongs to another
  // user or must not be opened, Error(corrupt) if it is not a lock file, Error(unavailable) if an
  // earlier version holds a lock until the deadline.
  LockFile(std::string path, std::uint32_t mode, FileOwner trusted, const Deadline& deadline);
  ~LockFile();
  LockFile(const LockFile&) = delete;
  LockFile& operator=(const LockFile&) = delete;

  const std::string& path() const { return path_; }
  int descriptor() const { return descriptor_.load(std::memory_order_acquire); }
  LockFileHeader& header() const { return *header_; }

  // Opens the file again if this process has lost its descriptor: a child that was forked while
  // none was free, or a process whose host has closed it. Call it before a lock is taken. Throws
  // Error if it cannot be opened, Error(corrupt) if another file is at the path.
  void ensure_open();
  // Throws Error(corrupt) if another file is at the path: processes that open that one would not
  // see the locks of this one.
  void check_in_place() const;

 private:
  // A child opens the file again. If it cannot be opened, ensure_open() tries it again.
  void after_fork_in_child() noexcept override;

  void open_or_create(std::uint32_t mode, const Deadline& deadline);
  void map(std::uint32_t mode, FileOwner trusted);
  void release() noexcept;
  void use(FileDescriptor file) noexcept;

  std::string path_;
  FileDescriptor file_;
  std::uint64_t device_ = 0;
  std::uint64_t inode_ = 0;
  LockFileHeader* header_ = nullptr;
  // Held while another file descriptor takes the place of `file_`.
  Mutex open_mutex_;
  // The number of `file_`, for threads that do not hold the mutex. Only use() stores it: with the
  // mutex held, or while no other thread has the object (constructor, destructor, a child's first
  // thread). descriptor() loads it; acquire pairs with that release: a thread that has the number
  // locks the file that was opened before.
  std::atomic<int> descriptor_{-1};
};

}  // namespace whycache
