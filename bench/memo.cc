// The cost of a hit in a Memo, beside a get of the same value. Values have 100 bytes, keys 15, in
// random order, by one thread. --reads is the number of calls of a measurement.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <whycache/cache.h>
#include <whycache/memo.h>

#include "bench/program.h"
#include "bench/temporary_directory.h"

namespace bench {
namespace {

// Returns the nanoseconds of a call, for `reads` calls.
template <typename Call>
double nanoseconds_per_call(const std::vector<std::string>& keys, std::size_t reads,
                            const Call& call) {
  const auto began = std::chrono::steady_clock::now();
  for (std::size_t i = 0; i < reads; ++i) call(keys[i % keys.size()]);
  const auto passed = std::chrono::steady_clock::now() - began;
  return std::chrono::duration<double, std::nano>(passed).count() / static_cast<double>(reads);
}

void measure(const BenchmarkOptions& options, std::uint64_t items, Report& report) {
  const TemporaryDirectory directory(options.directory);
  whycache::Cache cache("memory:bench_memo", {.state_path = directory.path() + "/memo.state"});
  const std::string value(100, 'v');
  std::vector<std::string> keys;
  for (std::uint64_t i = 0; i < items; ++i) keys.push_back(fmt::format("key/{:011}", i));
  std::vector<whycache::Item> values;
  for (const std::string& key : keys) values.push_back({key, value});
  cache.set_multi(values);
  std::shuffle(keys.begin(), keys.end(), std::mt19937_64(1));
  whycache::Memo<std::size_t> memo(cache, [](std::string_view bytes) { return bytes.size(); },
                                   {.entries_max = items});
  std::size_t sum = 0;
  std::string copy;
  const auto get = [&](const std::string& key) { sum += cache.get(key, copy) ? copy.size() : 0; };
  const auto hit = [&](const std::string& key) { sum += *memo.get(key); };
  for (const std::string& key : keys) hit(key);
  for (int repetition = 0; repetition < options.repetitions; ++repetition) {
    stop_if_interrupted();
    report.add("get", items, "whycache", "ns", nanoseconds_per_call(keys, options.reads, get));
    report.add("memo_hit", items, "whycache", "ns", nanoseconds_per_call(keys, options.reads, hit));
    // Each hit has to look for the version of its key again, once.
    cache.set("other", std::to_string(repetition));
    report.add("memo_hit_after_set", items, "whycache", "ns",
               nanoseconds_per_call(keys, std::min<std::size_t>(options.reads, items), hit));
  }
  if (memo.counters().decodes != items || sum == 0)
    throw std::runtime_error("keys were decoded more than once");
  for (const char* const workload : {"get", "memo_hit", "memo_hit_after_set"})
    report.print(workload, items);
  fmt::print(
      "\nmedian of memo_hit against get: {:.2f} x (at most 1.3)\n",
      *report.median("memo_hit", items, "whycache") / *report.median("get", items, "whycache"));
}

}  // namespace
}  // namespace bench

int main(int argument_count, char** arguments) {
  bench::Program program{.description = "The cost of a hit in a Memo.",
                         .workloads = {"get", "memo_hit", "memo_hit_after_set"},
                         .options = {},
                         .measure = bench::measure};
  program.options.items = {1'000};
  return program.run(argument_count, arguments);
}
