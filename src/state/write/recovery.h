// Making the allocator's books anew from what the index and the key tree reach, and taking back an
// update that a dead writer left half applied.
//
// A writer that died leaves behind: a published update n with everything it needs (entries, parts,
// tree, untouched); index words that point to complete entries of update n + 1; a directory in
// which a part was half replaced; books in any state; and memory nobody reaches. So: set the
// directory right, point the words back to the versions before, and count what is reached. What is
// not reached may still be in a view's hands, and is retired; if there is no view, it can be used
// again at once, so that an update that failed for want of space does not keep what it took. All of
// it can be done again if this writer dies too.
#pragma once

#include <cstdint>

#include "state/write/allocator.h"
#include "state/write/point_index.h"

namespace whycache {

// Throws Error corrupt if the file is damaged. Returns how many entries of a half-applied update
// were taken back.
std::uint64_t recover(Allocator& arena, PointIndex& index);

}  // namespace whycache
