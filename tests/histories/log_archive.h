// Keeps every update of a log, so that histories can be compared with the log after it was
// rewritten. Rewriters must not go beyond the last archived update.
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

  // Archives the new updates and returns the id of the last archived one. Does nothing if the log
  // is unavailable. Throws std::runtime_error if the log has lost updates, and Error(corrupt) if an
  // update is damaged.
  UpdateId follow();
  // Checks that the updates still in the log equal the archived ones. Throws as follow() does.
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
