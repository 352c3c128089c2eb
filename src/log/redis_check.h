// Whether a Redis server accepts everything that a tier needs, for `whycache doctor`.
#pragma once

#include <string>
#include <vector>

#include "base/clock.h"
#include "log/redis_connection.h"

namespace whycache {

// Commands that the server refuses for one reason.
struct RedisRefusal {
  std::vector<std::string> commands;  // "XADD", or "XRANGE KEY" for a key of the log
  std::string error;                  // of the first of them
};

// Tries every command that RedisStore and its script use, on keys of its own, which expire. Then
// reads the keys of the log whose prefix is tiered_item_prefix(); empty: of no log. Throws
// RedisFailure if the connection is lost, or the deadline passes.
std::vector<RedisRefusal> find_redis_refusals(RedisConnection& connection,
                                              const std::string& log_prefix,
                                              const Deadline& deadline);

}  // namespace whycache
