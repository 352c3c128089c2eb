// Locks between processes: open-file-description (OFD) byte locks.
//
// The kernel drops them when the last descriptor of the open file goes, however the process ends;
// they work across PID namespaces, and two opens of one file in one process exclude each other. A
// forked child shares the parent's open file, so it has to close what it inherited and open the
// file itself.
#pragma once

#include <cstdint>

namespace whycache {

// Takes the exclusive lock on byte `offset` if nobody has it. Throws Error if the file cannot be
// locked at all.
bool try_lock_byte(int descriptor, std::uint64_t offset);
void unlock_byte(int descriptor, std::uint64_t offset) noexcept;
// Whether some other open file holds byte `offset`.
bool is_byte_locked(int descriptor, std::uint64_t offset);

}  // namespace whycache
