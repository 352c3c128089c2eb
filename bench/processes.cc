// Reads by several processes at once. Workloads:
//
//   get_uniform_2        copying gets, keys drawn uniformly, by two processes: time of each per get
//   get_uniform_2_alone  the same by one process
//
// Each run measures both in turn, even if only one is selected. Figures are nanoseconds of wall
// time, because waiting for a lock uses no processor. Every process opens the subject on its own,
// and reads everything once before it is timed. Subjects in private memory are inherited from the
// parent.
#include <sched.h>

#include <array>
#include <atomic>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bench/child.h"
#include "bench/clock.h"
#include "bench/data.h"
#include "bench/program.h"
#include "bench/report.h"
#include "bench/runner.h"

namespace bench {
namespace {

constexpr std::size_t processes_max = 2;

// A barrier for the processes, and their results.
struct StartBarrier {
  std::atomic<std::size_t> ready = 0;
  std::array<double, processes_max> ns_per_read = {};
};

// Returns the nanoseconds per read of each process.
std::vector<double> read_concurrently(std::size_t count, Runner& runner, const ReadSequence& reads,
                                      const std::string& workload) {
  const std::span<const std::string_view> keys = runner.keys_to_read(reads.keys());
  const ReadChecksum expected = reads.expected(1, keys.size());
  const SharedWithChildren<StartBarrier> start;
  std::array<std::optional<Child>, processes_max> children;
  runner.subject().close();
  for (std::size_t i = 0; i < count; ++i) {
    children[i].emplace([&] {
      std::string value;
      if (!runner.subject().open_and_get(keys.front(), value))
        throw std::runtime_error("a key is missing");
      runner.read(ReadLoop::get, keys, expected, workload);
      for (++start->ready; start->ready < count;) ::sched_yield();
      const double begin = monotonic_time_ns();
      runner.read(ReadLoop::get, keys, expected, workload);
      start->ns_per_read[i] = (monotonic_time_ns() - begin) / static_cast<double>(keys.size());
      runner.subject().close();
    });
  }
  for (std::size_t i = 0; i < count; ++i) children[i]->wait();
  return {start->ns_per_read.begin(),
          start->ns_per_read.begin() + static_cast<std::ptrdiff_t>(count)};
}

void measure(const BenchmarkOptions& options, std::uint64_t items, Report& report) {
  const RandomOrder order(items, 1);
  const ReadSequence reads = ReadSequence::uniform(items, options.reads);
  std::vector<std::unique_ptr<Runner>> runners;
  for (const SubjectKind& kind : options.kinds_to_measure()) {
    runners.push_back(std::make_unique<Runner>(kind, options.directory, items));
    runners.back()->write(order, 1);
  }
  for (int repetition = 0; repetition < options.repetitions; ++repetition) {
    for (const std::unique_ptr<Runner>& runner : runners) {
      for (const auto& [workload, count] :
           {std::pair("get_uniform_2_alone", 1), std::pair("get_uniform_2", 2)}) {
        stop_if_interrupted();
        for (const double ns :
             read_concurrently(static_cast<std::size_t>(count), *runner, reads, workload)) {
          report.add(workload, items, runner->name(), "ns", ns);
        }
      }
    }
  }
  report.print("get_uniform_2_alone", items);
  report.print("get_uniform_2", items);
  fmt::print("\ntwo at once against one alone\n");
  for (const std::unique_ptr<Runner>& runner : runners) {
    const std::optional<double> alone = report.median("get_uniform_2_alone", items, runner->name());
    const std::optional<double> together = report.median("get_uniform_2", items, runner->name());
    if (alone && together) fmt::print("  {:<19}{:>6.2f} x\n", runner->name(), *together / *alone);
  }
}

Program program = {
    .description = "Several processes read at once; described at the top of bench/processes.cc",
    .workloads = {"get_uniform_2", "get_uniform_2_alone"},
    .measure = measure};

}  // namespace
}  // namespace bench

int main(int argument_count, char** arguments) {
  return bench::program.run(argument_count, arguments);
}
