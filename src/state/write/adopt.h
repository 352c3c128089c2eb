// Adopting a state file from elsewhere: a copy, or one from another boot.
#pragma once

#include "state/file/lock_file.h"
#include "state/file/state_file.h"

namespace whycache {

// Opens the file at options.path for reading. A file from elsewhere is verified as a whole, its
// allocator state is rebuilt, and its header is rewritten: from then on it belongs to this boot.
// The caller holds StateLock::install and StateLock::writer. Throws Error(invalid) and
// Error(corrupt) as open_state_file() does.
StateFileResult open_or_adopt_state_file(const StateOptions& options, LockFile& locks);

}  // namespace whycache
