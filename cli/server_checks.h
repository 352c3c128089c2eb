// Checks of the servers behind a log's URL, for `whycache doctor`: the database, its replica, the
// tier, and the files with secrets.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "base/clock.h"
#include "cli/system_checks.h"

namespace whycache::cli {

struct ServerWaits {
  std::chrono::milliseconds server_max;  // for each server
  // For the database of a log that failed: it is not asked again once this has passed. nullopt: the
  // log answered.
  std::optional<Deadline> failed_database{};
};

// Checks whatever servers and files the URL names. `tier_prefix`: what the keys of the log in a
// tier begin with (tiered_item_prefix()); empty if the log did not answer. Does not throw for a URL
// that is wrong, which opening the log reports.
std::vector<Finding> check_servers(const std::string& log_url, const std::string& tier_prefix,
                                   const ServerWaits& waits);

// Returns a warning if users other than its owner and its group can read the file, or write it.
// `what` is the option of the URL that names it.
Finding check_secret_file(const std::string& what, const std::string& path);

// Returns a finding for the time until the certificate of a server expires, as the server states
// it: "Dec  1 00:00:00 2026 GMT". `server`: what is then out of reach.
Finding check_certificate_end(const std::string& check, const std::string& not_after,
                              std::int64_t now_us, const std::string& server = "the log");

}  // namespace whycache::cli
