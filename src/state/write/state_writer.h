// The writing side of a state, as its users see it.
#pragma once

#include <cstdint>

#include "state/file/state_info.h"
#include "update/update.h"

namespace whycache {

// Carries updates into the state. Exists only while this process holds the writer lock, without
// which nobody writes to the file. If an exception leaves apply(), what was half done stays
// invisible, and the next writer takes it back.
class StateWriter {
 public:
  virtual ~StateWriter() = default;

  virtual StateInfo info() const = 0;
  // Applies update applied_id + 1, whole or not at all. Throws Error limit (state_bytes_max, disk
  // full), corrupt.
  virtual void apply(const Update& update) = 0;
  // Whether taking the lock found that the last writer had died midway, which is mended by now.
  virtual bool recovered() const = 0;
};

// What becomes of the writable mapping. `keep_for_a_while`: if this process wrote just before, too,
// it stays for the next write (writable_mapping_cache.h).
enum class MappingPolicy : std::uint8_t { unmap, cache };

}  // namespace whycache
