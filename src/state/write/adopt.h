// Adopting a state file from elsewhere: a copy, or a file of another boot
// (docs/decisions/verify-foreign-files.md).
#pragma once

#include "state/file/lock_file.h"
#include "state/file/state_file.h"

namespace whycache {

// Opens the file at options.path for reading. If it came from elsewhere, verifies all of it,
// rebuilds its allocator state, and rewrites its header with this boot and inode. The caller holds
// StateLock::install and StateLock::writer. Throws Error(invalid) and Error(corrupt) as
// open_state_file() does.
StateFileResult open_or_adopt_state_file(const StateOptions& options, LockFile& locks);

}  // namespace whycache
