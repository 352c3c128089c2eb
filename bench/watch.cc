// What a feed of all changes costs the writer that it watches. A process writes to a log
// in files or SQLite at full speed, with keys among --items. In turn it keeps no ring, keeps one,
// and is watched by another process, which must see every update.
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include <whycache/cache.h>

#include "bench/program.h"
#include "bench/temporary_directory.h"

namespace bench {
namespace {

using Clock = std::chrono::steady_clock;
using whycache::Cache;
using whycache::FeedChange;
using whycache::Options;
using whycache::UpdateId;

// What the watching process reports, in memory that both share.
struct Watched {
  std::atomic<std::uint64_t> last_id{0};
  std::atomic<std::uint64_t> updates{0};
  std::atomic<std::uint64_t> resets{0};
};

struct Place {
  std::string log;
  std::string state;
  std::uint64_t ring_bytes;
};

Options options_at(const Place& place) {
  Options options;
  options.state_path = place.state;
  options.changes_bytes = place.ring_bytes;
  return options;
}

pid_t start_watcher(const Place& place, Watched& watched) {
  const pid_t child = ::fork();
  if (child != 0) return child;
  const Cache cache(place.log, options_at(place));
  for (const FeedChange& change : cache.changes(cache.applied_id())) {
    (change.kind == FeedChange::Kind::reset ? watched.resets : watched.updates)
        .fetch_add(1, std::memory_order_relaxed);
    watched.last_id.store(change.id, std::memory_order_release);
  }
  ::_exit(1);
}

// Returns the writes per second.
double write_for(const Place& place, double seconds, std::uint64_t items, bool with_watcher,
                 std::uint64_t& missed) {
  void* const memory =
      ::mmap(nullptr, sizeof(Watched), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  auto& watched = *new (memory) Watched;
  Cache cache(place.log, options_at(place));
  const std::string value(100, 'v');
  cache.set("key0", value);
  const UpdateId first = cache.applied_id();
  const pid_t watcher = with_watcher ? start_watcher(place, watched) : 0;
  if (with_watcher) ::usleep(200'000);
  const auto began = Clock::now();
  std::uint64_t count = 0;
  double passed = 0;
  while (passed < seconds) {
    for (int i = 0; i < 64; ++i) cache.set("key" + std::to_string(count++ % items), value);
    passed = std::chrono::duration<double>(Clock::now() - began).count();
  }
  const UpdateId last = cache.applied_id();
  if (with_watcher) {
    const auto give_up = Clock::now() + std::chrono::seconds(30);
    while (watched.last_id.load(std::memory_order_acquire) < last && Clock::now() < give_up)
      ::usleep(10'000);
    const std::uint64_t seen = watched.updates.load();
    missed += watched.resets.load() > 0 || last - first < seen ? 0 : last - first - seen;
    ::kill(watcher, SIGKILL);
    ::waitpid(watcher, nullptr, 0);
  }
  ::munmap(memory, sizeof(Watched));
  return static_cast<double>(count) / passed;
}

double seconds_of_a_measurement = 1;

void measure(const BenchmarkOptions& options, std::uint64_t items, Report& report) {
  const TemporaryDirectory directory(options.directory);
  std::uint64_t missed = 0;
  for (const std::string scheme : {"file", "sqlite"}) {
    const auto add = [&](const char* workload, const Place& place, bool with_watcher) {
      stop_if_interrupted();
      report.add(workload, items, scheme, "writes/s",
                 write_for(place, seconds_of_a_measurement, items, with_watcher, missed));
    };
    for (int repetition = 0; repetition < options.repetitions; ++repetition) {
      const std::string name = directory.path() + "/" + scheme + std::to_string(repetition);
      std::filesystem::create_directory(name);
      const std::string log = scheme == "file" ? "file://" + name : "sqlite://" + name + "/log.db";
      const Place place{log, name + "/ring.state", std::uint64_t{16} << 20};
      add("write_without_ring", {log, name + "/bare.state", 0}, false);
      const bool watched_first = repetition % 2 == 1;
      for (const bool with_watcher : {watched_first, !watched_first})
        add(with_watcher ? "write_watched" : "write", place, with_watcher);
      std::filesystem::remove_all(name);
    }
  }
  for (const char* const workload : {"write_without_ring", "write", "write_watched"})
    report.print(workload, items);
  if (missed > 0) throw std::runtime_error("a feed missed updates: " + std::to_string(missed));
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
