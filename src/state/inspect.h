// Inspection of a state file, for tools: its header, its segments, the sizes of its indexes.
#pragma once

#include <whycache/inspection.h>

namespace whycache {

class Mapping;

// Counts what the mapped file holds, and finds the processes that use it. Throws Error(corrupt).
StateInspection inspect_state_file(const Mapping& mapping);

// Inspects the file at `path`. Changes nothing, not even a file that came from elsewhere, and needs
// no permission to write. Other processes may write to the state meanwhile. Throws Error(invalid)
// if there is no file or it must not be read, Error(corrupt) if it is not a state of this format or
// is damaged.
StateInspection inspect_unchanged(const std::string& path);

}  // namespace whycache
