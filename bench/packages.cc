// Real items of real sizes: Debian's package index, as fetched by apt. Workloads:
//
//   get_packages             copying get of the description of a package, names drawn uniformly
//   view_get_packages        the same without copying, the first 8 bytes read
//   bytes_per_item_packages  bytes that the subject needs, in its files and on the heap
//
// Figures are nanoseconds of processor time (wall time for subjects that use a server), or bytes.
// The number of items depends on the machine, not on --items. If apt has no index, the program
// prints a message and measures nothing.
#include "demo/packages.h"

#include <algorithm>
#include <exception>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "bench/data.h"
#include "bench/program.h"
#include "bench/report.h"
#include "bench/runner.h"

namespace bench {
namespace {

// The names to read, in order, and the expected checksum.
struct NameReads {
  NameReads(const std::vector<Item>& items, std::size_t count, std::size_t first_count) {
    std::mt19937_64 random(2);
    std::uniform_int_distribution<std::size_t> draw(0, items.size() - 1);
    std::vector<std::size_t> sizes;
    for (std::size_t i = 0; i < count; ++i) {
      const Item& item = items[draw(random)];
      bytes += item.key;
      sizes.push_back(item.key.size());
      add_whole_to_checksum(expected_all, item.value);
      add_to_checksum(expected_view, item.value);
      if (i < first_count) add_whole_to_checksum(expected_first, item.value);
    }
    std::size_t begin = 0;
    for (const std::size_t size : sizes) {
      keys.push_back(std::string_view(bytes).substr(begin, size));
      begin += size;
    }
  }
  std::string bytes;
  std::vector<std::string_view> keys;
  ReadChecksum expected_all;
  ReadChecksum expected_first;  // of a prefix, for subjects that use a server
  ReadChecksum expected_view;   // of all, by a loop that does not copy
};

void write(Runner& runner, std::span<const Item> items) {
  while (!items.empty()) {
    const std::size_t count = std::min(items.size(), items_per_update);
    runner.set(items.first(count));
    items = items.subspan(count);
  }
  runner.finish_writing();
}

void measure_reads(const char* workload, ReadLoop loop, const NameReads& names,
                   std::span<const std::unique_ptr<Runner>> runners,
                   const BenchmarkOptions& options, std::size_t items, Report& report) {
  if (!options.wants(workload)) return;
  // The first round is a warm-up.
  for (int repetition = -1; repetition < options.repetitions; ++repetition) {
    for (const std::unique_ptr<Runner>& runner : runners) {
      if (!runner->subject().supports(loop)) continue;
      const std::span<const std::string_view> keys = runner->keys_to_read(names.keys);
      const ReadChecksum& expected_of_all =
          loop == ReadLoop::view_get ? names.expected_view : names.expected_all;
      const ReadChecksum& expected =
          keys.size() == names.keys.size() ? expected_of_all : names.expected_first;
      const double ns = runner->read(loop, keys, expected, workload);
      if (repetition >= 0) report.add(workload, items, runner->name(), "ns", ns);
    }
  }
}

void measure(const BenchmarkOptions& options, std::uint64_t /*items*/, Report& report) {
  std::vector<whycache::demo::Record> records;
  try {
    records = whycache::demo::read_package_index();
  } catch (const std::exception&) {
    fmt::print(
        "left out: get_packages (apt has no package index here; apt-get update fetches it)\n");
    return;
  }
  std::shuffle(records.begin(), records.end(), std::mt19937_64(1));
  std::vector<Item> items;
  for (const whycache::demo::Record& record : records) items.push_back({record.key, record.body});
  const NameReads names(items, options.reads, server_reads_max);

  std::vector<std::unique_ptr<Runner>> runners;
  for (const SubjectKind& kind : options.kinds_to_measure()) {
    runners.push_back(std::make_unique<Runner>(kind, options.directory, items.size()));
    Runner& runner = *runners.back();
    write(runner, items);
    if (runner.subject().measures_writes() && options.wants("bytes_per_item_packages")) {
      report.add("bytes_per_item_packages", items.size(), runner.name(), "bytes",
                 runner.bytes_per_item(items.size()));
    }
  }
  measure_reads("get_packages", ReadLoop::get, names, runners, options, items.size(), report);
  measure_reads("view_get_packages", ReadLoop::view_get, names, runners, options, items.size(),
                report);
  report.print("get_packages", items.size());
  report.print("view_get_packages", items.size());
  report.print("bytes_per_item_packages", items.size());
}

Program program = {
    .description = "Debian's package index; described at the top of bench/packages.cc",
    .workloads = {"get_packages", "view_get_packages", "bytes_per_item_packages"},
    .measure = measure};

}  // namespace
}  // namespace bench

int main(int argument_count, char** arguments) {
  return bench::program.run(argument_count, arguments);
}
