#include "client/change_feed.h"

#include <algorithm>
#include <chrono>
#include <stop_token>
#include <unordered_map>
#include <utility>

#include "base/clock.h"
#include "client/follow.h"

namespace whycache {
namespace {

// How often a waiting feed looks at the state by itself: no update is applied, and nothing wakes
// it, if a state of another history, but of the same id, takes the place of the one that it waits
// for.
constexpr std::chrono::milliseconds look_interval{5000};

// To wake a feed costs the process that applies an update several microseconds. While updates
// arrive within dense_wait_max, a feed therefore lets some gather before it waits for the next one.
constexpr std::chrono::microseconds dense_wait_max{1000};
constexpr std::chrono::microseconds gathering_time{300};

bool contains(const KeyRange& range, std::string_view key) {
  return key >= range.begin && (!range.end || key < *range.end);
}

std::chrono::system_clock::time_point time_point(std::int64_t time_us) {
  return std::chrono::system_clock::time_point(std::chrono::microseconds(time_us));
}

std::string id_text(std::string_view name, UpdateId id) {
  return std::string(name) + "=" + std::to_string(id);
}

}  // namespace

Changes::Feed::Feed(std::function<Session&()> session, Source source, UpdateId from, KeyRange range,
                    const ChangesOptions& options)
    : session_(std::move(session)),
      source_(source),
      range_(std::move(range)),
      options_(options),
      deadline_(options.deadline ? std::optional(Deadline(*options.deadline, options.stop))
                                 : std::nullopt),
      position_id_(from),
      ring_(session_().state.changes()) {
  try {
    note_start(session_().state.info());
  } catch (const Error&) {  // there is no state yet, or next() reports what is wrong with it
  }
}

std::optional<FeedChange> Changes::Feed::next(std::optional<std::chrono::milliseconds> at_most) {
  const auto forever = std::chrono::milliseconds::max();
  const Deadline unlimited = deadline_ ? *deadline_ : Deadline(forever, options_.stop);
  const Deadline deadline = at_most ? unlimited.at_most(*at_most) : unlimited;
  Session& session = session_();
  for (;;) {
    if (has_change() || reset_) return take_change();
    if (options_.stop.stop_requested()) return std::nullopt;
    if (advance(session)) {
      // None of the last ones was in the range. A caller that asks for 0 wants all there is.
      if (has_change() || reset_ || !at_most || at_most->count() <= 0 || !deadline.passed())
        continue;
      return std::nullopt;
    }
    if (!wait_for_update(session, deadline)) return std::nullopt;
  }
}

FeedChange Changes::Feed::take_change() {
  if (reset_) {
    FeedChange reset = *std::exchange(reset_, std::nullopt);
    reset.note = reset_reason_;
    return reset;
  }
  FeedChange returned;
  returned.id = update_.id;
  returned.time = time_point(update_.authorship.time_us);
  returned.writer = update_.authorship.writer_name;
  returned.note = update_.authorship.note;
  if (std::exchange(erases_all_, false)) {
    returned.kind = FeedChange::Kind::erase_all;
  } else {
    const Change& change = update_.changes[selected_[next_selected_++]];
    const bool sets = change.kind == Change::Kind::set;
    returned.kind = sets ? FeedChange::Kind::set : FeedChange::Kind::erase;
    returned.key = change.key;
    returned.value = change.value;
  }
  returned.ends_update = !has_change();
  if (returned.ends_update) {
    position_id_ = update_.id;
    position_chain_ = update_.chain;
  }
  return returned;
}

bool Changes::Feed::advance(Session& session) {
  if (take_from_page()) return true;
  StateInfo info = read_state(session);
  if (!has_begun_) begin(session, info);
  return reset_ || advance_to(session, info);
}

bool Changes::Feed::advance_to(Session& session, const StateInfo& info) {
  if (info.log_uuid != *log_uuid_) {
    reset_to(info, "log was replaced: previous_uuid=" + to_string(*log_uuid_) +
                       " uuid=" + to_string(info.log_uuid));
    return true;
  }
  const bool is_other_history =
      info.applied_id < position_id_ ||
      (info.applied_id == position_id_ && position_chain_ && *position_chain_ != info.chain);
  if (is_other_history) {
    reset_to(info, "log was restored: " + id_text("position", position_id_) + " " +
                       id_text("applied_id", info.applied_id));
    return true;
  }
  if (info.applied_id == position_id_) {
    position_chain_ = info.chain;
    return false;
  }
  if (take_from_ring(info)) return true;
  if (source_ == Source::ring_alone) {
    reset_to(info,
             "ring of changes does not have the next update: " + id_text("position", position_id_) +
                 " " + id_text("applied_id", info.applied_id));
    return true;
  }
  read_log(session, info);
  return true;
}

StateInfo Changes::Feed::read_state(Session& session) const {
  const State& state = session.state;
  try {
    return state.info();
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::corrupt) session.note_damage();
    if (error.kind() != ErrorKind::unavailable) throw;
  }
  // Another file has taken the place of the state, perhaps of another log.
  session.refuse_in_callback();
  Backoff backoff(session.options.deadline, options_.stop);
  if (source_ == Source::ring_and_log) {
    follow(session, backoff);
    return state.info();
  }
  while (const std::optional<LogIdentity> other = state.switch_if_replaced(backoff.deadline())) {
    state.expect_log(other->uuid);
    session.note_seen_log(other->uuid);
  }
  return state.info();
}

// The first look at the state. The caller may have the id from another machine, which has applied
// more than this one.
void Changes::Feed::begin(Session& session, StateInfo& info) {
  if (position_id_ > info.applied_id && source_ == Source::ring_and_log) {
    session.refuse_in_callback();
    Backoff backoff(session.options.deadline, options_.stop);
    follow(session, backoff, 0, zero_staleness);
    info = session.state.info();
  }
  has_begun_ = true;
  if (!log_uuid_) note_start(info);
  if (*log_uuid_ == info.log_uuid && position_id_ > info.applied_id) {
    reset_to(info, "id is beyond what the log has: " + id_text("from", position_id_) + " " +
                       id_text("applied_id", info.applied_id) +
                       " (the log was restored or replaced, or the id is of another log)");
  }
}

void Changes::Feed::note_start(const StateInfo& info) {
  log_uuid_ = info.log_uuid;
  if (position_id_ == 0) {
    position_chain_ = chain_start(info.log_uuid);
  } else if (position_id_ == info.applied_id) {
    position_chain_ = info.chain;
  }
}

bool Changes::Feed::take_from_ring(const StateInfo& info) {
  const UpdateId id = position_id_ + 1;
  const std::optional<std::string_view> bytes = ring_.find(info.state_id, id);
  if (!bytes) return false;
  try {
    if (position_chain_) verify_chain(*bytes, id, *position_chain_);
    decode_update(*bytes, update_);
    if (update_.id != id) return false;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::corrupt) throw;
    return false;  // the log has the truth
  }
  select_changes();
  return true;
}

void Changes::Feed::read_log(Session& session, const StateInfo& info) {
  session.refuse_in_callback();
  Backoff backoff(session.options.deadline, options_.stop);
  page_ = session.call_log_with_retries(backoff, [&](Log& log) {
    return read_page(log, first_id_to_read(position_id_), info.applied_id);
  });
  page_row_ = 0;
  const Extent& extent = page_.extent();
  if (!position_chain_ && position_id_ == extent.base && extent.base != 0) {
    position_chain_ = extent.base_chain;
  } else if (!position_chain_ && page_.row_count() > 0 && page_.row(0).id == position_id_) {
    if (const std::optional<UpdateHeader> header = peek_header(page_.row(0).bytes))
      position_chain_ = header->chain;
  }
  std::string why;
  const LogPosition position{*log_uuid_, position_id_, position_chain_.value_or(0)};
  switch (compare_history(page_, position, why)) {
    case HistoryMatch::matches: break;
    case HistoryMatch::replaced: return reset_to(info, "log was replaced: " + why);
    case HistoryMatch::behind_base:
      return reset_to(info, "history was rewritten beyond the position: " + why);
    case HistoryMatch::diverged: return reset_to(info, "log was restored: " + why);
  }
  if (take_from_page()) return;
  reset_to(info, "log has lost updates that this machine has applied: " + why);
}

bool Changes::Feed::take_from_page() {
  while (page_row_ < page_.row_count() && page_.row(page_row_).id <= position_id_) ++page_row_;
  if (page_row_ == page_.row_count()) {
    if (page_row_ > 0) page_ = LogPage();
    page_row_ = 0;
    return false;
  }
  LogPosition position{*log_uuid_, position_id_, *position_chain_};
  try {
    decode_next_row(page_, page_row_, position, update_);
  } catch (...) {  // the next call reads the row again: it may have been repaired
    page_ = LogPage();
    page_row_ = 0;
    throw;
  }
  select_changes();
  return true;
}

// If the update changes a key more than once, only the last change was ever visible.
void Changes::Feed::select_changes() {
  const std::vector<Change>& changes = update_.changes;
  std::vector<std::size_t> selected;
  for (std::size_t i = 0; i < changes.size(); ++i) {
    if (contains(range_, changes[i].key)) selected.push_back(i);
  }
  if (selected.size() > 1) {
    std::unordered_map<std::string_view, std::size_t> last;
    for (const std::size_t i : selected) last[changes[i].key] = i;
    std::erase_if(selected, [&](std::size_t i) { return last[changes[i].key] != i; });
  }
  // From here on nothing throws: a part of the changes would pass for all of them.
  erases_all_ = update_.erases_all;
  selected_.swap(selected);
  next_selected_ = 0;
  if (has_change()) return;
  position_id_ = update_.id;
  position_chain_ = update_.chain;
}

void Changes::Feed::reset_to(const StateInfo& info, std::string why) {
  page_ = LogPage();
  page_row_ = 0;
  log_uuid_ = info.log_uuid;
  position_id_ = info.applied_id;
  position_chain_ = info.chain;
  reset_reason_ = std::move(why);
  reset_ = FeedChange{.kind = FeedChange::Kind::reset,
                      .id = info.applied_id,
                      .time = time_point(wall_time_us()),
                      .writer = {},
                      .note = {}};
}

bool Changes::Feed::wait_for_update(Session& session, const Deadline& deadline) {
  if (!deadline.passed()) session.refuse_in_callback();
  // The wait ends for the stop of the feed, and for closing.
  std::stop_source stop;
  const auto request_stop = [&] { stop.request_stop(); };
  const std::stop_token closing = session.closing_token();
  const std::stop_callback on_stop(deadline.stop(), request_stop);
  const std::stop_callback on_close(closing, request_stop);
  bool is_there = false;
  try {
    is_there = sleep_until_update(session.state, deadline.with_stop(stop.get_token()));
  } catch (const Error& error) {
    // Another file has taken the place of the state: advance() finds out of which log.
    if (error.kind() != ErrorKind::unavailable) throw;
  }
  if (closing.stop_requested()) {
    throw Error(
        ErrorKind::unavailable,
        "cache was closed while its feed waited for an update: state=" + session.state.path());
  }
  return is_there || !deadline.passed();
}

bool Changes::Feed::sleep_until_update(const State& state, const Deadline& deadline) {
  const StatePosition seen = state.position();
  if (seen.applied_id != position_id_) return true;
  if (deadline.passed()) return false;
  const auto began = std::chrono::steady_clock::now();
  if (std::exchange(is_traffic_dense_, false)) deadline.sleep(gathering_time);
  while (state.position() == seen) {
    if (deadline.passed()) return false;
    state.wait(seen.applied_id, deadline.at_most(look_interval));
  }
  is_traffic_dense_ = std::chrono::steady_clock::now() - began < dense_wait_max;
  return true;
}

// --- The public object ---

Changes::Changes(std::unique_ptr<Feed> feed) : feed_(std::move(feed)) {}
Changes::Changes(Changes&&) noexcept = default;
Changes& Changes::operator=(Changes&&) noexcept = default;
Changes::~Changes() = default;

Changes::Feed& Changes::feed() const {
  if (!feed_) throw Error(ErrorKind::invalid, "feed of changes was moved from");
  return *feed_;
}

std::optional<FeedChange> Changes::next() { return feed().next(std::nullopt); }

std::optional<FeedChange> Changes::next(std::chrono::milliseconds at_most) {
  return feed().next(at_most);
}

UpdateId Changes::position() const { return feed().position(); }

}  // namespace whycache
