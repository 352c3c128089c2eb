// Answers of a database server about a log.
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string_view>

#include <whycache/log.h>

#include "log/rewrite_in_database.h"

namespace whycache {

// One row of whycache_logs, and the greatest id in the log.
struct LogTableRow : LogMetadata {
  UpdateId last = 0;
  std::uint64_t store_id = 0;

  Extent extent() const { return {uuid, base, base_chain, std::max(base, last), store_id}; }
};

inline std::string_view as_bytes(const Uuid& uuid) {
  return {reinterpret_cast<const char*>(uuid.data()), uuid.size()};
}

// Returns the uuid in a column; nullopt if it is NULL, or not one.
inline std::optional<Uuid> to_uuid(std::optional<std::string_view> bytes) {
  Uuid uuid;
  if (!bytes || bytes->size() != uuid.size()) return std::nullopt;
  std::copy(bytes->begin(), bytes->end(), uuid.begin());
  return uuid;
}

// The newest update of a primary, with which a replica's updates must end.
struct PrimaryHead {
  Extent extent;
  // The chain of the update at the head, if it is a cache's update.
  std::optional<std::uint64_t> chain;
};

}  // namespace whycache
