// Locks between processes: open-file-description (OFD) byte locks.
//
// The kernel drops a lock when the last descriptor of its open file is closed, however the process
// ends. Locks work across PID namespaces, and two opens of one file in one process exclude each
// other. A forked child shares the parent's open file, so it must close the descriptor that it
// inherited and open the file itself.
#pragma once

#include <cstdint>
#include <optional>

namespace whycache {

// Takes an exclusive, or a shared, lock on byte `offset`. Returns false if another open file holds
// a lock that conflicts. Throws Error if the file cannot be locked at all.
bool try_lock_byte(int descriptor, std::uint64_t offset);
bool try_lock_byte_shared(int descriptor, std::uint64_t offset);
void unlock_byte(int descriptor, std::uint64_t offset) noexcept;
// Returns false if the descriptor is not open.
bool try_unlock_byte(int descriptor, std::uint64_t offset) noexcept;
// Whether another open file holds a lock on byte `offset`, shared or exclusive.
bool is_byte_locked(int descriptor, std::uint64_t offset);

// The bytes from `begin` up to `end`, which is beyond the last. A file need not have that many.
struct LockRange {
  std::uint64_t begin;
  std::uint64_t end;
};

// Takes an exclusive lock on all of them, as try_lock_byte().
bool try_lock_range(int descriptor, const LockRange& range);
void unlock_range(int descriptor, const LockRange& range) noexcept;
// Returns the part of the range on which another open file holds a lock, shared or exclusive: any
// lock, if there are several; nullopt if there is none. One system call of some 0.3 us, more if
// many locks are held.
std::optional<LockRange> find_locked(int descriptor, const LockRange& range);

// Shows that no other process has a file open or mapped, by a write lease of the kernel. While this
// object lives, processes that open the file wait, up to /proc/sys/fs/lease-break-time.
class SoleUse {
 public:
  // `descriptor` is open for reading and writing. Does not wait.
  explicit SoleUse(int descriptor) noexcept;
  ~SoleUse();
  SoleUse(const SoleUse&) = delete;
  SoleUse& operator=(const SoleUse&) = delete;

  // False if there is another use, be it in this process; or if the kernel does not say, because
  // this user does not own the file, or the file system has no leases.
  explicit operator bool() const noexcept { return is_proven_; }

 private:
  int descriptor_;
  bool is_proven_;
};

}  // namespace whycache
