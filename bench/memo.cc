// The cost of a hit in a Memo, beside a get of the same value. Values have 100 bytes, keys 15, in
// random order, by one thread. --reads is the number of calls of a measurement.
//
// - get: copying get into a kept string
// - get_new: the same, into a new string: `auto value = cache.get(key)`
// - get_serial: as get, but the next key depends on the previous value
// - memo_hit: a hit, the object read
// - memo_hit_serial: the same, but the next key depends on the previous object
// - memo_hit_after_set: the first hit of each key after another key was set: it compares versions
// - shared_ptr_copy: the least that a hit can take: copies of `shared_ptr`s in an array, as many
// and in the same order, the object read
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include <whycache/cache.h>
#include <whycache/memo.h>

#include "bench/program.h"
#include "bench/temporary_directory.h"

namespace bench {
namespace {

constexpr std::size_t value_bytes = 100;

// Calls `call(i)` with each index below `items` in turn, `calls` times in all. It returns 0, which
// the compiler does not know. If `serial`, the next call depends on it. Returns the nanoseconds per
// call.
template <bool serial = false, typename Call>
double nanoseconds_per_call(std::size_t items, std::size_t calls, const Call& call) {
  std::size_t sum = 0;
  const auto began = std::chrono::steady_clock::now();
  for (std::size_t done = 0; done < calls;) {
    const std::size_t count = std::min(items, calls - done);
    for (std::size_t i = 0; i < count; ++i) {
      const std::size_t zero = call(i);
      if constexpr (serial) i += zero;
      sum += zero;
    }
    done += count;
  }
  const auto passed = std::chrono::steady_clock::now() - began;
  if (sum != 0) throw std::runtime_error("a value differs from what was set");
  return std::chrono::duration<double, std::nano>(passed).count() / static_cast<double>(calls);
}

// An object, and what a Memo has besides: here nothing.
struct Decoded {
  explicit Decoded(std::string_view value) : bytes(value.size()) {}
  std::size_t bytes;
};

// Copies of pointers that are found without a search.
class SharedPointers {
 public:
  SharedPointers(std::size_t items, std::mt19937_64 random) : order_(items) {
    for (std::size_t i = 0; i < items; ++i)
      pointers_.push_back(std::make_shared<const Decoded>(std::string(value_bytes, 'v')));
    std::iota(order_.begin(), order_.end(), 0);
    std::shuffle(order_.begin(), order_.end(), random);
  }
  std::shared_ptr<const Decoded> get(std::size_t i) const { return pointers_[order_[i]]; }

 private:
  std::vector<std::shared_ptr<const Decoded>> pointers_;
  std::vector<std::size_t> order_;
};

class MemoBenchmark {
 public:
  MemoBenchmark(const BenchmarkOptions& options, std::uint64_t items, Report& report)
      : options_(options),
        items_(items),
        report_(report),
        directory_(options.directory),
        cache_("memory:bench_memo", {.state_path = directory_.path() + "/memo.state"}),
        memo_(cache_, [](std::string_view bytes) { return Decoded(bytes); },
              {.entries_max = items}),
        pointers_(items, std::mt19937_64(1)) {
    const std::string value(value_bytes, 'v');
    for (std::uint64_t i = 0; i < items; ++i) keys_.push_back(fmt::format("key/{:011}", i));
    std::vector<whycache::Item> values;
    for (const std::string& key : keys_) values.push_back({key, value});
    cache_.set_multi(values);
    for (const std::string& key : keys_) static_cast<void>(memo_.get(key));
    std::shuffle(keys_.begin(), keys_.end(), std::mt19937_64(1));
  }

  void run() {
    for (int repetition = 0; repetition < options_.repetitions; ++repetition) {
      stop_if_interrupted();
      measure_gets();
      measure_hits(repetition);
    }
    if (memo_.counters().decodes != items_)
      throw std::runtime_error("keys were decoded more than once");
  }
  void print() const {
    for (const std::string& workload : workloads()) report_.print(workload, items_);
    fmt::print("\nratios of medians, {} keys\n", items_);
    print_ratio("memo_hit", "get");
    print_ratio("memo_hit", "get_new");
    print_ratio("memo_hit_serial", "get_serial");
    print_ratio("memo_hit", "shared_ptr_copy");
  }
  static std::vector<std::string> workloads() {
    return {"get",
            "get_new",
            "get_serial",
            "memo_hit",
            "memo_hit_serial",
            "memo_hit_after_set",
            "shared_ptr_copy"};
  }

 private:
  void add(const char* workload, double nanoseconds) {
    report_.add(workload, items_, "whycache", "ns", nanoseconds);
  }
  void measure_gets() {
    std::string value;
    const auto get = [&](std::size_t i) -> std::size_t {
      return cache_.get(keys_[i], value) ? value.back() - 'v' : 1;
    };
    add("get", nanoseconds_per_call(items_, options_.reads, get));
    add("get_serial", nanoseconds_per_call<true>(items_, options_.reads, get));
    add("get_new", nanoseconds_per_call(items_, options_.reads, [&](std::size_t i) {
          const auto found = cache_.get(keys_[i]);
          return found ? found->size() - value_bytes : 1;
        }));
  }
  void measure_hits(int repetition) {
    const auto hit = [&](std::size_t i) { return memo_.get(keys_[i])->bytes - value_bytes; };
    add("memo_hit", nanoseconds_per_call(items_, options_.reads, hit));
    add("memo_hit_serial", nanoseconds_per_call<true>(items_, options_.reads, hit));
    cache_.set("other", std::to_string(repetition));
    add("memo_hit_after_set",
        nanoseconds_per_call(items_, std::min<std::size_t>(options_.reads, items_), hit));
    add("shared_ptr_copy", nanoseconds_per_call(items_, options_.reads, [&](std::size_t i) {
          return pointers_.get(i)->bytes - value_bytes;
        }));
  }
  void print_ratio(const char* workload, const char* reference) const {
    fmt::print("{} against {}: {:.2f} x\n", workload, reference,
               *report_.median(workload, items_, "whycache") /
                   *report_.median(reference, items_, "whycache"));
  }

  const BenchmarkOptions& options_;
  const std::uint64_t items_;
  Report& report_;
  const TemporaryDirectory directory_;
  whycache::Cache cache_;
  whycache::Memo<Decoded> memo_;
  const SharedPointers pointers_;
  std::vector<std::string> keys_;
};

void measure(const BenchmarkOptions& options, std::uint64_t items, Report& report) {
  // In a process that has had one thread only, libstdc++ counts references without locked
  // instructions. Few programs that use a cache are such processes.
  std::jthread([] {}).join();
  MemoBenchmark benchmark(options, items, report);
  benchmark.run();
  benchmark.print();
}

}  // namespace
}  // namespace bench

int main(int argument_count, char** arguments) {
  bench::Program program{.description = "The cost of a hit in a Memo.",
                         .workloads = bench::MemoBenchmark::workloads(),
                         .options = {},
                         .measure = bench::measure};
  program.options.items = {1'000, 1'000'000};
  return program.run(argument_count, arguments);
}
