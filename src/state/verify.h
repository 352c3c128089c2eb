// Verifying every structure of a state file, trusting none of it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "state/file/mapping.h"

namespace whycache {

// Returns the faults of the file, up to a limit; none if the file is whole. No process may write to
// it meanwhile. With `with_allocator_state`, also compares the segment descriptors with what the
// indexes reach; adopting a file rebuilds them instead. Calls `progress(done, total)` now and then;
// it may be empty.
std::vector<std::string> verify(const Mapping& mapping, bool with_allocator_state,
                                const std::function<void(std::uint64_t, std::uint64_t)>& progress);

}  // namespace whycache
