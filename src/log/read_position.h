// Which updates were read over a connection to a database server. After a lost connection, an
// address may lead to another server with other updates: an append must not rely on updates that
// were read from the server before.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <whycache/error.h>
#include <whycache/types.h>

#include "update/update.h"

namespace whycache {

// Returns the chain of a cache's update, or nullopt: a log takes other bytes, too.
inline std::optional<std::uint64_t> chain_of(UpdateId id, std::string_view bytes) {
  const std::optional<UpdateHeader> header = peek_header(bytes);
  return header && header->id == id ? std::optional(header->chain) : std::nullopt;
}

class ReadPosition {
 public:
  // Begins a new connection. Over the first connection of a log, any append is allowed.
  void restart(bool is_first_connection) {
    earliest_id_ = is_first_connection ? 0 : nothing_read;
    newest_id_ = 0;
    newest_chain_.reset();
  }

  // Records that a read began at `first`.
  void note_read_from(UpdateId first) { earliest_id_ = std::min(earliest_id_, first); }
  // Records that the server has the update at `id`.
  void record(UpdateId id, std::optional<std::uint64_t> chain) {
    if (id < newest_id_) return;
    newest_id_ = id;
    newest_chain_ = chain;
  }

  // Throws Error(unavailable) unless the update before `id` was read or appended over this
  // connection, and is the one that `bytes` continue, as far as their chains are known.
  void check_append(UpdateId id, std::string_view bytes, const std::string& log) const {
    if (!has_read_predecessor(id)) {
      throw Error(ErrorKind::unavailable,
                  "connection was lost, and the update before this one was not read over the new "
                  "one, nothing was written: id=" +
                      std::to_string(id) + " log=" + log);
    }
    if (!newest_chain_ || newest_id_ + 1 != id || !chain_of(id, bytes)) return;
    try {
      verify_chain(bytes, id, *newest_chain_);
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::corrupt) throw;
      throw Error(
          ErrorKind::unavailable,
          "log has another update before this one than it continues, nothing was written: id=" +
              std::to_string(id) + " log=" + log);
    }
  }

 private:
  static constexpr UpdateId nothing_read = ~UpdateId{0};

  bool has_read_predecessor(UpdateId id) const {
    if (earliest_id_ == 0) return true;
    return earliest_id_ <= std::max<UpdateId>(id - 1, 1) && id <= newest_id_ + 1;
  }

  // The least id at which a read began. 0: this is the first connection.
  UpdateId earliest_id_ = 0;
  // The greatest id that was read or appended, and its chain if it is known.
  UpdateId newest_id_ = 0;
  std::optional<std::uint64_t> newest_chain_;
};

}  // namespace whycache
