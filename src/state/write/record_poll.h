// Recording in the state file when the log was polled (file/poll_record.h).
#pragma once

#include <cstdint>

#include <whycache/types.h>

#include "state/file/lock_file.h"
#include "state/file/mapping.h"

namespace whycache {

// Records an answer of the log in the file that `mapping` maps. The caller holds StateLock::follow.
// Does nothing if this process cannot write to the file, or another one is at its path.
//
// Writes by pwrite(2), which costs some microseconds. A follower thus never maps the file writable,
// where a stray write of the application could meet it, and a full disk is an error here and not a
// signal.
void record_poll(const Mapping& mapping, const LockFile& locks, std::int64_t at_ns, UpdateId head,
                 bool by_store) noexcept;
// Records the head alone, which the log has named although not all of it could be applied.
void record_known_head(const Mapping& mapping, const LockFile& locks, UpdateId head) noexcept;

}  // namespace whycache
