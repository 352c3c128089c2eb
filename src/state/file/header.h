// Reading the header of a state file.
#pragma once

#include <string>

#include "state/file/layout.h"

namespace whycache {

// Returns whether a file begins with the magic of a state. Sets errno: 0 unless the file cannot be
// read. No message may advise deleting a file without the magic: it is not whycache's.
bool bears_state_magic(int descriptor);

// Returns why this library cannot read a state with this header; empty if it can.
std::string header_fault(const HeaderFixed& header);

// Whether the header is whole and of an older format: the file may be replaced without asking.
bool is_of_older_format(const HeaderFixed& header);

// Returns a consistent copy of the block of the newest update. Throws Error(corrupt).
PublishedBlock read_published(const Header& header);

// Returns the id of the file now. Another process changes it (relaxed) if it adopts a file that
// this one has verified for itself, and has mapped.
inline std::uint64_t state_id_of(const Header& header) noexcept {
  return __atomic_load_n(&header.fixed.state_id, __ATOMIC_RELAXED);
}

}  // namespace whycache
