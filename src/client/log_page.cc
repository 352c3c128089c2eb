#include "client/log_page.h"

#include <optional>

namespace whycache {
namespace {

constexpr std::size_t page_bytes = std::size_t{8} << 20;

// Of one row that is ahead of where we stand.
LogError not_to_be_believed(UpdateId id, const std::string& why) {
  return LogError(
      ErrorKind::corrupt,
      "log is damaged: id=" + std::to_string(id) + ": " + why +
          " (this machine stays at the id before; repair or restore the log, or if another machine has applied "
          "this update, rewrite history there: this one then starts from the new base)");
}

// Whether what did not come from the store fits, all of it: else none of it may be applied.
bool continues(const Page& page, Place place) {
  std::string why;
  if (!page.complete() || fit_of(page, place, why) != Fit::fits) return false;
  try {
    replay(page, place, [](const Update&) {});
    return page.extent().head <= place.id;
  } catch (const LogError&) {
    return false;
  }
}

}  // namespace

bool Page::agrees_with(const Place& place) const {
  for (std::size_t i = 0; i < row_count(); ++i) {
    if (row(i).id != place.id) continue;
    const std::optional<UpdatePlace> found = peek_place(row(i).bytes);
    return found && found->id == place.id && found->chain == place.chain;
  }
  return true;
}

bool Page::add(UpdateId id, std::string_view bytes) {
  if (!complete_) return false;
  places_.push_back({id, bytes_.size(), bytes.size()});
  bytes_ += bytes;
  // However large the first is, which may be one that is known already: the next one has to get its turn.
  complete_ = bytes_.size() < page_bytes || places_.size() < 2;
  return complete_;
}

Page read_page(Log& log, UpdateId first, UpdateId last) {
  Page page;
  page.extent_ = log.read(first, last, [&](UpdateId id, std::string_view bytes) { return page.add(id, bytes); });
  return page;
}

Fit fit_of(const Page& page, const Place& place, std::string& why) {
  const Extent& extent = page.extent();
  why = "applied_id=" + std::to_string(place.id) + " base=" + std::to_string(extent.base) +
        " head=" + std::to_string(extent.head);
  if (extent.uuid != place.log_uuid) {
    why += " state_uuid=" + to_string(place.log_uuid) + " log_uuid=" + to_string(extent.uuid);
    return Fit::replaced;
  }
  if (place.id < extent.base) return Fit::behind_base;
  if (place.id == 0) return Fit::fits;
  why += " chain=" + std::to_string(place.chain);
  if (place.id == extent.base) {
    why += " base_chain=" + std::to_string(extent.base_chain);
    return place.chain == extent.base_chain ? Fit::fits : Fit::diverged;
  }
  const bool there = page.row_count() > 0 && page.row(0).id == place.id;
  why += there ? " and the log has another update there" : " and the log has no such update";
  return there && page.agrees_with(place) ? Fit::fits : Fit::diverged;
}

void check_promise(const Log& log, UpdateId id, UpdateId promised) {
  if (id >= promised) return;
  throw LogError(ErrorKind::corrupt, "log does not have the updates it says it has: last_id=" + std::to_string(id) +
                                         " head=" + std::to_string(promised) + " log=" + log.name() +
                                         " (repair or restore the log)");
}

void replay(const Page& page, Place& place, const std::function<void(const Update&)>& apply) {
  Update update;
  for (std::size_t i = 0; i < page.row_count(); ++i) {
    const Page::Row row = page.row(i);
    if (row.id <= place.id) continue;
    if (row.id != place.id + 1) {
      throw not_to_be_believed(place.id + 1, "update is missing: next_found=" + std::to_string(row.id));
    }
    std::uint64_t chain;
    try {
      chain = verify_chain(row.bytes, row.id, place.chain);
      decode_update(row.bytes, update);
    } catch (const Error& error) {
      throw not_to_be_believed(row.id, error.what());
    }
    apply(update);
    place.id = row.id;
    place.chain = chain;
  }
}

Page look_beyond(Log& log, const Place& place, AgeMax age_max) {
  for (;;) {
    Page page;
    const Looked looked = log.look(first_to_read(place.id), age_max,
                                   [&](UpdateId id, std::string_view bytes) { return page.add(id, bytes); });
    page.extent_ = looked.extent;
    page.age_ = looked.age;
    if (looked.age.count() == 0 || age_max == from_the_store || continues(page, place)) return page;
    age_max = from_the_store;
  }
}

}  // namespace whycache
