// Locks between processes: open-file-description (OFD) byte locks.
//
// The kernel drops a lock when the last descriptor of its open file is closed, however the process
// ends. Locks work across PID namespaces, and two opens of one file in one process exclude each
// other. A forked child shares the parent's open file, so it must close the descriptor that it
// inherited and open the file itself.
#pragma once

#include <cstdint>

namespace whycache {

// Takes an exclusive, or a shared, lock on byte `offset`. Returns false if another open file holds
// a lock that conflicts. Throws Error if the file cannot be locked at all.
bool try_lock_byte(int descriptor, std::uint64_t offset);
bool try_lock_byte_shared(int descriptor, std::uint64_t offset);
void unlock_byte(int descriptor, std::uint64_t offset) noexcept;
// Whether another open file holds a lock on byte `offset`, shared or exclusive.
bool is_byte_locked(int descriptor, std::uint64_t offset);

}  // namespace whycache
