// Who uses a state file: shared locks of the kernel on bytes of the file itself, far beyond its
// end.
//
//   2^60 ..          in use     each process that maps a file of its own boot and place
//   2^60 - 1         trusted    each process that uses the file and may write to it
//   2^61 ..          pinned     each process that holds views: update id << 22 | process id
//   2^62 ..          verifying  each process that verifies a file from elsewhere for itself
//   2^62 + 2^60 ..   reading    each process that has verified such a file, and maps it
//
// The byte of the first and the last two is a random number << 22 | process id. A file in use is
// not adopted: for its users, it is one of their own boot, and they may write to it. Processes that
// only read it are no obstacle, because adopting changes nothing that a view or a read needs, just
// as recovery does not.
//
// Only read access to the file is needed to hold them, and the kernel drops them however a process
// ends. They are tied to the inode, so nothing that happens to a path can separate them from the
// file. A process that may only read can hold no lock that keeps others from taking theirs: these
// are shared, and the exclusive ones of adoption need write access. A lock says only what its own
// holder claims (docs/decisions/pins-are-locks.md).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <whycache/inspection.h>
#include <whycache/types.h>

#include "base/clock.h"

namespace whycache {

// Returns the name of the process with this id, as this process sees it; empty if there is none.
std::string process_name(std::uint64_t id);

// Returns the byte that a process locks to pin an update. Update ids have 39 bits (EntryWord),
// process ids 22 (the kernel's limit).
std::uint64_t pin_byte(UpdateId id, std::uint64_t process_id) noexcept;

// Marks the file as in use by this process, for as long as the open file of `descriptor` exists: a
// mapping made from it counts, in forked children, too. Returns false if a process is adopting the
// file. Throws Error if the file system has no such locks.
bool mark_in_use(int descriptor);
// Takes back what mark_in_use() did.
void unmark_in_use(int descriptor) noexcept;
// The same for a process that verifies the file for itself. Returns false if a process is adopting
// the file. No process adopts it while the mark is there.
bool mark_verifying(int descriptor);
void unmark_verifying(int descriptor) noexcept;
// Marks the file as read by this process, which has verified it. Others may adopt it meanwhile.
void mark_reading(int descriptor);
// Whether another process than this one has marked the file as in use, or as read.
bool is_in_use_by_others(int descriptor);
// Marks the file, which is unchanged, verified or new, as trusted by this process, for as long as
// the open file exists. The process has access to the lock file, as readers have not.
void mark_trusted(int descriptor);
// Whether the file is marked as trusted through another open file.
bool is_trusted_elsewhere(int descriptor);

enum class Exclusion : std::uint8_t { complete, in_use, being_verified };
// Keeps all others from marking the file as in use, and from verifying it, for as long as the open
// file exists. Needs write access. Waits for those that verify it. Returns what kept it from doing
// so; then it has done nothing.
Exclusion exclude_users(int descriptor, const Deadline& deadline);
// Ends what exclude_users() did.
void admit_users(int descriptor) noexcept;

// Returns the oldest id that another open file has pinned, or `below` if none is older. The caller
// has executed a seq_cst fence after its last store of the reclaim horizon. One system call if
// there is none, a few more per process that holds one.
UpdateId find_oldest_pinned_id(int descriptor, UpdateId below);
// Returns the process that has pinned the oldest id, or nullopt if nothing is pinned.
std::optional<ProcessInfo> find_oldest_pin(int descriptor);

// Returns the processes that use the file, with what they have pinned, in no order.
std::vector<ProcessInfo> find_processes(int descriptor);

}  // namespace whycache
