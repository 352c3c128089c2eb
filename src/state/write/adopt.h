// Adopting a state file from elsewhere: a copy, or a file of another boot
// (docs/decisions/verify-foreign-files.md).
#pragma once

#include "state/file/state_file.h"

namespace whycache {

// Opens the file at options.path for reading. If it came from elsewhere, verifies all of it,
// rebuilds its allocator state, and rewrites its header with this boot and inode. The caller holds
// StateLock::install and StateLock::writer. Other processes may use the file, if for them it is of
// this place and boot: then it is not adopted, and must be replaced. Throws Error(invalid) and
// Error(corrupt) as open_state_file() does.
StateFileResult open_or_adopt_state_file(const StateOptions& options);

}  // namespace whycache
