// The state beside its rivals, on one thread. Workloads:
//
//   load                        new keys in random order, in updates of 1,000
//   bytes_per_item              what the subject takes after that: its files and what it has on the heap; 115 of it are payload
//   get_uniform                 copying get into a string that is kept, keys drawn evenly
//   get_serial                  the same, but which key is next depends on the value before
//   get_zipf                    the same as get_uniform, keys drawn by zipf 0.99
//   get_miss                    get of keys that are not there
//   view_get_uniform            get without copying, the first 8 bytes read
//   get_multi_uniform           copying get of 32 keys at once
//   get_multi_zipf              the same, keys drawn by zipf 0.99
//   scan_items                  all keys and values, in key order
//   scan_keys                   all keys, in key order
//   open                        from nothing open until a first get has answered
//   overwrite                   every key once, in random order, in updates of 1,000
//   bytes_per_item_overwritten  what the subject takes after five times of that
//
// Figures are nanoseconds (microseconds for open) of processor time per item, key or call, or bytes. The subjects take turns within
// every repetition, so that what slows the machine down for a while slows all of them down. README.md says more.
#include <fmt/format.h>
#include <malloc.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <optional>
#include <set>
#include <stdexcept>

#include "bench/data.h"
#include "bench/report.h"
#include "bench/subject.h"

namespace bench {
namespace {

constexpr std::size_t items_per_update = 1000;
constexpr int overwritten_times = 5;

const std::vector<std::string> workload_names = {
    "load",      "bytes_per_item",   "get_uniform",       "get_serial",     "get_zipf",   "get_miss",
    "view_get_uniform",              "get_multi_uniform", "get_multi_zipf", "scan_items", "scan_keys",
    "open",      "overwrite",        "bytes_per_item_overwritten"};

struct Kind {
  std::string name;
  MakeSubject* make;  // nullptr: its library was not there when this was built
};

const std::vector<Kind> kinds = {
    {"whycache", make_whycache},
#if WHYCACHE_WITH_ABSL
    {"absl", make_absl},
#else
    {"absl", nullptr},
#endif
    {"unordered_map", make_unordered_map},
#if WHYCACHE_WITH_LMDB
    {"lmdb", make_lmdb},
    {"lmdb_long", make_lmdb_long},
#else
    {"lmdb", nullptr},
    {"lmdb_long", nullptr},
#endif
};

struct Options {
  std::vector<std::uint64_t> items = {1'000'000};
  std::vector<std::string> only;
  std::vector<std::string> subjects;
  int repetitions = 5;
  std::size_t reads = 1'000'000;
  std::string folder = "/dev/shm";
  std::string json;
};

std::atomic<bool> interrupted{false};

void stop_if_interrupted() {
  if (interrupted) throw std::runtime_error("interrupted");
}

// A folder that goes when we do.
class TemporaryFolder {
 public:
  explicit TemporaryFolder(const std::string& parent) : path_(parent + "/whycache_bench_XXXXXX") {
    if (::mkdtemp(path_.data()) == nullptr) throw std::runtime_error("cannot make a folder: parent=" + parent);
  }
  ~TemporaryFolder() {
    std::error_code ignored;
    std::filesystem::remove_all(path_, ignored);
  }
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// Processor time of this thread: what other programs take of the machine is not counted.
double now_ns() {
  struct timespec time;
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) * 1e9 + static_cast<double>(time.tv_nsec);
}

std::int64_t heap_bytes() {
  const struct mallinfo2 heap = ::mallinfo2();
  return static_cast<std::int64_t>(heap.uordblks + heap.hblkhd);
}

// A subject while it is measured.
class Runner {
 public:
  Runner(const Kind& kind, const std::string& parent, std::uint64_t items_max)
      : name_(kind.name), folder_(std::make_unique<TemporaryFolder>(parent)) {
    const std::int64_t before = heap_bytes();
    subject_ = kind.make(folder_->path(), items_max);
    heap_bytes_ += heap_bytes() - before;
  }

  const std::string& name() const { return name_; }
  Subject& subject() { return *subject_; }

  // Writes every item; returns nanoseconds per item.
  double write(const Order& order, std::uint64_t times_written) {
    Batch batch;
    double took = 0;
    for (std::size_t first = 0; first < order.size(); first += items_per_update) {
      if (first % 100'000 == 0) stop_if_interrupted();
      batch.fill(order, first, items_per_update, times_written);
      const std::int64_t heap_before = heap_bytes();
      const double begin = now_ns();
      subject_->set(batch.items());
      took += now_ns() - begin;
      heap_bytes_ += heap_bytes() - heap_before;
    }
    const double begin = now_ns();
    subject_->finish_writing();
    took += now_ns() - begin;
    times_written_ = times_written;
    return took / static_cast<double>(order.size());
  }

  // Runs a loop; returns nanoseconds per read. What it reads has to be right.
  double read(Loop loop, const Reads& reads, const std::string& workload) {
    stop_if_interrupted();
    const double begin = now_ns();
    const Seen seen = subject_->run(loop, reads);
    const double took = now_ns() - begin;
    const Seen expected = loop == Loop::scan_keys ? expected_keys(reads) : reads.expected(times_written_);
    if (seen != expected) {
      throw std::runtime_error(fmt::format("{} read something wrong: workload={} count={} expected_count={}", name_, workload,
                                           seen.count, expected.count));
    }
    return took / static_cast<double>(reads.keys().size());
  }

  double open_us(std::string_view key) {
    subject_->close();
    std::string value;
    const double begin = now_ns();
    const bool found = subject_->open_and_get(key, value);
    const double took = now_ns() - begin;
    if (!found || value.size() != value_bytes) throw std::runtime_error(name_ + " lost a key on opening");
    return took / 1000;
  }

  double bytes_per_item(std::uint64_t items) {
    return (static_cast<double>(subject_->file_bytes()) + static_cast<double>(heap_bytes_)) / static_cast<double>(items);
  }

 private:
  std::string name_;
  std::unique_ptr<TemporaryFolder> folder_;
  std::unique_ptr<Subject> subject_;
  std::int64_t heap_bytes_ = 0;
  std::uint64_t times_written_ = 0;
};

class Benchmark {
 public:
  Benchmark(const Options& options, std::uint64_t items, Report& report)
      : options_(options), items_(items), report_(report), order_(items, 1) {
    for (const Kind& kind : kinds) {
      const bool wanted = options.subjects.empty() ||
                          std::find(options.subjects.begin(), options.subjects.end(), kind.name) != options.subjects.end();
      if (wanted && kind.make != nullptr) kinds_.push_back(kind);
    }
  }

  void run() {
    load();
    reads("get_uniform", Loop::get, [&] { return Reads::uniform(items_, options_.reads); });
    reads("get_serial", Loop::get_serial, [&] { return Reads::uniform(items_, options_.reads); });
    reads("get_zipf", Loop::get, [&] { return Reads::zipf(order_, options_.reads); });
    reads("get_miss", Loop::get_miss, [&] { return Reads::missing(items_, options_.reads); });
    reads("view_get_uniform", Loop::view_get, [&] { return Reads::uniform(items_, options_.reads); });
    reads("get_multi_uniform", Loop::get_multi, [&] { return Reads::uniform(items_, options_.reads); });
    reads("get_multi_zipf", Loop::get_multi, [&] { return Reads::zipf(order_, options_.reads); });
    reads("scan_items", Loop::scan_items, [&] { return Reads::all(items_); });
    reads("scan_keys", Loop::scan_keys, [&] { return Reads::all(items_); });
    open();
    overwrite();
  }

 private:
  bool wanted(const std::string& workload) const {
    return options_.only.empty() || std::find(options_.only.begin(), options_.only.end(), workload) != options_.only.end();
  }

  void add(const std::string& workload, Runner& runner, const std::string& unit, double figure) {
    report_.add(workload, items_, runner.name(), unit, figure);
  }

  // Fills every subject; the last ones filled are those that are read.
  void load() {
    const bool measured = wanted("load");
    std::vector<std::unique_ptr<Runner>> filled(kinds_.size());
    for (int repetition = 0; repetition < (measured ? options_.repetitions : 1); ++repetition) {
      for (std::size_t i = 0; i < kinds_.size(); ++i) {
        filled[i].reset();
        filled[i] = std::make_unique<Runner>(kinds_[i], options_.folder, items_);
        const double figure = filled[i]->write(order_, 1);
        if (!filled[i]->subject().can_be_measured_writing()) continue;
        if (measured) add("load", *filled[i], "ns", figure);
        if (wanted("bytes_per_item")) add("bytes_per_item", *filled[i], "bytes", filled[i]->bytes_per_item(items_));
      }
    }
    runners_ = std::move(filled);
    report_.print("load", items_);
    report_.print("bytes_per_item", items_);
  }

  template <typename MakeReads>
  void reads(const std::string& workload, Loop loop, const MakeReads& make_reads) {
    if (!wanted(workload)) return;
    const Reads reads = make_reads();
    // The first round warms up.
    for (int repetition = -1; repetition < options_.repetitions; ++repetition) {
      for (const std::unique_ptr<Runner>& runner : runners_) {
        if (!runner->subject().can(loop)) continue;
        const double figure = runner->read(loop, reads, workload);
        if (repetition >= 0) add(workload, *runner, "ns", figure);
      }
    }
    report_.print(workload, items_);
  }

  void open() {
    if (!wanted("open")) return;
    const Reads reads = Reads::uniform(items_, 1000);
    for (int repetition = 0; repetition < options_.repetitions; ++repetition) {
      for (const std::unique_ptr<Runner>& runner : runners_) {
        if (!runner->subject().can_reopen()) continue;
        add("open", *runner, "us", runner->open_us(reads.keys()[static_cast<std::size_t>(repetition) % reads.keys().size()]));
      }
    }
    report_.print("open", items_);
  }

  void overwrite() {
    const bool measured = wanted("overwrite");
    const bool bytes_wanted = wanted("bytes_per_item_overwritten");
    if (!measured && !bytes_wanted) return;
    const int rounds = std::max(measured ? options_.repetitions : 0, bytes_wanted ? overwritten_times : 0);
    for (int round = 1; round <= rounds; ++round) {
      const Order order(items_, 10 + static_cast<std::uint64_t>(round));
      for (const std::unique_ptr<Runner>& runner : runners_) {
        if (!runner->subject().can_be_measured_writing()) continue;
        const double figure = runner->write(order, static_cast<std::uint64_t>(round) + 1);
        if (measured) add("overwrite", *runner, "ns", figure);
        if (bytes_wanted && round == overwritten_times) {
          add("bytes_per_item_overwritten", *runner, "bytes", runner->bytes_per_item(items_));
        }
      }
    }
    // It was the newest that was kept.
    const Reads reads = Reads::uniform(items_, options_.reads);
    for (const std::unique_ptr<Runner>& runner : runners_) {
      if (runner->subject().can_be_measured_writing()) runner->read(Loop::get, reads, "overwrite");
    }
    report_.print("overwrite", items_);
    report_.print("bytes_per_item_overwritten", items_);
  }

  const Options& options_;
  std::uint64_t items_;
  Report& report_;
  Order order_;
  std::vector<Kind> kinds_;
  std::vector<std::unique_ptr<Runner>> runners_;
};

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line.empty() ? "?" : line;
}

void print_machine() {
  std::string model = "?";
  std::ifstream cpus("/proc/cpuinfo");
  for (std::string line; std::getline(cpus, line);) {
    if (line.starts_with("model name")) {
      model = line.substr(line.find(':') + 2);
      break;
    }
  }
  fmt::print("machine: {}, {} cpus; huge pages: {}; in shared memory: {}; compiler: {}\n", model, ::sysconf(_SC_NPROCESSORS_ONLN),
             first_line("/sys/kernel/mm/transparent_hugepage/enabled"), first_line("/sys/kernel/mm/transparent_hugepage/shmem_enabled"),
             __VERSION__);
  double load = 0;
  if (::getloadavg(&load, 1) == 1 && load > 0.7) fmt::print("note: the machine is busy (load {:.1f})\n", load);
}

int main(int argument_count, char** arguments) {
  Options options;
  CLI::App app("Measures the state beside its rivals; the workloads are described at the top of bench/reads.cc");
  std::set<std::string> subjects;
  for (const Kind& kind : kinds) subjects.insert(kind.name);
  app.add_option("--only", options.only, "these workloads (separated by commas), not all of them")
      ->delimiter(',')
      ->check(CLI::IsMember(workload_names));
  app.add_option("--items", options.items, "how many items; several numbers: one after the other")->delimiter(',')->check(CLI::Range(1'000, 100'000'000));
  app.add_option("--subjects", options.subjects, "these subjects, not all of them")->delimiter(',')->check(CLI::IsMember(subjects));
  app.add_option("--repetitions", options.repetitions, "how often everything is measured")->check(CLI::Range(1, 1000));
  app.add_option("--reads", options.reads, "how many keys a repetition reads")->check(CLI::Range(1'000, 100'000'000));
  app.add_option("--folder", options.folder, "where the files of the subjects lie")->check(CLI::ExistingDirectory);
  app.add_option("--json", options.json, "file for the figures, one JSON object per line");
  CLI11_PARSE(app, argument_count, arguments);

  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, [](int) { interrupted = true; });
  print_machine();
  for (const Kind& kind : kinds) {
    if (kind.make == nullptr) fmt::print("left out: {} (its library was not found when this was built)\n", kind.name);
  }
  Report report;
  try {
    for (const std::uint64_t items : options.items) Benchmark(options, items, report).run();
    if (!options.json.empty()) report.write_json(options.json);
  } catch (const std::exception& error) {
    fmt::print(stderr, "bench_reads: {}\n", error.what());
    return 1;
  }
  return 0;
}

}  // namespace
}  // namespace bench

int main(int argument_count, char** arguments) { return bench::main(argument_count, arguments); }
