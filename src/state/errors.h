// The error for a state file whose bytes are not what was written.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <whycache/error.h>

namespace whycache {

// `what` says what is wrong, with its values. The next step is always the same, since the state is
// a cache of the log.
inline Error corrupt_state(std::string_view what) {
  return Error(ErrorKind::corrupt, "state file damaged: " + std::string(what) +
                                       " (delete the state file; it is rebuilt from the log)");
}

// corrupt_state("no entry at offset", 4711) says "no entry at offset=4711".
inline Error corrupt_state(std::string_view what, std::uint64_t value) {
  return corrupt_state(std::string(what) + "=" + std::to_string(value));
}

// Another file has taken the place of the state, and `error` keeps this process from using it. The
// kind is always the same: nothing is wrong with the call, and retrying helps once the file can be
// used.
inline Error unusable_successor(const Error& error) {
  return Error(ErrorKind::unavailable,
               std::string("state was replaced, and this process cannot use the new file: ") +
                   error.what() +
                   (error.kind() == ErrorKind::invalid
                        ? " (give all processes that share it the same state_mode, and this one "
                          "permission to read and write it: docs/guide/sharing.md)"
                        : ""),
               error.system_error());
}

}  // namespace whycache
