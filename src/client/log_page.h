// A page: consecutive updates read from the log in one go, with what the log said of itself after
// the rows were read; and whether that is the continuation of where we stand.
//
//   we stand at n           rows we ask for: n, n+1, n+2 ...    (from our own id on: overlapping by one)
//
// The row n proves that the log we read is the log we have: the same id with the same chain means
// that all before it is the same, too. Where row n is gone by a rewrite (n is the base) the chain
// of the base proves it.
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

// Where a state, or one being built, stands in its log.
struct LogPosition {
  Uuid log_uuid{};
  UpdateId id = 0;
  std::uint64_t chain = 0;

  friend bool operator==(const LogPosition&, const LogPosition&) = default;
};

inline LogPosition position_of(const StateInfo& info) {
  return {info.log_uuid, info.applied_id, info.chain};
}

// How old what the log says may be. nullopt: as old as the log's options allow. 0: its store has to
// be asked.
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
  // As of after the rows were read: rows at or below its base must not be believed.
  const Extent& extent() const { return extent_; }
  // Whether the row at the place's id, if it is among these, is the update that stands there.
  bool agrees_with(const LogPosition& position) const;
  // Whether there is nothing beyond these rows.
  bool is_complete() const { return complete_; }
  // How long ago the log was as this page says, at most. 0: the store itself was asked.
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

// The rows from `first` on, up to `last`, to about 8 MiB. Throws what the log throws.
LogPage read_page(Log& log, UpdateId first, UpdateId last);
// The id to read from when standing at `id`.
inline UpdateId first_id_to_read(UpdateId id) { return id == 0 ? 1 : id; }
// What the log has from `place` on. What does not come from its store has to continue `place`, all
// of it; else the store is asked, for only that is believed when it says that something is wrong.
LogPage poll_page(Log& log, const LogPosition& position, StalenessMax staleness_max);

enum class HistoryMatch {
  matches,
  replaced,     // another log: it has another uuid
  behind_base,  // what comes next was deleted by a rewrite
  diverged      // the log was restored, forked or lost its tail: our id is not in it, or is another
                // update
};
// `why` gets the values that show it, for messages.
HistoryMatch compare_history(const LogPage& page, const LogPosition& position, std::string& why);

// Throws LogError corrupt unless `id`, at which the rows ended, is at or beyond `promised`: the
// head that the log named before it was asked for them.
void check_head_reached(const Log& log, UpdateId id, UpdateId promised_head);

// Carries the rows after `place` into whoever `apply`s them, one at a time, each verified and
// decoded as a whole before. `place` moves along, so that it is right also when this throws:
// LogError corrupt at a row that cannot be believed, and whatever `apply` throws. Rows at or below
// place.id are passed over.
void apply_updates(const LogPage& page, LogPosition& position,
                   const std::function<void(const Update&)>& apply);

}  // namespace whycache
