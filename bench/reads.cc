// whycache beside its rivals, on one thread. Workloads:
//
// - load: new keys in random order, in updates of 1,000
// - bytes_per_item: what the subject takes after that, in files and on the heap, of which 115 are
// payload
// - get_uniform: copying get into a kept string, keys drawn uniformly
// - get_new_uniform: the same, into a new string: `auto value = cache.get(key)`
// - get_serial: as get_uniform, but the next key depends on the previous value
// - get_zipf: the same as get_uniform, keys drawn by zipf 0.99
// - get_mixed: the same as get_uniform, but one key in ten is absent
// - get_miss: get of absent keys
// - view_get_uniform: get without copying, the first 8 bytes read
// - get_multi_uniform: copying get of 32 keys at once
// - get_multi_zipf: the same, keys drawn by zipf 0.99
// - scan_items: all keys and values, in key order
// - scan_keys: all keys, in key order
// - get_value_10, get_value_1000, get_value_10000, get_value_100000: get_uniform with values of
// that many bytes, of as many items as fit into 2 GB
// - get_value_varied_66, get_value_varied_787: the same, and sizes vary from half of it to one and
// a half, so that no read has the size of the one before
// - get_key_7, get_key_40, get_key_200: get_uniform with keys of that many bytes
// - open: from nothing open until the first get has returned
// - overwrite: every key once, in random order, in updates of 1,000
// - bytes_per_item_overwritten: what the subject takes after five rounds of overwrite
//
// Figures are nanoseconds (microseconds for open) per item, key or call, or bytes. Time is
// processor time, but wall time for subjects that talk to a server, which also read fewer keys. The
// subjects take turns within every repetition, so that a disturbance of the machine slows all of
// them down. README.md says more.
#include <algorithm>
#include <iterator>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "bench/data.h"
#include "bench/item_shapes.h"
#include "bench/program.h"
#include "bench/report.h"
#include "bench/runner.h"

namespace bench {
namespace {

constexpr int overwrite_rounds = 5;

class Benchmark {
 public:
  Benchmark(const BenchmarkOptions& options, std::uint64_t items, Report& report)
      : options_(options),
        items_(items),
        report_(report),
        order_(items, 1),
        kinds_(options.kinds_to_measure()) {}

  void run() {
    for (const ItemShape& shape : item_shapes) measure_shape(shape);
    if (only_shapes()) return;
    measure_load();
    measure_reads("get_uniform", ReadLoop::get,
                  [&] { return ReadSequence::uniform(items_, options_.reads); });
    measure_reads("get_new_uniform", ReadLoop::get_new,
                  [&] { return ReadSequence::uniform(items_, options_.reads); });
    measure_reads("get_serial", ReadLoop::get_serial,
                  [&] { return ReadSequence::uniform(items_, options_.reads); });
    measure_reads("get_zipf", ReadLoop::get,
                  [&] { return ReadSequence::zipf(order_, options_.reads); });
    measure_reads("get_mixed", ReadLoop::get,
                  [&] { return ReadSequence::mixed(items_, options_.reads); });
    measure_reads("get_miss", ReadLoop::get_miss,
                  [&] { return ReadSequence::missing(items_, options_.reads); });
    measure_reads("view_get_uniform", ReadLoop::view_get,
                  [&] { return ReadSequence::uniform(items_, options_.reads); });
    measure_reads("get_multi_uniform", ReadLoop::get_multi,
                  [&] { return ReadSequence::uniform(items_, options_.reads); });
    measure_reads("get_multi_zipf", ReadLoop::get_multi,
                  [&] { return ReadSequence::zipf(order_, options_.reads); });
    measure_reads("scan_items", ReadLoop::scan_items, [&] { return ReadSequence::all(items_); });
    measure_reads("scan_keys", ReadLoop::scan_keys, [&] { return ReadSequence::all(items_); });
    measure_open();
    measure_overwrite();
  }

 private:
  bool wanted(const std::string& workload) const { return options_.wants(workload); }

  void add(const std::string& workload, Runner& runner, const std::string& unit, double figure) {
    report_.add(workload, items_, runner.name(), unit, figure);
  }

  // Fills every subject. The runners filled last are those that are read.
  void measure_load() {
    const bool measured = wanted("load");
    std::vector<std::unique_ptr<Runner>> filled(kinds_.size());
    for (int repetition = 0; repetition < (measured ? options_.repetitions : 1); ++repetition) {
      for (std::size_t i = 0; i < kinds_.size(); ++i) {
        if (filled[i] && !filled[i]->subject().measures_writes()) continue;
        filled[i].reset();
        filled[i] = std::make_unique<Runner>(kinds_[i], options_.directory, items_);
        const double figure = filled[i]->write(order_, 1);
        if (!filled[i]->subject().measures_writes()) continue;
        if (measured) add("load", *filled[i], "ns", figure);
        if (wanted("bytes_per_item"))
          add("bytes_per_item", *filled[i], "bytes", filled[i]->bytes_per_item(items_));
      }
    }
    runners_ = std::move(filled);
    report_.print("load", items_);
    report_.print("bytes_per_item", items_);
  }

  // Whether no workload reads the items of data.h.
  bool only_shapes() const {
    const auto is_shape = [](const std::string& workload) {
      return std::any_of(std::begin(item_shapes), std::end(item_shapes),
                         [&](const ItemShape& shape) { return workload == shape.workload; });
    };
    return !options_.only.empty() &&
           std::all_of(options_.only.begin(), options_.only.end(), is_shape);
  }

  void measure_shape(const ItemShape& shape) {
    if (!wanted(shape.workload)) return;
    const std::uint64_t items = shape.item_count(items_);
    std::vector<std::unique_ptr<Runner>> runners;
    for (const SubjectKind& kind : kinds_) {
      runners.push_back(
          std::make_unique<Runner>(kind, options_.directory, shape.items_to_reserve(items)));
      if (!runners.back()->subject().measures_writes()) {
        runners.pop_back();
        continue;
      }
      fill_shape(*runners.back(), shape, items);
    }
    const ShapedReads reads(shape, items, shape.read_count(options_.reads));
    // The first round warms up.
    for (int repetition = -1; repetition < options_.repetitions; ++repetition) {
      for (const std::unique_ptr<Runner>& runner : runners) {
        const std::span<const std::string_view> keys = runner->keys_to_read(reads.keys());
        const double figure =
            runner->read(ReadLoop::get, keys, reads.expected(keys.size()), shape.workload);
        if (repetition >= 0) report_.add(shape.workload, items, runner->name(), "ns", figure);
      }
    }
    report_.print(shape.workload, items);
  }

  static void fill_shape(Runner& runner, const ItemShape& shape, std::uint64_t items) {
    const RandomOrder order(items, 1);
    for (std::size_t first = 0; first < items; first += shape.items_per_update()) {
      stop_if_interrupted();
      std::vector<std::string> bytes;  // key, value, key, value ...
      for (std::size_t i = first;
           i < std::min<std::size_t>(items, first + shape.items_per_update()); ++i) {
        bytes.push_back(shape.key(order[i]));
        bytes.push_back(shape.value(order[i]));
      }
      std::vector<Item> batch;
      for (std::size_t i = 0; i < bytes.size(); i += 2) batch.push_back({bytes[i], bytes[i + 1]});
      runner.set(batch);
    }
    runner.finish_writing();
  }

  template <typename MakeReads>
  void measure_reads(const std::string& workload, ReadLoop loop, const MakeReads& make_reads) {
    if (!wanted(workload)) return;
    const ReadSequence reads = make_reads();
    // The first round warms up.
    for (int repetition = -1; repetition < options_.repetitions; ++repetition) {
      for (const std::unique_ptr<Runner>& runner : runners_) {
        if (!runner->subject().supports(loop)) continue;
        const double figure = runner->read(loop, reads, workload);
        if (repetition >= 0) add(workload, *runner, "ns", figure);
      }
    }
    report_.print(workload, items_);
  }

  void measure_open() {
    if (!wanted("open")) return;
    const ReadSequence reads = ReadSequence::uniform(items_, 1000);
    for (int repetition = 0; repetition < options_.repetitions; ++repetition) {
      for (const std::unique_ptr<Runner>& runner : runners_) {
        if (!runner->subject().can_reopen()) continue;
        add("open", *runner, "us",
            runner->open_us(
                reads.keys()[static_cast<std::size_t>(repetition) % reads.keys().size()]));
      }
    }
    report_.print("open", items_);
  }

  void measure_overwrite() {
    const bool measured = wanted("overwrite");
    const bool bytes_wanted = wanted("bytes_per_item_overwritten");
    if (!measured && !bytes_wanted) return;
    const int rounds =
        std::max(measured ? options_.repetitions : 0, bytes_wanted ? overwrite_rounds : 0);
    for (int round = 1; round <= rounds; ++round) {
      const RandomOrder order(items_, 10 + static_cast<std::uint64_t>(round));
      for (const std::unique_ptr<Runner>& runner : runners_) {
        if (!runner->subject().measures_writes()) continue;
        const double figure = runner->write(order, static_cast<std::uint64_t>(round) + 1);
        if (measured) add("overwrite", *runner, "ns", figure);
        if (bytes_wanted && round == overwrite_rounds) {
          add("bytes_per_item_overwritten", *runner, "bytes", runner->bytes_per_item(items_));
        }
      }
    }
    // Checks that each subject kept the newest values.
    const ReadSequence reads = ReadSequence::uniform(items_, options_.reads);
    for (const std::unique_ptr<Runner>& runner : runners_) {
      if (runner->subject().measures_writes()) runner->read(ReadLoop::get, reads, "overwrite");
    }
    report_.print("overwrite", items_);
    report_.print("bytes_per_item_overwritten", items_);
  }

  const BenchmarkOptions& options_;
  std::uint64_t items_;
  Report& report_;
  RandomOrder order_;
  std::vector<SubjectKind> kinds_;
  std::vector<std::unique_ptr<Runner>> runners_;
};

Program program = {
    .description =
        "Measures whycache beside its rivals; the workloads are described at the top of "
        "bench/reads.cc",
    .workloads = {"load",
                  "bytes_per_item",
                  "get_uniform",
                  "get_new_uniform",
                  "get_serial",
                  "get_zipf",
                  "get_mixed",
                  "get_miss",
                  "view_get_uniform",
                  "get_multi_uniform",
                  "get_multi_zipf",
                  "scan_items",
                  "scan_keys",
                  "get_value_10",
                  "get_value_1000",
                  "get_value_10000",
                  "get_value_100000",
                  "get_value_varied_66",
                  "get_value_varied_787",
                  "get_key_7",
                  "get_key_40",
                  "get_key_200",
                  "open",
                  "overwrite",
                  "bytes_per_item_overwritten"},
    .measure = [](const BenchmarkOptions& options, std::uint64_t items, Report& report) {
      Benchmark(options, items, report).run();
    }};

}  // namespace
}  // namespace bench

int main(int argument_count, char** arguments) {
  return bench::program.run(argument_count, arguments);
}
