// A thread that keeps this machine up to date.
#pragma once

#include <chrono>
#include <mutex>
#include <stop_token>
#include <string>
#include <thread>

#include <whycache/cache.h>

#include "metrics.h"

namespace service {

// Calls Cache::update() in every interval, until it is destroyed. Every worker has a follower. The
// bound on staleness makes them share the work: one of them asks the log per interval, whichever is
// first, and the others find that it has been asked.
class Follower {
 public:
  Follower(whycache::Cache& cache, Metrics& metrics, std::chrono::milliseconds interval);

  // Why the last update() failed; empty if it did not.
  std::string error() const;

 private:
  void run(const std::stop_token& stop);
  void update(const std::stop_token& stop);

  whycache::Cache& cache_;
  Metrics& metrics_;
  const std::chrono::milliseconds interval_;
  mutable std::mutex error_mutex_;
  std::string error_;
  std::jthread thread_;  // last: it uses the other members
};

}  // namespace service
