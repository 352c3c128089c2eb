// The lock file beside the state file: the only file that readers write.
//
//   page 0      LockFileHeader
//   then        one ProcessRow of 64 bytes per process that holds views
//   then        one ReaderSlot of 64 bytes per view
//
// A slot's owner word names a process row, and how often that row had been claimed. A process holds
// an OFD lock on the byte of this file that represents its row. The kernel drops the lock however
// the process ends, in any PID namespace. A process that finds a row unlocked may take its lock,
// free the slots that the dead process owned, and release the lock
// (docs/decisions/liveness-by-lock.md).
//
// Bytes 0 to 15 are the StateLocks and the gate to one of them (lock_queue.h). They share the file,
// but protect none of its contents.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <whycache/inspection.h>
#include <whycache/types.h>

#include "base/file.h"
#include "base/fork_handlers.h"
#include "base/mutex.h"

namespace whycache {

// The named locks of a machine's state. Threads and processes queue alike.
enum class StateLock : std::uint8_t {
  writer = 0,  // may change the state file
  follow = 1,  // asks the log what is new
  append = 2,  // appends to the log
  install = 3  // creates or replaces the state file
};

inline constexpr std::size_t lock_byte_count = 16;

struct LockFileHeader {
  char magic[8];             // "whylock1"
  std::uint32_t slot_count;  // as many process rows
  std::uint32_t reserved;
  // The times of polls in earlier versions (poll_record.h). Nothing reads or writes them.
  alignas(64) std::uint64_t reserved_times[8];
  // No slot from this number on was ever pinned, so the writer scans no further. Relaxed: a thread
  // that pins has raised it, has loaded a value that covers its slot, or got a spare slot from such
  // a thread (LockFile::mutex_). Each happens before the fence between its pin and the horizon
  // (ReaderSlot::pinned_id), which pairs with the writer's.
  alignas(64) std::atomic<std::uint32_t> slots_end;
  // For each of the bytes 0 to 15: 1 if a process may be asleep until it is unlocked (a futex,
  // lock_queue.h). A waiter stores 1 (seq_cst), tries the lock once more, and sleeps. The process
  // that unlocks the byte stores 0 behind a seq_cst fence, and wakes one waiter if it replaced a 1.
  // Either it sees the 1, or the waiter gets the lock. If it dies before it wakes anybody, waiters
  // time out within a millisecond. If a waiter dies asleep, the only cost is one wasted wake-up.
  alignas(64) std::atomic<std::uint32_t> waiters[lock_byte_count];
};
inline constexpr char lock_file_magic[8] = {'w', 'h', 'y', 'l', 'o', 'c', 'k', '1'};

// Written by the process that holds the row's lock.
struct ProcessRow {
  // Relaxed: only the holder of the row's lock changes it; others compare it with 0.
  std::atomic<std::uint64_t> claim_count;
  // For display only.
  std::uint64_t process_id;
  char process_name[48];
};
static_assert(sizeof(ProcessRow) == 64);

struct alignas(64) ReaderSlot {
  // (row + 1) << 32 | low bits of the row's claim_count; 0: free. A process claims the slot by
  // compare-and-swap (acq_rel) and frees it by storing 0 (release): the next owner sees that
  // nothing is pinned.
  std::atomic<std::uint64_t> owner;
  // The file that is pinned. Stored by the owner before pinned_id (release), acquired by the
  // writer after it.
  std::atomic<std::uint64_t> state_id;
  // 1 + update id; 0: nothing is pinned. The owner stores it (release), executes a seq_cst fence,
  // and loads the reclaim horizon. The writer stores the horizon, executes a seq_cst fence, and
  // loads this (acquire). Either the writer sees the pin, or the owner sees the horizon.
  std::atomic<std::uint64_t> pinned_id;
};
static_assert(sizeof(ReaderSlot) == 64);

// What a lock file shows to tools.
struct LockFileInfo {
  std::uint32_t slot_count = 0;
  std::vector<ReaderSlotInfo> slots_taken;
  std::vector<ReaderSlotInfo> processes;  // slot = process row
};

// Reads the lock file at `path` and changes nothing. Returns nullopt if there is none, if this
// process must not read it, or if it is not a lock file.
std::optional<LockFileInfo> read_lock_file(const std::string& path);

// One process's opening of the lock file, one per State. Safe to use from any number of threads.
class LockFile final : public ForkHandler {
 public:
  // Opens the file at `path`, and creates it first if it is missing. Throws Error(invalid) if
  // slot_count is out of range or the file belongs to another user, Error(corrupt) if it is not a
  // lock file.
  LockFile(std::string path, std::uint32_t mode, std::uint32_t slot_count);
  ~LockFile();
  LockFile(const LockFile&) = delete;
  LockFile& operator=(const LockFile&) = delete;

  const std::string& path() const { return path_; }
  int descriptor() const { return file_.number(); }
  LockFileHeader& header() const { return *header_; }
  std::uint32_t slot_count() const { return slot_count_; }

  // Throws Error(corrupt) if another file is at the path: processes that open that one would not
  // see the locks of this one.
  void check_in_place() const;

  // Returns a slot owned by this process, with nothing pinned. Throws Error(limit) if all slots are
  // taken, naming their holders.
  ReaderSlot* claim_slot();
  void release_slot(ReaderSlot* slot) noexcept;

  // Returns the oldest id pinned on the file `state_id`, or `below` if none is older. Frees the
  // slots of dead processes that pin such an id. The caller has executed a seq_cst fence after its
  // last store of the reclaim horizon.
  UpdateId find_oldest_pinned_id(std::uint64_t state_id, UpdateId below);

  // For tools.
  std::vector<ReaderSlotInfo> slots_taken();
  std::vector<ReaderSlotInfo> processes();

 private:
  // A LockFile lives as long as any view, so it may outlive its State. A child opens the file
  // again, and owns none of the parent's slots. If it cannot be opened, every lock is an Error.
  void before_fork() noexcept WHYCACHE_ACQUIRE(mutex_) override { mutex_.lock(); }
  void after_fork_in_parent() noexcept WHYCACHE_RELEASE(mutex_) override { mutex_.unlock(); }
  void after_fork_in_child() noexcept WHYCACHE_RELEASE(mutex_) override;

  void map(std::uint32_t mode);
  void release() noexcept;
  void claim_row() WHYCACHE_REQUIRES(mutex_);
  // The caller holds the lock of the row, whose owner is dead.
  void free_slots_of(std::uint32_t row);
  bool is_row_alive(std::uint32_t row) const WHYCACHE_REQUIRES(mutex_);
  // Frees the slots of the row's dead owner. Returns false if the owner is alive.
  bool reclaim_dead_row(std::uint32_t row) WHYCACHE_REQUIRES(mutex_);
  std::string describe_holders() const;

  std::string path_;
  FileDescriptor file_;
  std::byte* mapped_ = nullptr;
  std::size_t mapped_bytes_ = 0;
  LockFileHeader* header_ = nullptr;
  ProcessRow* rows_ = nullptr;
  ReaderSlot* slots_ = nullptr;
  std::uint32_t slot_count_ = 0;

  // Held while rows are claimed and reclaimed, too: to the threads of one process, its own OFD
  // locks look free.
  Mutex mutex_;
  std::optional<std::uint32_t> own_row_ WHYCACHE_GUARDED_BY(mutex_);
  std::uint64_t owner_word_ WHYCACHE_GUARDED_BY(mutex_) = 0;
  // Owned by this process, with nothing pinned.
  std::vector<ReaderSlot*> spare_slots_ WHYCACHE_GUARDED_BY(mutex_);
};

}  // namespace whycache
