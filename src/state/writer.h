// The StateWriter of a state file in its place.
#pragma once

#include <memory>

#include "state/kept_mapping.h"
#include "state/lock_file.h"
#include "state/mapping.h"
#include "state/state.h"

namespace whycache {

// The caller hands over the writer lock; the file at options.path is the state, and the one that `present` maps.
std::unique_ptr<StateWriter> open_writer(HeldLock writer_lock, const StateOptions& options, LockFile& locks,
                                         const Mapping& present, KeptMapping& kept, AfterWriting after);

}  // namespace whycache
