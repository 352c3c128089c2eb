// Measures what a feed of all changes costs the process that it watches. That process writes to a
// log in files or SQLite at full speed, with keys among --items, and times some gets after each
// write. Workloads:
//
//   write_without_ring  keeps no ring of changes
//   write               keeps one
//   write_watched       keeps one, and another process reads a feed of it
//
// and get_without_ring_p99, get_p99 and get_watched_p99: nanoseconds of wall time of one get, a
// reading of the clock included.
//
// Each measurement has a directory, a log and a state of its own, which begin empty; its first
// writes are not counted. Each repetition begins with another workload, so that none profits from
// its place. Ratios are medians of the ratios within each repetition. It is an error if the feed
// misses an update, has one twice, or resets.
#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <whycache/cache.h>

#include "bench/child.h"
#include "bench/clock.h"
#include "bench/program.h"
#include "bench/temporary_directory.h"

namespace bench {
namespace {

using Clock = std::chrono::steady_clock;
using whycache::Cache;
using whycache::FeedChange;
using whycache::Options;
using whycache::UpdateId;

struct Workload {
  const char* name;
  const char* get_name;
  std::uint64_t ring_bytes;
  bool is_watched;
};

constexpr std::uint64_t ring_bytes_of_default = std::uint64_t{16} << 20;
constexpr std::array workloads{
    Workload{"write_without_ring", "get_without_ring_p99", 0, false},
    Workload{"write", "get_p99", ring_bytes_of_default, false},
    Workload{"write_watched", "get_watched_p99", ring_bytes_of_default, true}};

struct Watched {
  std::atomic<bool> is_ready{false};
  std::atomic<UpdateId> last_id{0};
  std::atomic<std::uint64_t> updates{0};
  std::atomic<std::uint64_t> resets{0};
};

Cache open(const std::string& scheme, const std::string& directory, const Workload& workload) {
  Options options;
  options.state_path = directory + "/state";
  options.changes_bytes = workload.ring_bytes;
  return Cache(scheme + "://" + directory + "/log", options);
}

// The process that watches: counts the updates beyond `first`, each of which has one change.
void watch(const Cache& cache, UpdateId first, Watched& watched) {
  whycache::Changes changes = cache.changes(first);
  watched.is_ready = true;
  while (const std::optional<FeedChange> change = changes.next()) {
    (change->kind == FeedChange::Kind::reset ? watched.resets : watched.updates)
        .fetch_add(1, std::memory_order_relaxed);
    watched.last_id.store(change->id, std::memory_order_release);
  }
}

// Waits until the watcher has seen the last update. Throws std::runtime_error unless it has seen
// each update once.
void check_watched(Child& watcher, const Watched& watched, UpdateId first, UpdateId last) {
  const auto give_up_at = Clock::now() + std::chrono::seconds(60);
  while (watched.last_id.load(std::memory_order_acquire) < last && Clock::now() < give_up_at) {
    watcher.throw_if_failed();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  if (watched.resets == 0 && watched.updates == last - first) return;
  throw std::runtime_error(fmt::format(
      "the feed did not have each update once: updates={} seen={} resets={} last={} last_seen={}",
      last - first, watched.updates.load(), watched.resets.load(), last, watched.last_id.load()));
}

struct Figures {
  double writes_per_second = 0;
  double get_p99_ns = 0;
};

// Writes, and times gets of keys that were written.
class TimedWriter {
 public:
  TimedWriter(Cache& cache, std::uint64_t items) : cache_(cache), items_(items) {}

  void write_and_get() {
    cache_.set("key" + std::to_string(count_++ % items_), value_);
    for (int i = 0; i < gets_per_write; ++i) {
      const std::string key = "key" + std::to_string(random_() % std::min(count_, items_));
      const double began_ns = monotonic_time_ns();
      const bool is_found = cache_.get(key, found_);
      get_ns_.push_back(monotonic_time_ns() - began_ns);
      if (!is_found) throw std::runtime_error("a key that was written is missing");
    }
  }
  Figures write_for(double seconds) {
    for (std::uint64_t i = 0; i < warm_up_writes; ++i) write_and_get();
    get_ns_.clear();
    count_ = 0;
    const double began_ns = monotonic_time_ns();
    double passed_s = 0;
    while (passed_s < seconds) {
      for (int i = 0; i < 64; ++i) write_and_get();
      passed_s = (monotonic_time_ns() - began_ns) / 1e9;
    }
    const auto p99 = get_ns_.begin() + static_cast<std::ptrdiff_t>(get_ns_.size() * 99 / 100);
    std::nth_element(get_ns_.begin(), p99, get_ns_.end());
    return {static_cast<double>(count_) / passed_s, *p99};
  }

 private:
  static constexpr int gets_per_write = 8;
  static constexpr std::uint64_t warm_up_writes = 500;

  Cache& cache_;
  const std::uint64_t items_;
  const std::string value_ = std::string(100, 'v');
  std::uint64_t count_ = 0;
  std::string found_;
  std::vector<double> get_ns_;
  std::mt19937_64 random_{1};
};

Figures write_for(double seconds, std::uint64_t items, const std::string& scheme,
                  const std::string& parent_directory, const Workload& workload) {
  const TemporaryDirectory directory(parent_directory);
  Cache cache = open(scheme, directory.path(), workload);
  const UpdateId first = cache.set("key0", "");
  const SharedWithChildren<Watched> watched;
  std::optional<Child> watcher;
  if (workload.is_watched) {
    watcher.emplace([&] {
      const Cache own = open(scheme, directory.path(), workload);
      watch(own, first, *watched);
    });
  }
  while (watcher && !watched->is_ready) {
    watcher->throw_if_failed();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const Figures figures = TimedWriter(cache, items).write_for(seconds);
  if (watcher) check_watched(*watcher, *watched, first, cache.applied_id());
  return figures;
}

double seconds_of_a_measurement = 1;

void print_ratio(const Report& report, const std::string& scheme, std::uint64_t items,
                 const char* workload, const char* what, const char* bar) {
  const std::optional<double> ratio = report.median(workload, items, scheme);
  fmt::print("  {:<8}{:<44}{:>7.2f} x   {}\n", scheme, what, ratio.value_or(0), bar);
}

void measure(const BenchmarkOptions& options, std::uint64_t items, Report& report) {
  const std::array<std::string, 2> schemes{"file", "sqlite"};
  for (const std::string& scheme : schemes) {
    for (int repetition = 0; repetition < options.repetitions; ++repetition) {
      std::array<Figures, workloads.size()> figures;
      for (std::size_t i = 0; i < workloads.size(); ++i) {
        stop_if_interrupted();
        const std::size_t turn = (static_cast<std::size_t>(repetition) + i) % workloads.size();
        const Workload& workload = workloads.at(turn);
        figures.at(turn) =
            write_for(seconds_of_a_measurement, items, scheme, options.directory, workload);
        report.add(workload.name, items, scheme, "writes/s", figures.at(turn).writes_per_second);
        report.add(workload.get_name, items, scheme, "ns", figures.at(turn).get_p99_ns);
      }
      const auto& [without_ring, alone, beside_watcher] = figures;
      report.add("write_to_without_ring", items, scheme, "x",
                 alone.writes_per_second / without_ring.writes_per_second);
      report.add("write_watched_to_write", items, scheme, "x",
                 beside_watcher.writes_per_second / alone.writes_per_second);
      report.add("get_watched_p99_to_get_p99", items, scheme, "x",
                 beside_watcher.get_p99_ns / alone.get_p99_ns);
    }
  }
  for (const Workload& workload : workloads) report.print(workload.name, items);
  for (const Workload& workload : workloads) report.print(workload.get_name, items);
  fmt::print("\n");
  for (const std::string& scheme : schemes) {
    print_ratio(report, scheme, items, "write_to_without_ring", "writes, of those without a ring",
                "");
    print_ratio(report, scheme, items, "write_watched_to_write",
                "writes, of those without a watcher", "at least 0.9");
    print_ratio(report, scheme, items, "get_watched_p99_to_get_p99",
                "p99 of get, of that without a watcher", "0.9 to 1.1");
  }
  std::fflush(stdout);
}

}  // namespace
}  // namespace bench

int main(int argument_count, char** arguments) {
  bench::Program program{.description = "What a feed of all changes costs the writer.",
                         .workloads = {"write_without_ring", "write", "write_watched"},
                         .options = {},
                         .measure = bench::measure,
                         .own_options = {{"--seconds", &bench::seconds_of_a_measurement,
                                          "of each measurement (1)", 0.01, 3600}}};
  program.options.items = {100'000};
  return program.run(argument_count, arguments);
}
