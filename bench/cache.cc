// whycache::Cache itself, which also checks that it is not closed and that the process is not a
// forked child. Workloads:
//
//   cache_get_uniform  Cache::get into a reused string, keys drawn uniformly
//   update_fresh       Cache::update() within staleness_max, as a program calls it before each read
//
// Figures are nanoseconds of processor time per call. The log is in memory; neither workload
// contacts it.
#include <whycache/cache.h>

#include <chrono>
#include <string>

#include "bench/clock.h"
#include "bench/data.h"
#include "bench/program.h"
#include "bench/report.h"
#include "bench/runner.h"
#include "bench/temporary_directory.h"
#include "bench/workload.h"

namespace bench {
namespace {

struct CacheStore {
  bool get(std::string_view key, std::string& value) const { return cache.get(key, value); }
  whycache::Cache& cache;
};

void fill(whycache::Cache& cache, const RandomOrder& order) {
  WriteBatch batch;
  for (std::size_t first = 0; first < order.size(); first += items_per_update) {
    batch.fill(order, first, items_per_update, 1);
    cache.set_multi(batch.items());
  }
}

double cache_get_ns(whycache::Cache& cache, const ReadSequence& reads) {
  CacheStore store{cache};
  const double begin = thread_cpu_time_ns();
  const ReadChecksum seen = run(ReadLoop::get, store, reads.keys());
  const double took = thread_cpu_time_ns() - begin;
  if (seen != reads.expected(1, reads.keys().size()))
    throw std::runtime_error("the cache read something wrong");
  return took / static_cast<double>(reads.keys().size());
}

double update_fresh_ns(whycache::Cache& cache, std::size_t times) {
  const std::uint64_t applied = cache.update();
  std::uint64_t sum = 0;
  const double begin = thread_cpu_time_ns();
  for (std::size_t i = 0; i < times; ++i)
    sum += cache.update({.staleness_max = std::chrono::hours(1)});
  const double took = thread_cpu_time_ns() - begin;
  if (sum != applied * times) throw std::runtime_error("update() returned something wrong");
  return took / static_cast<double>(times);
}

void measure(const BenchmarkOptions& options, std::uint64_t items, Report& report) {
  const TemporaryDirectory directory(options.directory);
  whycache::Cache cache("memory:", {.state_path = directory.path() + "/state"});
  fill(cache, RandomOrder(items, 1));
  const ReadSequence reads = ReadSequence::uniform(items, options.reads);
  // The first round is a warm-up.
  for (int repetition = -1; repetition < options.repetitions; ++repetition) {
    stop_if_interrupted();
    const double get_ns = cache_get_ns(cache, reads);
    const double update_ns = update_fresh_ns(cache, options.reads);
    if (repetition < 0) continue;
    if (options.wants("cache_get_uniform"))
      report.add("cache_get_uniform", items, "whycache", "ns", get_ns);
    if (options.wants("update_fresh"))
      report.add("update_fresh", items, "whycache", "ns", update_ns);
  }
  report.print("cache_get_uniform", items);
  report.print("update_fresh", items);
}

Program program = {.description = "The public cache object; described at the top of bench/cache.cc",
                   .workloads = {"cache_get_uniform", "update_fresh"},
                   .measure = measure};

}  // namespace
}  // namespace bench

int main(int argument_count, char** arguments) {
  return bench::program.run(argument_count, arguments);
}
