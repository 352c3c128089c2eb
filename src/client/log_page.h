// A page: consecutive updates read from the log at once, with the extent of the log after the read.
// It shows whether the log continues the history of a state.
//
//   state at update n        rows to read: n, n+1, n+2 ...    (from its own id on: overlap by one)
//
// Row n proves that the log continues the state: if the same id has the same chain, all updates
// before it are the same too. If a rewrite deleted row n (n is the base), the chain of the base
// proves it.
#pragma once

#include <whycache/log.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "client/session.h"
#include "update/update.h"

namespace whycache {

inline LogPosition position_of(const StateInfo& info) {
  return {info.log_uuid, info.applied_id, info.chain};
}

// How old an answer of the log may be. nullopt: as old as the options of the log allow. 0: the
// store itself has to answer.
using StalenessMax = std::optional<std::chrono::nanoseconds>;
inline constexpr std::chrono::nanoseconds zero_staleness{0};

class LogPage {
 public:
  struct LogRow {
    UpdateId id;
    std::string_view bytes;
  };

  std::size_t row_count() const { return rows_.size(); }
  LogRow row(std::size_t i) const {
    return {rows_[i].id, std::string_view(bytes_).substr(rows_[i].offset, rows_[i].size)};
  }
  // The extent after the rows were read. Rows at or below its base must not be trusted.
  const Extent& extent() const { return extent_; }
  // Returns false if the page has a row with the id of this position and another chain.
  bool agrees_with(const LogPosition& position) const;
  // Whether the log had nothing beyond these rows.
  bool is_complete() const { return complete_; }
  // How long ago the log was as this page says, at most. 0: the store itself answered.
  std::chrono::nanoseconds staleness() const { return staleness_; }

 private:
  friend LogPage read_page(Log& log, UpdateId first, UpdateId last);
  friend LogPage poll_page(Log& log, const LogPosition& position, StalenessMax staleness_max);
  bool add(UpdateId id, std::string_view bytes);
  struct LogRowBounds {
    UpdateId id;
    std::size_t offset;
    std::size_t size;
  };
  std::string bytes_;
  std::vector<LogRowBounds> rows_;
  Extent extent_;
  bool complete_ = true;
  std::chrono::nanoseconds staleness_{0};
};

// Reads the rows `first`..`last`, up to about 8 MiB of them. Throws what the log throws.
LogPage read_page(Log& log, UpdateId first, UpdateId last);
// The first row to read for a state at update `id`.
inline UpdateId first_id_to_read(UpdateId id) { return id == 0 ? 1 : id; }
// Reads what the log has from `position` on. An answer that is not from the store has to continue
// the history of `position` in full; otherwise the store is asked. Only the store can show that
// something is wrong. Throws what the log throws.
LogPage poll_page(Log& log, const LogPosition& position, StalenessMax staleness_max);

enum class HistoryMatch {
  matches,
  replaced,     // the log has another uuid
  behind_base,  // a rewrite deleted the next update
  diverged      // the log has no update with this id, or another one: it was restored, forked or
                // lost its tail
};
// Compares the page with the history of a state at `position`. Sets `why` to the values that show
// the result, for messages.
HistoryMatch compare_history(const LogPage& page, const LogPosition& position, std::string& why);

// Throws LogError(corrupt) if the rows ended at an `id` below `promised_head`, which the log had
// named as its head before the read.
void check_head_reached(const Log& log, UpdateId id, UpdateId promised_head);

// Verifies and decodes row `number` of the page, which has to follow `position`, and advances that.
// Throws LogError(corrupt) if it does not follow, or is damaged; `position` is then unspecified.
void decode_next_row(const LogPage& page, std::size_t number, LogPosition& position,
                     Update& update);

// Calls `apply` for each row after `position`, once the row is verified and decoded as a whole.
// Skips rows at or below position.id. Advances `position` after each call, so it is correct even if
// this throws. Throws LogError(corrupt) at a missing or damaged row, and whatever `apply` throws.
void apply_updates(const LogPage& page, LogPosition& position,
                   const std::function<void(const Update&)>& apply);

}  // namespace whycache
