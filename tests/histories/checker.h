// Checks whether histories (history.h) are consistent with a log. It checks every guarantee of
// whycache/cache.h that histories can violate, with one look-up per recorded fact.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "histories/history.h"

namespace whycache::testing {

// The violation of each guarantee.
enum class Violation {
  // Ids in the log are not 1, 2, 3 ...
  log_gap,
  // No process tried to write an update.
  phantom_write,
  // An acknowledged write is not in the log, or at another id.
  lost,
  // A write is in the log more than once.
  duplicated,
  // A write that failed with nothing written is in the log.
  written_despite_failure,
  // An update has only a part of a write.
  torn,
  // A value read by a transaction was changed before its update.
  not_serializable,
  // A write got an id below one that was seen before it began.
  out_of_order,
  // A process saw an id and later a smaller one.
  process_went_backwards,
  // A machine's process saw an id, and later another saw a smaller one.
  machine_went_backwards,
  // A read with a token saw a smaller id.
  token_not_seen,
  // A read returned a value that the key did not have at that id.
  wrong_value,
  // A digest differs from that of the log's updates up to that id.
  wrong_digest,
  // An error that a process did not expect.
  unexpected,
};
const char* to_string(Violation violation);

// One update of the log.
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
