// Recovery after a writer that died, or whose update failed: rolls back the unfinished update, and
// rebuilds the allocator state.
//
// Such a writer leaves behind:
// - update n, published, with everything it needs: entries, index pages and key index, unchanged
// - index words that refer to complete entries of update n + 1
// - a directory in which the slots of one index page may be half replaced
// - an overflow tree, complete, of update n or n + 1, which may still have records of keys that
//   have moved to an index page
// - an allocator state in any condition, and segments that nothing refers to
//
// Recovery is the mark phase of a mark and sweep collector. It repairs the directory, points index
// words and overflow records back to the previous versions, and marks every segment that is still
// referred to. A view may hold an unmarked segment, so recovery retires it. Without any view it is
// reusable at once, so that an update that failed for lack of space does not keep what it
// allocated.
//
// A writer that dies during recovery leaves the same situation to the next one.
#pragma once

#include <cstdint>

#include "state/file/layout.h"
#include "state/write/allocator.h"
#include "state/write/point_index.h"

namespace whycache {

// The values of Header::writer_active, and so what the previous writer left behind.
enum class WriterMark : std::uint64_t {
  none = 0,    // it finished
  active = 1,  // it died, or is at work
  failed = 2   // its last update failed, for lack of room for example
};

// Marks the file as being written, before the first change of its contents. Returns the previous
// mark: unless it is `none`, the file needs recovery.
WriterMark mark_writer_active(Header& header);
// Removes the mark, after the last change.
void clear_writer_active(Header& header);
// Leaves the mark of a writer that lives, but whose update has to be rolled back.
void mark_writer_failed(Header& header);

// Returns the number of entries of the unfinished update that were rolled back. Throws
// Error(corrupt) if the file is damaged.
std::uint64_t recover(Allocator& allocator, PointIndex& index);

}  // namespace whycache
