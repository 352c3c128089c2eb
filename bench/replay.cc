// The time until a machine without a state has all items. Workloads:
//
//   replay_large   all items, in updates of 1 MiB
//   replay_single  a tenth as many items, each in an update of its own
//
// Figures are milliseconds of wall time, from opening a cache without a state until it has applied
// the whole SQLite log. The number of items and the digest are compared with those of the cache
// that wrote them. `items` in the results is the number of replayed items.
#include <fmt/format.h>
#include <whycache/cache.h>

#include <string>

#include "bench/clock.h"
#include "bench/data.h"
#include "bench/program.h"
#include "bench/report.h"
#include "bench/temporary_directory.h"

namespace bench {
namespace {

// A log, and the number of items and the digest of a cache that has applied it.
class WrittenLog {
 public:
  WrittenLog(const std::string& directory, std::uint64_t items, bool singly)
      : items_(items),
        url_("sqlite://" + directory + "/log.db"),
        state_path_(directory + "/state") {
    const RandomOrder order(items, 1);
    whycache::Cache cache(url_, {.state_path = state_path_});
    const std::size_t together =
        singly ? 1 : 100'000;  // the cache splits them into updates of update_bytes_max, 1 MiB
    WriteBatch batch;
    for (std::size_t first = 0; first < order.size(); first += together) {
      if (first % 10'000 == 0) stop_if_interrupted();
      batch.fill(order, first, together, 1);
      cache.set_multi(batch.items());
    }
    head_ = cache.applied_id();
    digest_ = cache.digest();
    cache.delete_shared_state();
  }

  whycache::UpdateId head() const { return head_; }

  // Replays the whole log and returns the milliseconds it takes.
  double replay() const {
    const double begin = monotonic_time_ns();
    whycache::Cache cache(url_, {.state_path = state_path_});
    const whycache::UpdateId applied = cache.update();
    const double took = monotonic_time_ns() - begin;
    if (applied != head_ || cache.size() != items_ || cache.digest() != digest_) {
      throw std::runtime_error("replaying made something else");
    }
    cache.delete_shared_state();
    return took / 1e6;
  }

 private:
  std::uint64_t items_;
  std::string url_;
  std::string state_path_;
  whycache::UpdateId head_ = 0;
  whycache::Digest digest_;
};

void measure(const BenchmarkOptions& options, std::uint64_t items, Report& report) {
#if WHYCACHE_WITH_SQLITE
  const auto replay = [&](const std::string& workload, std::uint64_t count, bool singly) {
    if (!options.wants(workload)) return;
    const TemporaryDirectory directory(options.directory);
    const WrittenLog log(directory.path(), count, singly);
    fmt::print("{}: {} updates\n", workload, log.head());
    for (int repetition = 0; repetition < options.repetitions; ++repetition) {
      stop_if_interrupted();
      report.add(workload, count, "whycache", "ms", log.replay());
    }
    report.print(workload, count);
  };
  replay("replay_large", items, false);
  replay("replay_single", items / 10, true);
#else
  fmt::print("left out: replays (built without the sqlite: log)\n");
#endif
}

Program program = {
    .description = "A fresh machine applies a log; described at the top of bench/replay.cc",
    .workloads = {"replay_large", "replay_single"},
    .measure = measure};

}  // namespace
}  // namespace bench

int main(int argument_count, char** arguments) {
  return bench::program.run(argument_count, arguments);
}
