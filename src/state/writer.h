// The StateWriter of a state file in its place.
#pragma once

#include <memory>

#include "state/lock_file.h"
#include "state/state.h"

namespace whycache {

// The caller hands over the writer lock; the file at options.path is the state.
std::unique_ptr<StateWriter> open_writer(HeldLock writer_lock, const StateOptions& options, LockFile& locks);

}  // namespace whycache
