// The lock file beside the state file: the only thing readers may write.
//
//   page 0      header: magic, number of slots, how fresh the state is
//   then        one row of 64 bytes per process that holds views
//   then        one reader slot of 64 bytes per view
//
// Whose a slot is says its owner word: a process row and how often that row was taken. That the
// owner is alive is said by an OFD lock on a byte of this file that stands for the row: the kernel
// drops it when the process ends, in whatever way and PID namespace. Who finds a row unlocked may
// take its lock, empty the slots it owned, and let go.
//
// Bytes 0..15 are the StateLocks, and the gate to one of them (lock_queue.h); they lie in the same
// file, but the locks have nothing to do with its contents.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include <whycache/types.h>

#include "base/file.h"
#include "base/fork_handlers.h"

namespace whycache {

// The named locks of a machine's state. Threads and processes queue alike.
enum class StateLock : std::uint8_t {
  writer = 0,  // may change the state file
  follow = 1,  // asks the log what is new
  append = 2,  // appends to the log
  install = 3  // makes or replaces the state file
};

inline constexpr std::size_t lock_byte_count = 16;

struct LockFileHeader {
  char magic[8];             // "whylock1"
  std::uint32_t slot_count;  // as many process rows
  std::uint32_t reserved;
  // The log was asked at asked_at_ns for the state with state_id; 0: not in this boot. Written
  // under StateLock::follow: 0 first, then the rest, asked_at_ns last (release; acquired by
  // readers).
  alignas(64) std::atomic<std::int64_t> last_poll_time_ns;
  std::atomic<std::uint64_t> polled_state_id;
  std::atomic<std::uint64_t> known_head;
  std::atomic<std::uint64_t> boot;  // of the kernel in which asked_at_ns was read
  // The same of the log's store itself: asked_at_ns may be the word of what stands in front of it.
  // Written and read like it, after the others and just before it: who dies between has asked all
  // the same.
  std::atomic<std::int64_t> last_store_poll_time_ns;
  // Slots from here on were never used. Raised by who claims one (before it pins); the writer looks
  // no further.
  alignas(64) std::atomic<std::uint32_t> slots_end;
  // For each of the bytes 0..15: 1 if somebody may sleep until it is unlocked (futex,
  // lock_queue.h). A hint: 1 is stored by who waits (seq_cst), who then tries the lock once more
  // before he sleeps; 0 is put there by who has unlocked the byte (behind a seq_cst fence), who
  // then wakes one: either he sees the 1, or the other gets the lock. Who dies before he wakes
  // anybody leaves those who sleep to wake up by themselves, within a millisecond; who dies asleep
  // costs others one wake-up for nobody.
  alignas(64) std::atomic<std::uint32_t> waiters[lock_byte_count];
};
inline constexpr char lock_file_magic[8] = {'w', 'h', 'y', 'l', 'o', 'c', 'k', '1'};

struct ProcessRow {
  std::atomic<std::uint64_t> claim_count;  // by who holds the row's lock
  std::uint64_t process_id;                // for display
  char process_name[48];
};
static_assert(sizeof(ProcessRow) == 64);

struct alignas(64) ReaderSlot {
  std::atomic<std::uint64_t>
      owner;  // (row + 1) << 32 | low bits of times_taken; 0: free. Claimed by compare-and-swap.
  std::atomic<std::uint64_t> state_id;  // of the file the pin is on; owner only, before pinned_id
  std::atomic<std::uint64_t>
      pinned_id;  // 1 + update id; 0: nothing. Owner only: stored, seq_cst fence, then the horizon
                  // is looked at; the writer stores the horizon, fences, then looks here.
};
static_assert(sizeof(ReaderSlot) == 64);

struct ReaderSlotInfo {
  std::uint32_t slot = 0;
  std::uint64_t process_id = 0;  // as seen in its own PID namespace; for display only
  std::string process_name;
  bool alive = false;
  UpdateId pinned_id = 0;
};

// One process's opening of the lock file (one per State). Safe from any number of threads.
class LockFile final : public ForkHandler {
 public:
  // Opens or makes the file at `path`. The caller makes sure that one process at a time makes it
  // (it is put in place whole).
  LockFile(std::string path, std::uint32_t mode, std::uint32_t slot_count);
  ~LockFile();
  LockFile(const LockFile&) = delete;
  LockFile& operator=(const LockFile&) = delete;

  const std::string& path() const { return path_; }
  int descriptor() const { return file_.number(); }
  LockFileHeader& header() const { return *header_; }
  std::uint32_t slot_count() const { return slot_count_; }

  // Throws Error corrupt if the file at the path is no longer this one: its locks would be between
  // us alone.
  void check_in_place() const;

  // A slot of this process's, nothing pinned. Throws Error limit, naming who holds them, when there
  // is none.
  ReaderSlot* claim_slot();
  void release_slot(ReaderSlot* slot) noexcept;

  // The least id pinned on file `state_id`, below `below`; `below` if none. Sweeps dead owners of
  // what stands in the way.
  UpdateId find_oldest_pinned_id(std::uint64_t state_id, UpdateId below);

  // For tools.
  std::vector<ReaderSlotInfo> slots_taken();
  std::vector<ReaderSlotInfo> processes();

 private:
  // See ForkListener; a LockFile lives as long as any view, so it may outlive its State. In a
  // child: a file of its own, and none of the parent's slots. If it cannot be opened again, every
  // lock is an Error.
  void before_fork() noexcept override { mutex_.lock(); }
  void after_fork_in_parent() noexcept override { mutex_.unlock(); }
  void after_fork_in_child() noexcept override;

  void map(std::uint32_t mode);
  void release() noexcept;
  void claim_row();
  bool is_row_alive(std::uint32_t number);
  // Frees the slots of the row's dead owner. False if it lives.
  bool reclaim_dead_row(std::uint32_t number);
  ProcessRow& row(std::uint32_t number) const { return rows_[number]; }
  std::string describe_holders();

  std::string path_;
  FileDescriptor file_;
  std::byte* mapped_ = nullptr;
  std::size_t mapped_bytes_ = 0;
  LockFileHeader* header_ = nullptr;
  ProcessRow* rows_ = nullptr;
  ReaderSlot* slots_ = nullptr;
  std::uint32_t slot_count_ = 0;

  std::mutex mutex_;  // of all below, and of sweeping
  std::optional<std::uint32_t> own_row_;
  std::uint64_t owner_word_ = 0;
  std::vector<ReaderSlot*> spare_slots_;  // owned, nothing pinned
};

}  // namespace whycache
