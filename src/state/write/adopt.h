// Adopting a state file from elsewhere: a copy, or a file of another boot
// (docs/decisions/verify-foreign-files.md).
#pragma once

#include <optional>
#include <string>

#include "state/file/mapping.h"
#include "state/file/state_file.h"

namespace whycache {

// Opens the file at options.path for reading. If it came from elsewhere, verifies all of it,
// rebuilds its allocator state, and rewrites its header with this boot and inode. The caller holds
// StateLock::install and StateLock::writer. Other processes may use the file, if for them it is of
// this place and boot: then it is not adopted, and must be replaced. Processes that only read it
// (use_locks.h) continue; those that still verify it are waited for, for half of the time. Throws
// Error(invalid) and Error(corrupt) as open_state_file() does.
StateFileResult open_or_adopt_state_file(const StateOptions& options, const Deadline& deadline);

// Verifies a file of this place and boot that another program has changed (file/state_change.h),
// and rebuilds its allocator state. Returns the fault if it does not verify, in which case no
// process uses it any more; an empty string if it does; nullopt if this process cannot tell, since
// it may not write to the file for example. The caller holds StateLock::install and
// StateLock::writer.
std::optional<std::string> verify_changed_state_file(const StateOptions& options,
                                                     const Mapping& changed);

}  // namespace whycache
