// Whether histories (history.h) can be told of a log: every promise of whycache/cache.h that
// histories can break is looked at, with one look-up for each thing that was told.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "histories/history.h"

namespace whycache::testing {

// What every promise is called when it was broken.
enum class Violation {
  log_gap,                  // ids in the log are not 1, 2, 3 ...
  phantom_write,            // an update nobody has tried to write
  lost,                     // an acknowledged write is not in the log, or at another id
  duplicated,               // a write is in the log more than once
  written_despite_failure,  // a write is in the log that had failed with nothing written
  torn,                     // an update has a part of a write only
  not_serializable,         // what a transaction had read was changed before its update
  out_of_order,  // a write that began after an update was seen somewhere got an id before that
  process_went_backwards,  // a process saw an id, and later a smaller one
  machine_went_backwards,  // a process of a machine saw an id, and another of it, later, a smaller
                           // one
  token_not_seen,          // a read after a token saw less than that
  wrong_value,             // a read saw what was not there at that id
  wrong_digest,            // a digest differs from that of the log's updates up to that id
  unexpected,              // anything a process could not make sense of
};
const char* to_string(Violation violation);

// One update, as it was found in the log.
struct ArchivedUpdate {
  UpdateId id = 0;
  KeyValues changes{};
};

struct Verdict {
  std::map<Violation, std::uint64_t> violations{};
  std::vector<std::string> examples{};  // a few of each

  std::uint64_t updates = 0;
  std::uint64_t writes = 0;
  std::uint64_t acknowledged = 0;
  std::uint64_t nothing_written = 0;
  std::uint64_t uncertain = 0;
  std::uint64_t unanswered = 0;
  std::uint64_t uncertain_or_unanswered_in_log = 0;
  std::uint64_t transactions = 0;  // acknowledged
  std::uint64_t transactions_retried = 0;
  std::uint64_t reads = 0;
  std::uint64_t values = 0;
  std::uint64_t tokens = 0;
  std::uint64_t digests = 0;

  std::uint64_t violation_count() const;
};

Verdict check(const std::vector<ArchivedUpdate>& archive, const std::vector<History>& histories);

}  // namespace whycache::testing
