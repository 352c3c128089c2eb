#include "metrics.h"

#include <sys/mman.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <new>
#include <system_error>

namespace service {
namespace {

using whycache::Counters;

struct CacheCounter {
  const char* name;
  std::uint64_t Counters::*member;
};
constexpr std::array cache_counters = {
    CacheCounter{"updates_applied", &Counters::updates_applied},
    CacheCounter{"updates_written", &Counters::updates_written},
    CacheCounter{"append_conflicts", &Counters::append_conflicts},
    CacheCounter{"log_retries", &Counters::log_retries},
    CacheCounter{"rebuilds_behind_base", &Counters::rebuilds_behind_base},
    CacheCounter{"rebuilds_diverged", &Counters::rebuilds_diverged},
    CacheCounter{"rebuilds_replaced", &Counters::rebuilds_replaced},
    CacheCounter{"rebuilds_damaged", &Counters::rebuilds_damaged},
    CacheCounter{"rebuilds_to_shrink", &Counters::rebuilds_to_shrink},
    CacheCounter{"recoveries", &Counters::recoveries},
};

std::string seconds(std::chrono::nanoseconds time) {
  std::array<char, 32> text{};
  std::snprintf(text.data(), text.size(), "%.6f", std::chrono::duration<double>(time).count());
  return text.data();
}

void add_type(std::string& text, const std::string& name, const char* type) {
  text += "# TYPE " + name + ' ' + type + '\n';
}

void add_metric(std::string& text, const std::string& name, const char* type,
                const std::string& value) {
  add_type(text, name, type);
  text += name + ' ' + value + '\n';
}

}  // namespace

Metrics& Metrics::create_shared() {
  static_assert(std::atomic<std::uint64_t>::is_always_lock_free);
  static_assert(cache_counters.size() == cache_counter_count);
  void* const memory =
      ::mmap(nullptr, sizeof(Metrics), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) throw std::system_error(errno, std::generic_category(), "mmap");
  return *new (memory) Metrics;
}

void Metrics::count_request(std::string_view path, int status, std::chrono::nanoseconds time) {
  if (path.starts_with('/')) path.remove_prefix(1);  // it is empty if the request was malformed
  const std::string_view first = path.substr(0, path.find('/'));
  std::size_t route = 0;
  while (route + 1 < routes.size() && first != routes.at(route)) ++route;
  std::size_t code = 0;
  while (code + 1 < statuses.size() && status != statuses.at(code)) ++code;
  routes_.at(route).requests.at(code).fetch_add(1, std::memory_order_relaxed);
  routes_.at(route).time_ns.fetch_add(static_cast<std::uint64_t>(time.count()),
                                      std::memory_order_relaxed);
}

void Metrics::count_cache(const Counters& before, const Counters& now) {
  for (std::size_t i = 0; i < cache_counters.size(); ++i) {
    const auto member = cache_counters.at(i).member;
    cache_counters_.at(i).fetch_add(now.*member - before.*member, std::memory_order_relaxed);
  }
}

std::string Metrics::counts() const {
  std::string text;
  add_type(text, "service_requests_total", "counter");
  for (std::size_t i = 0; i < routes.size(); ++i) {
    for (std::size_t j = 0; j < statuses.size(); ++j) {
      const std::uint64_t count = routes_.at(i).requests.at(j).load(std::memory_order_relaxed);
      if (count == 0) continue;
      text += std::string("service_requests_total{route=\"") + routes.at(i) + "\",status=\"" +
              std::to_string(statuses.at(j)) + "\"} " + std::to_string(count) + '\n';
    }
  }
  add_type(text, "service_request_seconds_total", "counter");
  for (std::size_t i = 0; i < routes.size(); ++i) {
    const std::chrono::nanoseconds time(routes_.at(i).time_ns.load(std::memory_order_relaxed));
    text += std::string("service_request_seconds_total{route=\"") + routes.at(i) + "\"} " +
            seconds(time) + '\n';
  }
  for (std::size_t i = 0; i < cache_counters.size(); ++i) {
    add_metric(text, std::string("whycache_") + cache_counters.at(i).name + "_total", "counter",
               std::to_string(cache_counters_.at(i).load(std::memory_order_relaxed)));
  }
  return text;
}

std::string gauges(const whycache::Stats& stats) {
  std::string text;
  const auto gauge = [&](const char* name, const std::string& value) {
    add_metric(text, std::string("whycache_") + name, "gauge", value);
  };
  const bool was_asked = stats.staleness != std::chrono::nanoseconds::max();
  gauge("applied_id", std::to_string(stats.applied_id));
  gauge("known_head", std::to_string(stats.known_head));
  gauge("lag", std::to_string(stats.lag));
  gauge("staleness_seconds", was_asked ? seconds(stats.staleness) : "+Inf");
  gauge("log_up", stats.log_is_up ? "1" : "0");
  gauge("items", std::to_string(stats.item_count));
  gauge("item_bytes", std::to_string(stats.item_bytes));
  gauge("state_file_bytes", std::to_string(stats.file_bytes));
  return text;
}

}  // namespace service
