#include "client/log_page.h"

#include <optional>

namespace whycache {
namespace {

constexpr std::size_t page_bytes = std::size_t{8} << 20;

// The error for a damaged or missing update beyond the applied id.
LogError damaged_update(UpdateId id, const std::string& why) {
  return LogError(
      ErrorKind::corrupt,
      "log is damaged: id=" + std::to_string(id) + ": " + why +
          " (this machine stays at the id before; repair or restore the log, or if another machine "
          "has applied "
          "this update, rewrite history there: this one then starts from the new base)");
}

// Whether an answer that is not from the store continues the history in full. Otherwise none of it
// may be applied.
bool continues_history(const LogPage& page, LogPosition position) {
  std::string why;
  if (!page.is_complete() || compare_history(page, position, why) != HistoryMatch::matches)
    return false;
  try {
    apply_updates(page, position, [](const Update&) {});
    return page.extent().head <= position.id;
  } catch (const LogError&) {
    return false;
  }
}

}  // namespace

bool LogPage::agrees_with(const LogPosition& position) const {
  for (std::size_t i = 0; i < row_count(); ++i) {
    if (row(i).id != position.id) continue;
    const std::optional<UpdateHeader> found = peek_header(row(i).bytes);
    return found && found->id == position.id && found->chain == position.chain;
  }
  return true;
}

bool LogPage::add(UpdateId id, std::string_view bytes) {
  if (!complete_) return false;
  rows_.push_back({id, bytes_.size(), bytes.size()});
  bytes_ += bytes;
  // A page has at least two rows, however large the first is: the first may be applied already, and
  // the follower must advance.
  complete_ = bytes_.size() < page_bytes || rows_.size() < 2;
  return complete_;
}

LogPage read_page(Log& log, UpdateId first, UpdateId last) {
  LogPage page;
  page.extent_ = log.read(first, last,
                          [&](UpdateId id, std::string_view bytes) { return page.add(id, bytes); });
  return page;
}

HistoryMatch compare_history(const LogPage& page, const LogPosition& position, std::string& why) {
  const Extent& extent = page.extent();
  why = "applied_id=" + std::to_string(position.id) + " base=" + std::to_string(extent.base) +
        " head=" + std::to_string(extent.head);
  if (extent.uuid != position.log_uuid) {
    why += " state_uuid=" + to_string(position.log_uuid) + " log_uuid=" + to_string(extent.uuid);
    return HistoryMatch::replaced;
  }
  if (position.id < extent.base) return HistoryMatch::behind_base;
  if (position.id == 0) return HistoryMatch::matches;
  why += " chain=" + std::to_string(position.chain);
  if (position.id == extent.base) {
    why += " base_chain=" + std::to_string(extent.base_chain);
    return position.chain == extent.base_chain ? HistoryMatch::matches : HistoryMatch::diverged;
  }
  const bool there = page.row_count() > 0 && page.row(0).id == position.id;
  why += there ? " and the log has another update there" : " and the log has no such update";
  return there && page.agrees_with(position) ? HistoryMatch::matches : HistoryMatch::diverged;
}

void check_head_reached(const Log& log, UpdateId id, UpdateId promised_head) {
  if (id >= promised_head) return;
  throw LogError(ErrorKind::corrupt,
                 "log does not have the updates it says it has: last_id=" + std::to_string(id) +
                     " head=" + std::to_string(promised_head) + " log=" + log.name() +
                     " (repair or restore the log)");
}

void decode_next_row(const LogPage& page, std::size_t number, LogPosition& position,
                     Update& update) {
  const LogPage::LogRow row = page.row(number);
  if (row.id != position.id + 1) {
    throw damaged_update(position.id + 1,
                         "update is missing: next_found=" + std::to_string(row.id));
  }
  try {
    position.chain = verify_chain(row.bytes, row.id, position.chain);
    decode_update(row.bytes, update);
  } catch (const Error& error) {
    throw damaged_update(row.id, error.what());
  }
  position.id = row.id;
}

void apply_updates(const LogPage& page, LogPosition& position,
                   const std::function<void(const Update&)>& apply) {
  Update update;
  for (std::size_t i = 0; i < page.row_count(); ++i) {
    if (page.row(i).id <= position.id) continue;
    LogPosition next = position;
    decode_next_row(page, i, next, update);
    apply(update);
    position = next;
  }
}

LogPage poll_page(Log& log, const LogPosition& position, StalenessMax staleness_max) {
  for (;;) {
    LogPage page;
    const PollResult result =
        log.poll(first_id_to_read(position.id), staleness_max,
                 [&](UpdateId id, std::string_view bytes) { return page.add(id, bytes); });
    page.extent_ = result.extent;
    page.staleness_ = result.staleness;
    if (result.staleness.count() == 0 || staleness_max == zero_staleness ||
        continues_history(page, position))
      return page;
    staleness_max = zero_staleness;
  }
}

}  // namespace whycache
