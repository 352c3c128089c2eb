// Verifying every structure of a state file, believing none of it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "state/file/mapping.h"

namespace whycache {

// What is wrong with the file, empty if nothing is; gives up after the first few faults. Nobody may
// be writing. With `books`, the allocator's descriptors are compared as well (a file that came from
// elsewhere has them made anew instead).
std::vector<std::string> verify(const Mapping& mapping, bool books,
                                const std::function<void(std::uint64_t, std::uint64_t)>& progress);

}  // namespace whycache
