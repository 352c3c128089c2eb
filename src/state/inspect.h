// Inspection of a state file, for tools: its header, its segments, the sizes of its indexes.
#pragma once

#include <whycache/inspection.h>

namespace whycache {

class Mapping;

// Counts what the mapped file holds. Leaves reader_slots, slots_taken and processes, which are in
// the lock file, to the caller. Throws Error(corrupt).
StateInspection inspect_state_file(const Mapping& mapping);

}  // namespace whycache
