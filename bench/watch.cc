// Measures what a feed of all changes costs the writer that it watches. A process writes to a log
// in files or SQLite at full speed, with keys among --items. Workloads:
//
//   write_without_ring  keeps no ring of changes
//   write               keeps one
//   write_watched       keeps one, and another process reads a feed of it
//
// Each measurement has a directory, a log and a state of its own, which begin empty. Each
// repetition begins with another workload, so that none profits from its place. It is an error if
// the feed misses an update, has one twice, or resets.
#include <fmt/format.h>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>

#include <whycache/cache.h>

#include "bench/child.h"
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
  std::uint64_t ring_bytes;
  bool is_watched;
};

constexpr std::uint64_t ring_bytes_of_default = std::uint64_t{16} << 20;
constexpr std::array workloads{Workload{"write_without_ring", 0, false},
                               Workload{"write", ring_bytes_of_default, false},
                               Workload{"write_watched", ring_bytes_of_default, true}};

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

// Returns the writes per second.
double write_for(double seconds, std::uint64_t items, const std::string& scheme,
                 const std::string& parent_directory, const Workload& workload) {
  const TemporaryDirectory directory(parent_directory);
  Cache cache = open(scheme, directory.path(), workload);
  const std::string value(100, 'v');
  const UpdateId first = cache.set("key0", value);
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
  const auto began = Clock::now();
  std::uint64_t count = 0;
  double passed = 0;
  while (passed < seconds) {
    for (int i = 0; i < 64; ++i) cache.set("key" + std::to_string(count++ % items), value);
    passed = std::chrono::duration<double>(Clock::now() - began).count();
  }
  if (watcher) check_watched(*watcher, *watched, first, cache.applied_id());
  return static_cast<double>(count) / passed;
}

double seconds_of_a_measurement = 1;

void measure(const BenchmarkOptions& options, std::uint64_t items, Report& report) {
  for (const std::string scheme : {"file", "sqlite"}) {
    for (int repetition = 0; repetition < options.repetitions; ++repetition) {
      for (std::size_t i = 0; i < workloads.size(); ++i) {
        stop_if_interrupted();
        const auto turn = static_cast<std::size_t>(repetition) + i;
        const Workload& workload = workloads.at(turn % workloads.size());
        report.add(workload.name, items, scheme, "writes/s",
                   write_for(seconds_of_a_measurement, items, scheme, options.directory, workload));
      }
    }
  }
  for (const Workload& workload : workloads) report.print(workload.name, items);
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
