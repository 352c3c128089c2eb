// The StateWriter of a state file in its place.
#pragma once

#include <memory>

#include "state/file/lock_file.h"
#include "state/file/mapping.h"
#include "state/file/state_lock.h"
#include "state/write/state_writer.h"
#include "state/write/writable_mapping_cache.h"

namespace whycache {

// The caller hands over the writer lock; the file at options.path is the state, and the one that
// `present` maps.
std::unique_ptr<StateWriter> open_writer(HeldLock writer_lock, const StateOptions& options,
                                         LockFile& locks, const Mapping& present,
                                         WritableMappingCache& kept, MappingPolicy after);

}  // namespace whycache
