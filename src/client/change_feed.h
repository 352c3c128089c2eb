// The feed behind Changes: one update after the other, from the ring beside the state or, if that
// no longer has it, from the log.
//
//   position: update n, with its chain once that is known
//     has the state applied more?            no: wait
//     does the ring have update n + 1?       yes: return its changes
//     read a page of the log from n on
//       does it continue the history of n?   no: reset to what the state has applied
//       return the changes of its updates, up to what the state had applied
//
// The chain shows whether what follows continues what was returned before, wherever it comes from.
#pragma once

#include <whycache/changes.h>

#include <chrono>
#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "client/log_page.h"
#include "client/session.h"
#include "state/read/change_ring_reader.h"
#include "update/update.h"

namespace whycache {

class Changes::Feed {
 public:
  enum class Source : std::uint8_t { ring_and_log, ring_alone };
  // `session` returns the session of the process that calls.
  Feed(std::function<Session&()> session, Source source, UpdateId from, KeyRange range,
       const ChangesOptions& options);

  // nullopt: waits until the options end the feed.
  std::optional<FeedChange> next(std::optional<std::chrono::milliseconds> at_most);
  UpdateId position() const { return position_id_; }

 private:
  // What is to be returned before the next update is looked for.
  bool has_change() const { return erases_all_ || next_selected_ < selected_.size(); }
  FeedChange take_change();

  // Makes the next update the current one. Returns false if the state has applied no further one.
  bool advance(Session& session);
  bool advance_to(Session& session, const StateInfo& info);
  // Takes what the state says of the position, before the first change is asked for.
  void note_start(const StateInfo& info);
  StateInfo read_state(Session& session) const;
  void begin(Session& session, StateInfo& info);
  bool take_from_ring(const StateInfo& info);
  void read_log(Session& session, const StateInfo& info);
  // Takes the next row of the page. Returns false if there is none.
  bool take_from_page();
  void select_changes();
  void reset_to(const StateInfo& info, std::string why);
  // Return false once the time has passed.
  bool wait_for_update(Session& session, const Deadline& deadline);
  bool sleep_until_update(const State& state, const Deadline& deadline);

  const std::function<Session&()> session_;
  const Source source_;
  const KeyRange range_;
  const ChangesOptions options_;
  const std::optional<Deadline> deadline_;  // of the whole feed

  // All changes up to this update were returned.
  UpdateId position_id_;
  std::optional<std::uint64_t> position_chain_;  // unknown for an id that a caller has stored
  std::optional<Uuid> log_uuid_;                 // once the state was read
  bool has_begun_ = false;
  bool is_traffic_dense_ = false;
  std::optional<FeedChange> reset_;
  std::string reset_reason_;

  ChangeRingReader ring_;
  LogPage page_;
  std::size_t page_row_ = 0;

  // The current update, and which of its changes are still to be returned.
  Update update_;
  bool erases_all_ = false;
  std::vector<std::size_t> selected_;
  std::size_t next_selected_ = 0;
};

}  // namespace whycache
