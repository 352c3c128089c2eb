// Metrics in the text format of Prometheus.
//
// Any worker may answer /metrics. Its own counts would be a share of what the service did, and
// would go back when another worker answers. So all workers count in memory that they share.
#pragma once

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <whycache/cache.h>

namespace service {

class Metrics {
 public:
  // Returns metrics that this process shares with its children, for as long as they run.
  static Metrics& create_shared();

  void count_request(std::string_view path, int status, std::chrono::nanoseconds time);
  // Adds what a worker's cache counted between two calls of Cache::counters().
  void count_cache(const whycache::Counters& before, const whycache::Counters& now);

  // Returns all counts.
  std::string counts() const;

 private:
  static constexpr std::array<const char*, 5> routes = {"flags", "catalogue", "health", "metrics",
                                                        "other"};
  // Statuses that no route answers are counted as 0.
  static constexpr std::array<int, 13> statuses = {200, 400, 404, 409, 412, 413, 422,
                                                   428, 500, 503, 504, 507, 0};
  static constexpr std::size_t cache_counter_count = 10;

  Metrics() = default;

  struct Route {
    std::array<std::atomic<std::uint64_t>, statuses.size()> requests;
    std::atomic<std::uint64_t> time_ns;
  };
  std::array<Route, routes.size()> routes_{};
  std::array<std::atomic<std::uint64_t>, cache_counter_count> cache_counters_{};
};

// Returns what the state of this machine is like.
std::string gauges(const whycache::Stats& stats);

}  // namespace service
