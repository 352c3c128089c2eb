#include "follower.h"

#include <algorithm>
#include <condition_variable>
#include <cstdio>
#include <mutex>
#include <utility>

namespace service {
namespace {

// How long update() may wait for a log that does not answer before it reports that.
constexpr std::chrono::milliseconds update_deadline{1000};

}  // namespace

Follower::Follower(whycache::Cache& cache, Metrics& metrics, std::chrono::milliseconds interval)
    : cache_(cache),
      metrics_(metrics),
      interval_(interval),
      thread_([this](const std::stop_token& stop) { run(stop); }) {}

void Follower::run(const std::stop_token& stop) {
  std::mutex mutex;
  std::condition_variable_any wake;
  std::unique_lock lock(mutex);
  whycache::Counters counted = cache_.counters();
  while (!stop.stop_requested()) {
    update(stop);
    const whycache::Counters now = cache_.counters();
    metrics_.count_cache(counted, now);
    counted = now;
    wake.wait_for(lock, stop, interval_, [] { return false; });
  }
}

// Reports a failure when it begins and when it ends. Between these, reads continue with what this
// machine has, and /health says how old that is, and why.
void Follower::update(const std::stop_token& stop) {
  std::string error;
  try {
    cache_.update({.staleness_max = interval_, .deadline = update_deadline, .stop = stop});
  } catch (const whycache::Error& failure) {
    if (stop.stop_requested()) return;
    error = failure.what();
  }
  const std::lock_guard lock(error_mutex_);
  if (error_.empty() && !error.empty())
    std::fprintf(stderr, "service: cannot follow the log: %s\n", error.c_str());
  if (!error_.empty() && error.empty()) std::fprintf(stderr, "service: following the log again\n");
  error_ = std::move(error);
}

std::string Follower::error() const {
  const std::lock_guard lock(error_mutex_);
  return error_;
}

}  // namespace service
