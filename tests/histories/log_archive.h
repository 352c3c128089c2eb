// Who keeps every update of a log, so that histories can be compared with it after the log was
// rewritten. Rewriting may go as far as it has come, and not farther.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include <whycache/log.h>

#include "histories/checker.h"

namespace whycache::testing {

class LogArchive {
 public:
  explicit LogArchive(std::unique_ptr<Log> log) : log_(std::move(log)) {}

  // Takes what is new; returns the id it has come to. A log that is away is asked again next time.
  // Throws std::runtime_error if the log lost something, and Error corrupt if it cannot be
  // believed.
  UpdateId follow();
  // Looks again at all updates that are still in the log: they are what they were. Throws as
  // follow().
  void verify_again();

  const std::vector<ArchivedUpdate>& updates() const { return updates_; }

 private:
  std::unique_ptr<Log> log_;
  std::optional<Uuid> uuid_;
  std::uint64_t chain_ = 0;
  std::vector<ArchivedUpdate> updates_;
  std::vector<std::uint64_t> hashes_;
};

}  // namespace whycache::testing
