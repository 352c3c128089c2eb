// The latency of single gets while another process writes at full speed. Workloads:
//
//   get_beside_writer   copying get, keys drawn uniformly, while a process overwrites all keys in
//                       random order, again and again, in updates of 1,000
//   get_without_writer  the same without a writer
//   set_beside_reader   time of the writer per item meanwhile
//
// Each run measures all three in turn, even if only one is selected. Figures are nanoseconds of
// wall time. The figures of gets are percentiles, which end the name of the workload
// (get_beside_writer_p99.9). Each get is timed on its own and includes the time to read the clock,
// which is also measured and printed. A repetition ends after some seconds even if keys are left.
// Every value is compared with what the writer may have written by then. By default the program
// measures whycache and LMDB; --subjects selects others that processes can share.
#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <memory>
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

constexpr std::array percentiles = {"p10", "p50", "p90", "p99", "p99.9", "p99.99", "p100"};
constexpr double repetition_ns_max = 4e9;

// The progress of the writer: item order[i] has been written `rounds` times if i < `position`, else
// once less. `position` lags behind within an update.
struct WriterProgress {
  // The writer stores both, the reader loads them.
  std::atomic<std::uint64_t> rounds = 2;
  std::atomic<std::uint64_t> position = 0;
  // The reader stores it, the writer loads it.
  std::atomic<bool> stop = false;
};

void write_until_stopped(Subject& subject, const RandomOrder& order, WriterProgress& progress,
                         std::string_view any_key) {
  std::string value;
  if (!subject.open_and_get(any_key, value)) throw std::runtime_error("a key is missing");
  WriteBatch batch;
  while (!progress.stop) {
    batch.fill(order, progress.position, items_per_update, progress.rounds);
    subject.set(batch.items());
    progress.position += batch.items().size();
    if (progress.position < order.size()) continue;
    progress.position = 0;  // in this order: a late load of `rounds` only allows one more value
    ++progress.rounds;
  }
  subject.finish_writing();
  subject.close();
}

std::uint64_t items_written(const WriterProgress& progress, const RandomOrder& order) {
  return progress.rounds * order.size() + progress.position;
}

// Latencies of single gets, in ascending order.
std::vector<float> time_single_gets(Subject& subject, const ReadSequence& reads,
                                    const WriterProgress& progress) {
  std::vector<float> latencies;
  latencies.reserve(reads.keys().size());
  std::string value;
  std::array<char, value_bytes> expected;
  const double first_begin = monotonic_time_ns();
  for (std::size_t i = 0; i < reads.keys().size(); ++i) {
    const std::uint64_t times_before = progress.rounds;
    const double begin = monotonic_time_ns();
    const bool found = subject.get(reads.keys()[i], value);
    const double end = monotonic_time_ns();
    latencies.push_back(static_cast<float>(end - begin));
    const std::uint64_t times_after = progress.rounds;
    bool is_right = false;
    for (std::uint64_t times = times_after;
         found && !is_right && times + 1 >= times_before && times > 0; --times) {
      write_value(expected.data(), reads.item_number(i), times);
      is_right = value == std::string_view(expected.data(), expected.size());
    }
    if (!is_right)
      throw std::runtime_error("read something wrong: key=" + std::string(reads.keys()[i]));
    if (end - first_begin > repetition_ns_max) break;
  }
  std::sort(latencies.begin(), latencies.end());
  return latencies;
}

double percentile(const std::vector<float>& ascending, const std::string& name) {
  const double part = std::stod(name.substr(1)) / 100;
  const auto place =
      static_cast<std::size_t>(std::ceil(part * static_cast<double>(ascending.size())));
  return ascending[std::clamp<std::size_t>(place, 1, ascending.size()) - 1];
}

class BesideWriterBenchmark {
 public:
  BesideWriterBenchmark(const BenchmarkOptions& options, std::uint64_t items, Report& report)
      : options_(options),
        items_(items),
        report_(report),
        order_(items, 1),
        reads_(ReadSequence::uniform(items, options.reads)) {
    for (const SubjectKind& kind : options.kinds_to_measure({"whycache", "lmdb"})) {
      auto runner = std::make_unique<Runner>(kind, options.directory, items);
      if (!runner->subject().allows_concurrent_writer()) continue;
      runner->write(order_, 1);
      runner->subject().close();
      subjects_.push_back(
          {std::move(runner), std::make_unique<SharedWithChildren<WriterProgress>>()});
    }
  }

  void run() {
    measure_clock();
    for (int repetition = 0; repetition < options_.repetitions; ++repetition) {
      for (const MeasuredSubject& measured : subjects_) {
        stop_if_interrupted();
        measure_without_writer(measured);
        measure_beside_writer(measured);
      }
    }
    print("get_without_writer");
    print("get_beside_writer");
    report_.print("set_beside_reader", items_);
  }

 private:
  struct MeasuredSubject {
    std::unique_ptr<Runner> runner;
    std::unique_ptr<SharedWithChildren<WriterProgress>> progress;
  };

  // The share of the clock in a latency.
  void measure_clock() {
    constexpr int times = 100'000;
    const double begin = monotonic_time_ns();
    double sum = 0;
    for (int i = 0; i < times; ++i) sum += monotonic_time_ns() - begin;
    const double took = monotonic_time_ns() - begin;
    if (sum > took * times) throw std::runtime_error("the clock ran backwards");
    fmt::print("every latency includes {:.0f} ns for reading the clock\n", took / times);
  }

  void measure_without_writer(const MeasuredSubject& measured) {
    Subject& subject = measured.runner->subject();
    open(subject);
    time_single_gets(subject, reads_, **measured.progress);  // maps the whole file
    add("get_without_writer", measured, time_single_gets(subject, reads_, **measured.progress));
    subject.close();
  }
  void measure_beside_writer(const MeasuredSubject& measured) {
    Subject& subject = measured.runner->subject();
    WriterProgress& progress = **measured.progress;
    progress.stop = false;
    const std::uint64_t written_at_first = items_written(progress, order_);
    Child writer([&] { write_until_stopped(subject, order_, progress, reads_.keys().front()); });
    while (items_written(progress, order_) == written_at_first) {
      writer.throw_if_failed();
      ::usleep(1000);
    }
    open(subject);
    time_single_gets(subject, reads_, progress);
    std::vector<float> latencies;
    std::uint64_t written = 0;
    double took = 0;
    while (written == 0) {  // with few reads the writer may not finish an update
      writer.throw_if_failed();
      const std::uint64_t written_before = items_written(progress, order_);
      const double begin = monotonic_time_ns();
      latencies = time_single_gets(subject, reads_, progress);
      took = monotonic_time_ns() - begin;
      written = items_written(progress, order_) - written_before;
    }
    progress.stop = true;
    writer.wait();
    subject.close();
    add("get_beside_writer", measured, latencies);
    report_.add("set_beside_reader", items_, measured.runner->name(), "ns",
                took / static_cast<double>(written));
  }

  void open(Subject& subject) {
    std::string value;
    if (!subject.open_and_get(reads_.keys().front(), value))
      throw std::runtime_error("a key is missing");
  }
  void add(const std::string& workload, const MeasuredSubject& measured,
           const std::vector<float>& latencies) {
    for (const std::string name : percentiles) {
      report_.add(workload + "_" + name, items_, measured.runner->name(), "ns",
                  percentile(latencies, name));
    }
  }
  // Medians only; minimum and maximum of the repetitions are in the JSON.
  void print(const std::string& workload) const {
    fmt::print("\n{}, {} items, ns\n  {:<16}", workload, items_, "");
    for (const std::string name : percentiles) fmt::print("{:>11}", name);
    for (const MeasuredSubject& measured : subjects_) {
      fmt::print("\n  {:<16}", measured.runner->name());
      for (const std::string name : percentiles) {
        fmt::print(
            "{:>11.0f}",
            report_.median(workload + "_" + name, items_, measured.runner->name()).value_or(0));
      }
    }
    fmt::print("\n");
  }

  const BenchmarkOptions& options_;
  std::uint64_t items_;
  Report& report_;
  RandomOrder order_;
  ReadSequence reads_;
  std::vector<MeasuredSubject> subjects_;
};

Program program = {
    .description =
        "Latencies of single gets beside a writer; described at the top of bench/beside_writer.cc",
    .workloads = {"get_beside_writer", "get_without_writer", "set_beside_reader"},
    .measure = [](const BenchmarkOptions& options, std::uint64_t items, Report& report) {
      BesideWriterBenchmark(options, items, report).run();
    }};

}  // namespace
}  // namespace bench

int main(int argument_count, char** arguments) {
  return bench::program.run(argument_count, arguments);
}
