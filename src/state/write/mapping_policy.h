// The choice that a caller of State::begin_write() makes about the mapping.
#pragma once

#include <cstdint>

namespace whycache {

// unmap: the destructor of the writer unmaps the file. cache: it keeps the mapping for the next
// write if this process also wrote shortly before (writable_mapping_cache.h).
enum class MappingPolicy : std::uint8_t { unmap, cache };

}  // namespace whycache
