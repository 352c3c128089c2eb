#include "histories/log_archive.h"

#include <stdexcept>
#include <string>

#include "base/hash.h"
#include "update/update.h"

namespace whycache::testing {
namespace {

constexpr UpdateId no_end = ~UpdateId{0};

}  // namespace

UpdateId LogArchive::follow() {
  struct Row {
    UpdateId id;
    std::string bytes;
  };
  std::vector<Row> rows;
  Extent extent;
  try {
    extent = log_->read(updates_.size() + 1, no_end, [&](UpdateId id, std::string_view bytes) {
      rows.push_back({id, std::string(bytes)});
      return true;
    });
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::unavailable) throw;
    return updates_.size();
  }
  if (!uuid_) chain_ = chain_start(extent.uuid);
  if (uuid_.value_or(extent.uuid) != extent.uuid)
    throw std::runtime_error("the log was replaced by another");
  uuid_ = extent.uuid;
  if (extent.base > updates_.size())
    throw std::runtime_error("the log was rewritten beyond the archived updates");
  for (const Row& row : rows) {
    chain_ = verify_chain(row.bytes, row.id, chain_);
    Update update;
    decode_update(row.bytes, update);
    ArchivedUpdate archived{.id = row.id};
    for (const Change& change : update.changes) {
      archived.changes.emplace_back(change.key, change.kind == Change::Kind::set
                                                    ? std::optional<std::string>(change.value)
                                                    : std::nullopt);
    }
    updates_.push_back(std::move(archived));
    hashes_.push_back(hash64(row.bytes));
  }
  return updates_.size();
}

void LogArchive::verify_again() {
  const Extent extent = log_->extent();
  UpdateId expected = extent.base + 1;
  log_->read(expected, no_end, [&](UpdateId id, std::string_view bytes) {
    if (id != expected || id > hashes_.size() || hash64(bytes) != hashes_[id - 1]) {
      throw std::runtime_error("an update differs from the archived one: id=" + std::to_string(id));
    }
    ++expected;
    return true;
  });
  if (expected != updates_.size() + 1)
    throw std::runtime_error("updates disappeared from the end of the log");
}

}  // namespace whycache::testing
