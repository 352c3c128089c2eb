// A tour of whycache on real data, in about a minute. Two machines share one SQLite log. Readers
// check every value while writers write, a process is killed while it applies updates, and history
// is rewritten. At the end the digests of both machines are compared.
//
// Each "machine" is a state file; the two share nothing but the log. The exit status is 1 if any
// check fails.
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <whycache/cache.h>

#include "base/clock.h"
#include "client/cache_internal.h"
#include "packages.h"
#include "scoreboard.h"
#include "state/state.h"
#include "workers.h"

namespace whycache::demo {
namespace {

using namespace std::chrono_literals;
using Clock = std::chrono::steady_clock;

constexpr int readers_per_machine = 2;
constexpr int probe_count = 40;
constexpr std::size_t items_per_import_batch = 1000;

double seconds_since(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

std::string format_megabytes(std::uint64_t bytes) {
  return fmt::format("{:.1f} MB", static_cast<double>(bytes) / 1e6);
}

std::string format_duration(std::uint64_t nanoseconds) {
  if (nanoseconds < 10'000) return fmt::format("{} ns", nanoseconds);
  if (nanoseconds < 10'000'000)
    return fmt::format("{:.1f} us", static_cast<double>(nanoseconds) / 1e3);
  return fmt::format("{:.1f} ms", static_cast<double>(nanoseconds) / 1e6);
}

std::uint64_t file_bytes(const std::string& path) {
  struct stat status;
  return ::stat(path.c_str(), &status) == 0 ? static_cast<std::uint64_t>(status.st_size) : 0;
}

// Progress on one line that is redrawn at a terminal; elsewhere a plain line every five seconds.
class Screen {
 public:
  void heading(const std::string& text) {
    finish_line();
    fmt::print("\n{}{}{}\n", bold(), text, plain());
    std::fflush(stdout);
  }
  void line(const std::string& text) {
    finish_line();
    fmt::print("  {}\n", text);
    std::fflush(stdout);
  }
  void update_line(const std::string& text) {
    if (is_terminal_) {
      fmt::print("\r  {}\x1b[K", text);
      line_is_open_ = true;
    } else if (seconds_since(last_plain_time_) >= 5) {
      fmt::print("  {}\n", text);
      last_plain_time_ = Clock::now();
    }
    std::fflush(stdout);
  }

 private:
  void finish_line() {
    if (line_is_open_) fmt::print("\n");
    line_is_open_ = false;
  }
  const char* bold() const { return use_colours_ ? "\x1b[1m" : ""; }
  const char* plain() const { return use_colours_ ? "\x1b[0m" : ""; }

  bool is_terminal_ = ::isatty(STDOUT_FILENO) == 1;
  bool use_colours_ = is_terminal_ && std::getenv("NO_COLOR") == nullptr;
  bool line_is_open_ = false;
  Clock::time_point last_plain_time_ = Clock::now();
};

class Demo {
 public:
  Demo(const std::string& directory, double seconds, std::vector<Record> records)
      : seconds_(seconds), records_(std::move(records)), board_(Scoreboard::create()) {
    log_path_ = directory + "/packages.db";
    for (const char* name : {"a", "b"}) {
      const std::string machine_directory = directory + "/machine-" + name;
      std::filesystem::create_directories(machine_directory);
      std::filesystem::permissions(machine_directory, std::filesystem::perms::owner_all);
      machines_.push_back({std::string("machine ") + name, "sqlite://" + log_path_,
                           machine_directory + "/packages.state"});
    }
  }

  // Returns whether every check passed.
  bool run() {
    import();
    join_second_machine();
    measure_visibility();
    run_load();
    rewrite();
    compare_machines();
    print_summary();
    return failed_check_count_ == 0;
  }

 private:
  Cache open(const Machine& machine) const {
    Options options;
    options.state_path = machine.state_path;
    options.writer_name = "demo";
    options.deadline = 60s;
    return Cache(machine.log_url, options);
  }

  void check(bool passed, const std::string& description) {
    if (!passed) ++failed_check_count_;
    screen_.line(fmt::format("{} {}", passed ? "ok    " : "FAILED", description));
  }

  void import() {
    screen_.heading(fmt::format("1. Import {} items into a SQLite log", records_.size()));
    Cache cache = open(machines_[0]);
    const Clock::time_point begin = Clock::now();
    std::uint64_t bytes = 0;
    for (std::size_t first = 0; first < records_.size(); first += items_per_import_batch) {
      const std::size_t end = std::min(records_.size(), first + items_per_import_batch);
      std::vector<std::string> values;
      std::vector<Item> items;
      values.reserve(end - first);
      for (std::size_t i = first; i < end; ++i) {
        values.push_back(make_value(records_[i], 0));
        items.push_back({records_[i].key, values.back()});
        bytes += records_[i].key.size() + values.back().size();
      }
      cache.set_multi(items);
      const double share = static_cast<double>(end) / static_cast<double>(records_.size());
      constexpr int width = 40;
      const int done = static_cast<int>(share * width);
      screen_.update_line(fmt::format("[{:#<{}}{:.<{}}] {:3.0f}%  {} items", "", done, "",
                                      width - done, 100 * share, end));
    }
    const double seconds = seconds_since(begin);
    screen_.line(
        fmt::format("{} items, {} in {:.1f} s: {:.0f} items/s, each durable in the log and "
                    "readable by every process",
                    records_.size(), format_megabytes(bytes), seconds,
                    static_cast<double>(records_.size()) / seconds));
    const StateInspection inspection = CacheInternal::state(cache).inspect();
    screen_.line(fmt::format("log {}, {} updates; state {} for {} of keys and values",
                             format_megabytes(file_bytes(log_path_)), cache.applied_id(),
                             format_megabytes(inspection.file_bytes),
                             format_megabytes(inspection.info.item_bytes)));
    check(cache.size() == records_.size(), "every item is in the state");
  }

  void join_second_machine() {
    screen_.heading("2. A second machine joins, given only the log's URL");
    const Clock::time_point begin = Clock::now();
    const Cache joined = open(machines_[1]);
    screen_.line(fmt::format("{} items after {:.2f} s", joined.size(), seconds_since(begin)));
    check(joined.size() == records_.size(), "the second machine has every item");
  }

  void measure_visibility() {
    screen_.heading("3. How soon after set() returns do other processes see the value?");
    run_probes({1, probe_count}, board_.polling_machine_delays,
               [&] { run_follower(machines_[1], 100ms, board_); });
    run_probes({probe_count + 1, 2 * probe_count}, board_.notified_machine_delays,
               [&] { run_notified_follower(machines_[1], board_); });
    const auto show = [&](const char* where, const LatencyHistogram& delays) {
      screen_.line(fmt::format("{}: median {}, p99 {}", where,
                               format_duration(delays.quantile(0.5)),
                               format_duration(delays.quantile(0.99))));
    };
    show("a process of the same machine (0: before set() returned)", board_.same_machine_delays);
    show("the other machine without push, which asks the log every 100 ms",
         board_.polling_machine_delays);
    show("the other machine with push, which sleeps until the log tells it",
         board_.notified_machine_delays);
    check(board_.failures.load() == 0, "all probes arrived");
  }

  void run_probes(const ProbeRound& round, LatencyHistogram& other_machine_delays,
                  const std::function<void()>& follow) {
    Worker same_machine(board_, [&] {
      run_probe_reader(machines_[0], round, board_.probe_seen_by_same_machine,
                       board_.same_machine_delays, board_);
    });
    Worker other_machine(board_, [&] {
      run_probe_reader(machines_[1], round, board_.probe_seen_by_other_machine,
                       other_machine_delays, board_);
    });
    Worker follower(board_, follow);
    Worker writer(board_, [&] { run_probe_writer(machines_[0], round, board_); });
    writer.join();
    same_machine.join();
    other_machine.join();
    follower.kill();
  }

  void run_load() {
    screen_.heading(
        fmt::format("4. {} readers check every value while each machine writes: {:.0f} s",
                    2 * readers_per_machine, seconds_));
    std::vector<Worker> readers;
    for (const Machine& machine : machines_) {
      for (int i = 0; i < readers_per_machine; ++i)
        readers.emplace_back(board_, [&] { run_reader(machine, records_, board_); });
    }
    std::vector<Worker> writers;
    for (std::size_t i = 0; i < machines_.size(); ++i) {
      writers.emplace_back(board_, [&, i] { run_writer(machines_[i], records_, i, board_); });
    }
    std::vector<Worker> followers;
    followers.emplace_back(board_, [&] { run_follower(machines_[0], 5ms, board_); });

    const Clock::time_point begin = Clock::now();
    show_progress_until(begin, seconds_ * 0.3);
    kill_while_applying();
    show_progress_until(begin, seconds_ * 0.6);
    kill_reader(readers);
    show_progress_until(begin, seconds_);
    board_.stop.store(true);
    for (std::vector<Worker>* group : {&readers, &writers, &followers}) {
      for (Worker& worker : *group) worker.join();
    }
    load_seconds_ = seconds_since(begin);
    screen_.line(progress_line(begin));
    check(board_.invalid_reads.load() == 0 && board_.missing_reads.load() == 0,
          fmt::format("{} reads, {} of them torn or missing", board_.reads.load(),
                      board_.invalid_reads.load() + board_.missing_reads.load()));
    check(board_.non_monotonic_reads.load() == 0,
          fmt::format("{} reads returned an older version than an earlier read of the process",
                      board_.non_monotonic_reads.load()));
    check(board_.failures.load() == 0,
          fmt::format("{} processes ended with an error", board_.failures.load()));
  }

  std::string progress_line(Clock::time_point begin) const {
    const double seconds = seconds_since(begin);
    return fmt::format(
        "{:4.0f} s  {:5.2f} M reads/s  get p50 {} p99 {} p99.9 {}  {:.0f} updates/s  {} bad",
        seconds, static_cast<double>(board_.reads.load()) / seconds / 1e6,
        format_duration(board_.get_latencies.quantile(0.5)),
        format_duration(board_.get_latencies.quantile(0.99)),
        format_duration(board_.get_latencies.quantile(0.999)),
        static_cast<double>(board_.writes.load()) / seconds,
        board_.invalid_reads.load() + board_.non_monotonic_reads.load() +
            board_.missing_reads.load());
  }

  void show_progress_until(Clock::time_point begin, double until) {
    while (seconds_since(begin) < until) {
      std::this_thread::sleep_for(250ms);
      screen_.update_line(progress_line(begin));
    }
  }

  // Kills a process of machine b while the state says that a writer is applying an update. Repeats
  // this until a later writer reports a recovery.
  void kill_while_applying() {
    const Cache observer = open(machines_[1]);
    const std::uint64_t recovered_before = board_.recoveries.load();
    int kills = 0;
    std::uint64_t reads_before = board_.reads.load();
    for (; kills < 200 && board_.recoveries.load() == recovered_before; ++kills) {
      Worker victim(board_, [&] { run_follower(machines_[1], 5ms, board_); });
      const Clock::time_point begin = Clock::now();
      while (seconds_since(begin) < 0.05) {
      }
      while (!CacheInternal::state(observer).inspect().writer_active && seconds_since(begin) < 2) {
      }
      victim.kill();
      // The next writer or follower on this machine takes over.
      std::this_thread::sleep_for(30ms);
    }
    const UpdateId id = observer.applied_id();
    const Clock::time_point begin = Clock::now();
    while (observer.applied_id() == id && seconds_since(begin) < 5)
      std::this_thread::sleep_for(100us);
    check(board_.recoveries.load() > recovered_before,
          fmt::format("SIGKILL while applying an update (attempt {}): the next writer undid it "
                      "and continued",
                      kills));
    check(observer.applied_id() > id,
          fmt::format("machine b advanced to update {}", observer.applied_id()));
    check(board_.reads.load() > reads_before, "the readers of machine b never stopped");
  }

  void kill_reader(std::vector<Worker>& readers) {
    readers.back().kill();
    const std::uint64_t before = board_.reads.load();
    const std::uint64_t writes_before = board_.writes.load();
    std::this_thread::sleep_for(500ms);
    check(board_.reads.load() > before && board_.writes.load() > writes_before,
          "SIGKILL of a reader: the other readers and the writers continued");
  }

  void rewrite() {
    screen_.heading("5. Rewrite the history");
    Cache cache = open(machines_[0]);
    cache.update();
    const Extent before = CacheInternal::log(cache).extent();
    screen_.line(fmt::format("before: {} updates after base {}, {} on disk",
                             before.head - before.base, before.base,
                             format_megabytes(file_bytes(log_path_))));
    const Clock::time_point begin = Clock::now();
    cache.rewrite_history();
    const Extent after = CacheInternal::log(cache).extent();
    screen_.line(fmt::format("after:  {} updates after base {}, {} on disk, {:.1f} s",
                             after.head - after.base, after.base,
                             format_megabytes(file_bytes(log_path_)), seconds_since(begin)));
    check(after.base == before.head && after.head == before.head,
          "the base replaces all updates up to the head");
    const std::string third_state_path = machines_[1].state_path + ".third";
    {
      const Clock::time_point joining = Clock::now();
      Cache joined = open({"a third machine", machines_[0].log_url, third_state_path});
      screen_.line(fmt::format("a third machine starts from the base: {} items after {:.2f} s",
                               joined.size(), seconds_since(joining)));
      check(joined.digest() == cache.digest(), "its digest equals that of the first");
      joined.delete_shared_state();
    }
    std::filesystem::remove(third_state_path + ".lock");
  }

  void compare_machines() {
    screen_.heading("6. Compare the machines");
    Cache a = open(machines_[0]);
    Cache b = open(machines_[1]);
    a.update();
    b.update();
    screen_.line(fmt::format("machine a: update {}, {} items, digest {}", a.applied_id(), a.size(),
                             to_string(a.digest())));
    screen_.line(fmt::format("machine b: update {}, {} items, digest {}", b.applied_id(), b.size(),
                             to_string(b.digest())));
    check(a.applied_id() == b.applied_id() && a.digest() == b.digest(), "equal");
    for (const Cache* cache : {&a, &b}) {
      const std::vector<std::string> faults = CacheInternal::state(*cache).check(Deadline(60s), {});
      check(faults.empty(), "every structure of " + cache->state_path() +
                                (faults.empty() ? " verifies" : ": " + faults.front()));
    }
    applied_id_ = a.applied_id();
    state_bytes_ = CacheInternal::state(a).inspect().file_bytes;
  }

  void print_summary() {
    screen_.heading("Summary");
    screen_.line(fmt::format("reads        {:.2f} M/s by {} processes, each value checked",
                             static_cast<double>(board_.reads.load()) / load_seconds_ / 1e6,
                             2 * readers_per_machine));
    screen_.line(fmt::format(
        "get          p50 {}  p99 {}  p99.9 {}  (beside writers, more processes than cores)",
        format_duration(board_.get_latencies.quantile(0.5)),
        format_duration(board_.get_latencies.quantile(0.99)),
        format_duration(board_.get_latencies.quantile(0.999))));
    screen_.line(fmt::format(
        "writes       {:.0f} updates/s, {:.0f} keys/s, durable, by 2 competing machines",
        static_cast<double>(board_.writes.load()) / load_seconds_,
        static_cast<double>(board_.changes.load()) / load_seconds_));
    screen_.line(fmt::format(
        "visible      same machine {}, other machine {} by polling, {} by push (medians)",
        format_duration(board_.same_machine_delays.quantile(0.5)),
        format_duration(board_.polling_machine_delays.quantile(0.5)),
        format_duration(board_.notified_machine_delays.quantile(0.5))));
    screen_.line(fmt::format("log, state   {}, {} at update {}",
                             format_megabytes(file_bytes(log_path_)),
                             format_megabytes(state_bytes_), applied_id_));
    screen_.line(failed_check_count_ == 0
                     ? "checks       all passed"
                     : fmt::format("checks       {} FAILED", failed_check_count_));
    screen_.heading("Try it yourself");
    const std::string command = fmt::format("build/release/bin/whycache --log '{}' --state '{}'",
                                            machines_[0].log_url, machines_[0].state_path);
    screen_.line(fmt::format("{} get '{}'", command, records_[records_.size() / 2].key));
    screen_.line(fmt::format("{} scan '{}' --limit 5", command,
                             records_[records_.size() / 2].key.substr(0, 4)));
    screen_.line(fmt::format("{} status", command));
  }

  double seconds_;
  std::vector<Record> records_;
  Scoreboard& board_;
  std::string log_path_;
  std::vector<Machine> machines_;
  Screen screen_;
  int failed_check_count_ = 0;
  double load_seconds_ = 1;
  UpdateId applied_id_ = 0;
  std::uint64_t state_bytes_ = 0;
};

int run(int argc, char** argv) {
  CLI::App app("whycache on real data: two machines, readers, writers, kills, a rewrite",
               "whycache-demo");
  std::string data;
  std::string directory = "build/demo";
  double seconds = 25;
  app.add_option("--data", data,
                 "file of JSON lines with key and value, instead of Debian's package index");
  app.add_option("--folder", directory, "directory for the log and the states; emptied first")
      ->capture_default_str();
  app.add_option("--seconds", seconds, "how long readers and writers run")
      ->capture_default_str()
      ->check(CLI::Range(2.0, 3600.0));
  CLI11_PARSE(app, argc, argv);
  std::vector<Record> records = data.empty() ? read_package_index() : read_json_lines(data);
  if (std::filesystem::exists(directory) && !std::filesystem::exists(directory + "/packages.db") &&
      !std::filesystem::is_empty(directory)) {
    fmt::print(stderr, "directory contains files that are not the demo's: path={}\n", directory);
    return 2;
  }
  std::filesystem::remove_all(directory);
  std::filesystem::create_directories(directory);
  directory = std::filesystem::canonical(directory).string();
  return Demo(directory, seconds, std::move(records)).run() ? 0 : 1;
}

}  // namespace
}  // namespace whycache::demo

int main(int argc, char** argv) {
  try {
    return whycache::demo::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "demo failed: %s\n", error.what());
    return 1;
  }
}
