// What the logs of this library share: a choice at opening, and checks with the same errors.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <whycache/error.h>
#include <whycache/types.h>

#include "update/update.h"

namespace whycache {

// Whether to create a log that does not exist, or to fail.
enum class IfMissing { create, fail };

// The greatest id in any log: databases have signed integers.
inline constexpr UpdateId update_id_max = (UpdateId{1} << 63) - 1;

// Throws Error invalid unless `bytes` can be an update and `id` its place.
inline void check_update(UpdateId id, std::string_view bytes) {
  if (id == 0 || id > update_id_max) {
    throw Error(ErrorKind::invalid,
                "update id is not between 1 and 2^63 - 1: id=" + std::to_string(id));
  }
  if (bytes.empty()) throw Error(ErrorKind::invalid, "update is empty: id=" + std::to_string(id));
}

inline Error rewrite_beyond_head_error(UpdateId base, UpdateId head) {
  return Error(ErrorKind::invalid, "cannot rewrite history beyond the head of the log: base=" +
                                       std::to_string(base) + " head=" + std::to_string(head));
}

inline Error base_replaced_error(const std::string& log) {
  return Error(ErrorKind::unavailable,
               "base was replaced while it was read (read it again): log=" + log);
}

// Before a base takes the place of what it stands for. `bytes`: the update at `base`, or its first
// peek_bytes. If it is a cache's update, its chain has to be the one that the base ends with. Else
// the store was restored, or it is another one since a failover, and what others have written there
// would go.
inline constexpr std::size_t header_peek_bytes = 512;
inline void check_base_chain(const std::string& log, UpdateId base, std::string_view bytes,
                             std::uint64_t base_chain) {
  const std::optional<UpdateHeader> found = peek_header(bytes);
  if (!found || found->id != base || found->chain == base_chain) return;
  throw Error(ErrorKind::unavailable,
              "log has another update than the one that the new base ends with, history is not "
              "rewritten (update, then "
              "retry): log=" +
                  log + " base=" + std::to_string(base) + " chain=" + std::to_string(found->chain) +
                  " base_chain=" + std::to_string(base_chain));
}

// The store answers, but the log that was opened is not in it any more.
inline Error log_deleted_error(const std::string& log) {
  return Error(
      ErrorKind::unavailable,
      "log is gone, somebody deleted it (opening it again makes a new, empty one): log=" + log);
}

inline Error missing_update_error(const std::string& log, UpdateId id, UpdateId head) {
  return Error(ErrorKind::corrupt,
               "update is missing in the log: log=" + log + " id=" + std::to_string(id) +
                   " head=" + std::to_string(head) + " (restore the log from a backup)");
}

}  // namespace whycache
