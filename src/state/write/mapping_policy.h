// The choice that a caller of State::begin_write() makes about the mapping.
#pragma once

#include <cstdint>

namespace whycache {

// What happens to a writer's mapping when the writer is destroyed. `cache`: if this process also
// wrote shortly before, the mapping is kept for the next write (writable_mapping_cache.h).
enum class MappingPolicy : std::uint8_t { unmap, cache };

}  // namespace whycache
