// What all logs refuse alike, in the same words.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <whycache/error.h>
#include <whycache/types.h>

namespace whycache {

// Beyond this no log goes: databases have signed integers.
inline constexpr UpdateId update_id_max = (UpdateId{1} << 63) - 1;

// Throws Error invalid unless `bytes` can be an update and `id` its place.
inline void check_update(UpdateId id, std::string_view bytes) {
  if (id == 0 || id > update_id_max) {
    throw Error(ErrorKind::invalid, "update id is not between 1 and 2^63 - 1: id=" + std::to_string(id));
  }
  if (bytes.empty()) throw Error(ErrorKind::invalid, "update is empty: id=" + std::to_string(id));
}

inline Error rewrite_beyond_head(UpdateId base, UpdateId head) {
  return Error(ErrorKind::invalid, "cannot rewrite history beyond the head of the log: base=" + std::to_string(base) +
                                       " head=" + std::to_string(head));
}

inline Error base_was_replaced(const std::string& log) {
  return Error(ErrorKind::unavailable, "base was replaced while it was read (read it again): log=" + log);
}

// The store answers, but the log that was opened is not in it any more.
inline Error log_is_gone(const std::string& log) {
  return Error(ErrorKind::unavailable,
               "log is gone, somebody deleted it (opening it again makes a new, empty one): log=" + log);
}

inline Error update_is_missing(const std::string& log, UpdateId id, UpdateId head) {
  return Error(ErrorKind::corrupt, "update is missing in the log: log=" + log + " id=" + std::to_string(id) +
                                       " head=" + std::to_string(head) + " (restore the log from a backup)");
}

}  // namespace whycache
