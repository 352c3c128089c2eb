// Records histories on a log and checks them. Writers, transactions, readers and rewriters run in
// several processes on two machines, a rare reader on a third and a hurried writer on a fourth,
// while processes are killed and connections cut. Prints the counts, and the same as JSON in the
// last line. Exits with 1 if a guarantee was violated.
//
//   histories_main --log sqlite --seconds 60
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <deque>
#include <exception>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include <whycache/cache.h>

#include "histories/checker.h"
#include "histories/faulty_store.h"
#include "histories/history.h"
#include "histories/log_archive.h"
#include "histories/worker.h"
#include "support/memory_directory.h"
#include "support/temporary_directory.h"

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using Clock = std::chrono::steady_clock;

struct Settings {
  std::string log = "sqlite";
  double seconds = 60;
  std::uint64_t seed = 0;
  std::string keep;  // directory for the histories if a guarantee was violated
};

// The process of a worker, which is restarted whenever it has died.
class WorkerProcess {
 public:
  explicit WorkerProcess(WorkerSettings settings)
      : worker_settings_(std::move(settings)), name_(worker_settings_.process_name) {}
  WorkerProcess(const WorkerProcess&) = delete;
  WorkerProcess& operator=(const WorkerProcess&) = delete;
  ~WorkerProcess() { kill(); }

  const std::string& machine() const { return worker_settings_.machine; }
  const std::vector<std::string>& processes() const { return processes_; }
  bool is_running() const { return pid_ != 0; }

  void start(std::uint64_t seed) {
    worker_settings_.seed = seed;
    worker_settings_.process_name = name_ + '-' + std::to_string(processes_.size());
    processes_.push_back(worker_settings_.process_name);
    const std::vector<std::string> words{"histories_main",
                                         "--role",
                                         worker_settings_.role,
                                         "--machine",
                                         worker_settings_.machine,
                                         "--url",
                                         worker_settings_.url,
                                         "--directory",
                                         worker_settings_.directory,
                                         "--process",
                                         worker_settings_.process_name,
                                         "--seed",
                                         std::to_string(seed),
                                         worker_settings_.flaky ? "--flaky" : "--steady"};
    std::vector<char*> arguments;
    for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
    arguments.push_back(nullptr);
    const pid_t parent = ::getpid();
    pid_ = ::fork();
    if (pid_ < 0) throw std::runtime_error("cannot fork");
    if (pid_ > 0) return;
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (::getppid() != parent) ::_exit(1);
    ::execv("/proc/self/exe", arguments.data());
    ::_exit(127);
  }

  void kill() {
    if (pid_ == 0) return;
    ::kill(pid_, SIGKILL);
    int status = 0;
    ::waitpid(pid_, &status, 0);
    pid_ = 0;
  }

  // Returns how the process died, if it died by itself with an error.
  std::optional<std::string> reap() {
    int status = 0;
    if (pid_ == 0 || ::waitpid(pid_, &status, WNOHANG) != pid_) return std::nullopt;
    pid_ = 0;
    if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return std::nullopt;
    return worker_settings_.process_name + ": died unexpectedly: status=" + std::to_string(status);
  }

 private:
  WorkerSettings worker_settings_;
  std::string name_;
  std::vector<std::string> processes_;
  pid_t pid_ = 0;
};

class HistoryRun {
 public:
  explicit HistoryRun(const Settings& settings)
      : settings_(settings),
        random_(settings.seed),
        directory_(memory_directory()),
        progress_(SharedProgress::open(directory_.path())),
        store_(make_faulty_store(settings.log, directory_.path(), settings.seed)),
        archive_(open_log(store_->url())) {}

  int run() {
    add_workers();
    for (WorkerProcess& worker : workers_) worker.start(random_());
    run_workers();
    stop_workers();
    check_final_state();
    const std::vector<History> histories = collect();
    return report(check(archive_.updates(), histories), histories);
  }

 private:
  void add_workers() {
    for (const char* machine : {"berlin", "tokyo"}) {
      for (const char* role : {"writer", "writer", "transactor", "reader", "reader", "rewriter"})
        add_workers(role, machine);
    }
    add_workers("sleeper", "rome");
    // Alone on its machine, so that its short deadlines pass in the log and not in a queue. It is
    // never killed: it would be most often while it connects.
    add_workers("hurried", "oslo");
  }
  void add_workers(const std::string& role, const std::string& machine) {
    workers_.emplace_back(
        WorkerSettings{.role = role,
                       .machine = machine,
                       .url = role == "hurried" ? store_->hurried_url() : store_->worker_url(),
                       .flaky = store_->needs_flaky_log(),
                       .directory = directory_.path(),
                       .process_name = machine + '-' + role + std::to_string(workers_.size())});
  }

  void run_workers() {
    const auto end = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                        std::chrono::duration<double>(settings_.seconds));
    auto next_kill = Clock::now() + milliseconds(300);
    auto next_fault = Clock::now() + store_->quiet_period_min();
    while (Clock::now() < end) {
      archive();
      for (WorkerProcess& worker : workers_) {
        reap(worker);
        if (!worker.is_running()) worker.start(random_());
      }
      if (Clock::now() >= next_kill) {
        WorkerProcess& worker = workers_[random_() % (workers_.size() - 1)];  // not the hurried one
        worker.kill();
        worker.start(random_());
        ++kills_;
        next_kill = Clock::now() + milliseconds(20 + random_() % 100);
      }
      if (Clock::now() >= next_fault) {
        store_->inject_fault();
        const milliseconds quiet_period = store_->quiet_period_min();
        next_fault = Clock::now() + quiet_period +
                     milliseconds(random_() % static_cast<std::uint64_t>(quiet_period.count()));
      }
      std::this_thread::sleep_for(milliseconds(3));
    }
  }

  void archive() { progress_.archived = archive_.follow(); }

  void reap(WorkerProcess& worker) {
    if (std::optional<std::string> death = worker.reap()) unexpected_.push_back(*death);
  }

  void stop_workers() {
    progress_.stop = true;
    const auto stop_deadline = Clock::now() + seconds(30);
    for (WorkerProcess& worker : workers_) {
      while (worker.is_running() && Clock::now() < stop_deadline) {
        reap(worker);
        archive();
        std::this_thread::sleep_for(milliseconds(3));
      }
      if (worker.is_running()) unexpected_.push_back(worker.processes().back() + ": does not stop");
      worker.kill();
    }
    store_->stop_faults();
    archive();
  }

  // Checks that every machine, and a new one, reaches the head of the log.
  void check_final_state() {
    for (const char* machine : {"berlin", "tokyo", "rome", "oslo", "paris"}) {
      const std::string process = std::string(machine) + "-end";
      HistoryWriter history(history_path(directory_.path(), process));
      Options options;
      options.state_path = directory_.path() + '/' + machine + ".state";
      options.any_file_system = true;
      Cache cache(store_->url(), options);
      Observation seen{.began_ns = now_ns(), .at_least = archive_.updates().size()};
      cache.update();
      const View view = cache.view();
      seen.first = seen.last = view.id();
      seen.digest = view.digest();
      for (const Item& item : view) seen.key_values.emplace_back(item.key, std::string(item.value));
      seen.ended_ns = now_ns();
      history.record_read(seen);
      final_histories_.push_back({process, machine});
    }
    archive_.verify_again();
  }

  std::vector<History> collect() const {
    std::vector<History> histories;
    const auto read = [&](const std::string& process, const std::string& machine) {
      // The file is missing if the process was killed before it started.
      std::ifstream lines(history_path(directory_.path(), process));
      histories.push_back(read_history(lines, process, machine));
    };
    for (const WorkerProcess& worker : workers_) {
      for (const std::string& process : worker.processes()) read(process, worker.machine());
    }
    for (const auto& [process, machine] : final_histories_) read(process, machine);
    histories.push_back(
        History{.process = "history_run", .machine = "none", .unexpected = unexpected_});
    return histories;
  }

  int report(const Verdict& verdict, const std::vector<History>& histories) const {
    const std::uint64_t violations = verdict.violation_count();
    std::vector<std::pair<std::string, std::uint64_t>> counts = store_->fault_counts();
    const std::vector<std::pair<std::string, std::uint64_t>> counts_of_histories{
        {"processes", histories.size()},
        {"kills", kills_},
        {"updates", verdict.updates},
        {"writes", verdict.writes},
        {"acknowledged", verdict.acknowledged},
        {"nothing_written", verdict.nothing_written},
        {"uncertain", verdict.uncertain},
        {"unanswered", verdict.unanswered},
        {"uncertain_or_unanswered_in_log", verdict.uncertain_or_unanswered_in_log},
        {"transactions", verdict.transactions},
        {"transactions_retried", verdict.transactions_retried},
        {"rewrites", progress_.rewrites.load()},
        {"rebuilds_behind_base", progress_.rebuilds.load()},
        {"reads", verdict.reads},
        {"values", verdict.values},
        {"reads_after_token", verdict.tokens},
        {"digests", verdict.digests},
        {"violations", violations},
    };
    counts.insert(counts.end(), counts_of_histories.begin(), counts_of_histories.end());
    nlohmann::ordered_json json{
        {"log", settings_.log}, {"seconds", settings_.seconds}, {"seed", settings_.seed}};
    for (const auto& [name, count] : counts) {
      std::printf("%-32s %llu\n", name.c_str(), static_cast<unsigned long long>(count));
      json[name] = count;
    }
    for (const auto& [violation, times] : verdict.violations)
      json["violated"][to_string(violation)] = times;
    for (const std::string& example : verdict.examples)
      std::printf("VIOLATED %s\n", example.c_str());
    bool idle = false;  // a run that lacks an event proves nothing about it
    for (const auto& [name, count] : counts) {
      const bool may_be_none = name == "violations" || settings_.seconds < 20;
      if (count > 0 || may_be_none) continue;
      std::printf("NOT EXERCISED %s\n", name.c_str());
      idle = true;
    }
    if (violations > 0 && !settings_.keep.empty()) {
      std::filesystem::create_directories(settings_.keep);
      for (const auto& file : std::filesystem::directory_iterator(directory_.path())) {
        if (file.path().extension() == ".history") {
          std::filesystem::copy_file(file, settings_.keep / file.path().filename(),
                                     std::filesystem::copy_options::overwrite_existing);
        }
      }
      std::printf("histories kept in %s\n", settings_.keep.c_str());
    }
    std::printf("%s\n", json.dump().c_str());
    return violations == 0 && !idle ? 0 : 1;
  }

  Settings settings_;
  std::mt19937_64 random_;
  TemporaryDirectory directory_;
  SharedProgress& progress_;
  std::unique_ptr<FaultyStore> store_;
  LogArchive archive_;
  std::deque<WorkerProcess> workers_;
  std::vector<std::string> unexpected_;
  std::vector<std::pair<std::string, std::string>> final_histories_;
  std::uint64_t kills_ = 0;
};

int run(int argc, char** argv) {
  Settings settings;
  settings.seed = std::random_device{}();
  WorkerSettings worker;
  CLI::App app("Records histories on a log and checks them.");
  app.add_option("--log", settings.log, "file, sqlite, mysql, postgres, memcached, redis");
  app.add_option("--seconds", settings.seconds, "how long");
  app.add_option("--keep", settings.keep,
                 "directory for the histories if a guarantee was violated");
  app.add_option("--seed", settings.seed, "seed of the random generators");
  app.add_option("--role", worker.role, "for internal use, as are the options below");
  app.add_option("--machine", worker.machine);
  app.add_option("--url", worker.url);
  app.add_option("--directory", worker.directory);
  app.add_option("--process", worker.process_name);
  app.add_flag("--flaky,!--steady", worker.flaky);
  CLI11_PARSE(app, argc, argv);
  if (worker.role.empty()) return HistoryRun(settings).run();
  worker.seed = settings.seed;
  run_worker(worker);
  return 0;
}

}  // namespace
}  // namespace whycache::testing

int main(int argc, char** argv) {
  try {
    return whycache::testing::run(argc, argv);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "histories: %s\n", error.what());
    return 1;
  }
}
