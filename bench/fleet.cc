// The load of a fleet of followers on the database of their log, and the delay until they see a
// write, with and without memcached in front of the log. Workloads, each by number of followers:
//
//   fleet_statements   statements per second at the database server (its counter Questions),
//                      including those of the writer
//   fleet_connections  most simultaneous connections (Max_used_connections); max_connections must
//                      allow them
//   fleet_connects     new connections per second
//   fleet_visible_p50  milliseconds of wall time from the begin of a write until a follower has it
//   fleet_visible_p99
//   fleet_polls        polls per second; if fewer than followers / --poll-ms, the machine is too
//                      slow
//
// A follower is a log opened by its URL, and its position in it, as each process of another machine
// has them. It polls with the code of Cache::update(), and verifies and decodes the updates, but
// has no state to apply them to. Some threads poll for all followers, each follower at its own
// point of the interval. One writer appends at a steady rate. The program starts real servers on
// the same machine and reaches them by unix sockets, so the figures show the protocol, not a
// network. At the end every follower must be at the writer's last update, with the same chain.
#include <fmt/format.h>
#include <sys/resource.h>
#include <whycache/log.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "base/mutex.h"
#include "bench/database.h"
#include "bench/fleet_memcached.h"
#include "bench/report.h"
#include "bench/temporary_directory.h"
#include "client/log_page.h"
#include "update/update.h"

namespace bench {
namespace {

using Clock = std::chrono::steady_clock;
using whycache::UpdateId;

constexpr UpdateId updates_max = 1'000'000;

std::atomic<bool> interrupted{false};

void stop_if_interrupted() {
  if (interrupted) throw std::runtime_error("interrupted");
}

struct FleetOptions {
  std::vector<std::uint64_t> followers = {10, 100, 1'000, 5'000};
  std::vector<std::string> subjects;
  int poll_ms = 1'000;
  int seconds = 10;
  int writes_per_second = 10;
  int confirm_s = 2;
  int ask_s = 3'600;
  int threads = 16;
  std::string directory = "/dev/shm";
  std::string json;
};

double seconds_since(Clock::time_point began) {
  return std::chrono::duration<double>(Clock::now() - began).count();
}

// Appends updates, and records when each append began.
class Writer {
 public:
  explicit Writer(const std::string& url)
      : log_(whycache::open_log(url)), append_begin_ns_(updates_max) {
    position_.log_uuid = log_->extent().uuid;
    position_.chain = whycache::chain_start(position_.log_uuid);
  }

  void write() {
    whycache::Draft draft(whycache::Authorship{});
    const std::string value = fmt::format("{:0100}", position_.id);
    draft.add(whycache::Change::set(fmt::format("user:{:010}", position_.id % 1'000), value),
              1 << 20);
    const UpdateId id = position_.id + 1;
    append_begin_ns_.at(id) = now_ns();
    if (log_->append(id, draft.seal(id, position_.chain)) != whycache::Log::Appended::yes) {
      throw std::runtime_error("another process writes to the log");
    }
    position_.id = id;
    position_.chain = draft.chain();
  }
  const whycache::LogPosition& position() const { return position_; }
  double ms_since_append_began(UpdateId id) const {
    return static_cast<double>(now_ns() - append_begin_ns_[id]) / 1e6;
  }

 private:
  std::unique_ptr<whycache::Log> log_;
  whycache::LogPosition position_;
  static std::int64_t now_ns() {
    return std::chrono::nanoseconds(Clock::now().time_since_epoch()).count();
  }

  // Stored before the append; loaded by followers that have the update.
  std::vector<std::atomic<std::int64_t>> append_begin_ns_;
};

class Follower {
 public:
  explicit Follower(const std::string& url) : log_(whycache::open_log(url)) {
    position_.log_uuid = log_->extent().uuid;
    position_.chain = whycache::chain_start(position_.log_uuid);
  }

  // Calls `visible` with the id of each new update.
  template <typename Visible>
  void poll(const Visible& visible) {
    const whycache::LogPage page = whycache::poll_page(*log_, position_, std::nullopt);
    std::string why;
    if (whycache::compare_history(page, position_, why) != whycache::HistoryMatch::matches)
      throw std::runtime_error("does not fit: " + why);
    whycache::apply_updates(page, position_,
                            [&](const whycache::Update& update) { visible(update.id); });
  }
  const whycache::LogPosition& position() const { return position_; }

 private:
  std::unique_ptr<whycache::Log> log_;
  whycache::LogPosition position_;
};

// Followers, and the threads that poll for them until all have the writer's last update.
class Fleet {
 public:
  Fleet(const std::string& url, std::uint64_t count, const FleetOptions& options,
        const Writer& writer)
      : interval_(std::chrono::milliseconds(options.poll_ms)), writer_(writer) {
    for (std::uint64_t i = 0; i < count; ++i) {
      stop_if_interrupted();
      followers_.emplace_back(url);
      followers_.back().poll([](UpdateId) {});
      followers_.back().poll([](UpdateId) {});  // closes what the first poll opened
    }
    const auto threads = std::min<std::size_t>(static_cast<std::size_t>(options.threads), count);
    for (std::size_t thread = 0; thread < threads; ++thread) {
      threads_.emplace_back([this, thread, threads] { poll(thread, threads); });
    }
  }
  Fleet(const Fleet&) = delete;
  Fleet& operator=(const Fleet&) = delete;
  ~Fleet() { stop(); }

  void stop() {
    stopping_ = true;
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  // Discards the counts and delays so far.
  void reset_counts() {
    const whycache::MutexLock lock(mutex_);
    delays_ms_.clear();
    polls_ = 0;
  }
  std::uint64_t polls() const { return polls_; }

  // Throws std::runtime_error if some follower does not reach the last update in time.
  void verify_caught_up() {
    stop();
    const auto end = Clock::now() + std::chrono::seconds(20);
    for (Follower& follower : followers_) {
      while (follower.position().id < writer_.position().id && Clock::now() < end) {
        follower.poll([](UpdateId) {});
        if (follower.position().id < writer_.position().id)
          std::this_thread::sleep_for(std::chrono::milliseconds(10));
      }
      if (follower.position().id != writer_.position().id ||
          follower.position().chain != writer_.position().chain) {
        throw std::runtime_error("a follower does not have the last update");
      }
    }
    const whycache::MutexLock lock(mutex_);
    if (!failure_.empty()) throw std::runtime_error("a follower failed: " + failure_);
  }
  // Returns the given quantile of the delays until updates were visible, in milliseconds.
  double delay_ms(double quantile) {
    const whycache::MutexLock lock(mutex_);
    if (delays_ms_.empty()) throw std::runtime_error("nothing became visible");
    std::sort(delays_ms_.begin(), delays_ms_.end());
    return delays_ms_[static_cast<std::size_t>(quantile *
                                               static_cast<double>(delays_ms_.size() - 1))];
  }

 private:
  void poll(std::size_t thread, std::size_t threads) {
    std::vector<double> delays_ms;
    try {
      for (auto round = Clock::now(); !stopping_; round += interval_) {
        if (round + interval_ < Clock::now())
          round = Clock::now();  // too slow: missed polls are skipped
        for (std::size_t i = thread; i < followers_.size() && !stopping_; i += threads) {
          std::this_thread::sleep_until(round + interval_ * i / followers_.size());
          followers_[i].poll(
              [&](UpdateId id) { delays_ms.push_back(writer_.ms_since_append_began(id)); });
          ++polls_;
        }
        {
          const whycache::MutexLock lock(mutex_);
          delays_ms_.insert(delays_ms_.end(), delays_ms.begin(), delays_ms.end());
        }
        delays_ms.clear();
        while (!stopping_ && Clock::now() < round + interval_) {
          std::this_thread::sleep_until(
              std::min(round + interval_, Clock::now() + std::chrono::milliseconds(50)));
        }
      }
    } catch (const std::exception& error) {
      const whycache::MutexLock lock(mutex_);
      failure_ = error.what();
    }
  }

  const Clock::duration interval_;
  const Writer& writer_;
  std::vector<Follower> followers_;
  std::vector<std::thread> threads_;
  std::atomic<bool> stopping_{false};
  std::atomic<std::uint64_t> polls_{0};
  whycache::Mutex mutex_;
  std::vector<double> delays_ms_ WHYCACHE_GUARDED_BY(mutex_);
  std::string failure_ WHYCACHE_GUARDED_BY(mutex_);
};

void measure(const std::string& subject, std::uint64_t count, const FleetOptions& options,
             Database& database, const FleetMemcached& memcached, Report& report) {
  std::string name = subject + '_' + std::to_string(count);
  std::replace(name.begin(), name.end(), '+', '_');
  std::string url = database.url(name);
  if (subject != "mysql") {
    url = fmt::format("memcached+{}&memcached={}&confirm_s={}&ask_s={}", url, memcached.socket(),
                      options.confirm_s, options.ask_s);
  }
  Writer writer(url);
  database.reset_counters();
  Fleet fleet(url, count, options, writer);
  // Opening needs a connection for each follower; measure only what followers hold afterwards.
  const auto write_for = [&](double seconds) {
    const auto begin = Clock::now();
    for (int i = 0; seconds_since(begin) < seconds; ++i) {
      stop_if_interrupted();
      std::this_thread::sleep_until(
          begin +
          std::chrono::nanoseconds(std::int64_t{1'000'000'000} * i / options.writes_per_second));
      writer.write();
    }
  };
  write_for(std::min(3, options.seconds));
  database.reset_counters();
  const auto before = database.status();
  fleet.reset_counts();
  const auto begin = Clock::now();
  write_for(options.seconds);
  const double seconds = seconds_since(begin);
  const auto after = database.status();
  const double polls = static_cast<double>(fleet.polls());
  fleet.verify_caught_up();

  const auto rate = [&](const char* counter) {
    return (after.at(counter) - before.at(counter)) / seconds;
  };
  report.add("fleet_statements", count, subject, "1/s", rate("Questions"));
  report.add("fleet_connections", count, subject, "connections",
             after.at("Max_used_connections") - 1);  // that of this program
  report.add("fleet_connects", count, subject, "1/s", rate("Connections"));
  report.add("fleet_visible_p50", count, subject, "ms", fleet.delay_ms(0.5));
  report.add("fleet_visible_p99", count, subject, "ms", fleet.delay_ms(0.99));
  report.add("fleet_polls", count, subject, "1/s", polls / seconds);
  fmt::print("  {:>9}  {:<16}{:>12.1f}{:>13.0f}{:>12.1f}{:>12.1f}{:>12.1f}{:>12.1f}\n", count,
             subject, rate("Questions"), after.at("Max_used_connections") - 1, rate("Connections"),
             fleet.delay_ms(0.5), fleet.delay_ms(0.99), polls / seconds);
  std::fflush(stdout);
}

}  // namespace

int run(int argument_count, char** arguments) {
  FleetOptions options;
  CLI::App app("What a fleet asks of its database; described at the top of bench/fleet.cc");
  app.add_option("--followers", options.followers, "how many; several numbers: one after the other")
      ->delimiter(',')
      ->check(CLI::Range(1, 20'000));
  app.add_option("--subjects", options.subjects, "mysql, memcached+mysql, or both")
      ->delimiter(',')
      ->check(CLI::IsMember({"mysql", "memcached+mysql"}));
  app.add_option("--poll-ms", options.poll_ms, "how often each follower polls")
      ->check(CLI::Range(10, 60'000));
  app.add_option("--seconds", options.seconds, "how long each is measured")
      ->check(CLI::Range(1, 3'600));
  app.add_option("--writes", options.writes_per_second, "updates a second")
      ->check(CLI::Range(1, 1'000));
  app.add_option("--confirm-s", options.confirm_s, "option confirm_s of the log")
      ->check(CLI::Range(1, 3'600));
  app.add_option("--ask-s", options.ask_s, "option ask_s of the log")->check(CLI::Range(1, 86'400));
  app.add_option("--threads", options.threads, "how many poll for all")->check(CLI::Range(1, 256));
  app.add_option("--folder", options.directory, "directory of the database")
      ->check(CLI::ExistingDirectory);
  app.add_option("--json", options.json, "file for the figures, one JSON object per line");
  CLI11_PARSE(app, argument_count, arguments);
  if (options.subjects.empty()) options.subjects = {"memcached+mysql", "mysql"};

  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, [](int) { interrupted = true; });
  try {
    const std::uint64_t most =
        *std::max_element(options.followers.begin(), options.followers.end());
    // Two descriptors for each follower, and some for the servers, which inherit the limit.
    rlimit files{};
    ::getrlimit(RLIMIT_NOFILE, &files);
    files.rlim_cur = files.rlim_max;
    ::setrlimit(RLIMIT_NOFILE, &files);
    if (files.rlim_cur < 2 * most + 200) {
      throw std::runtime_error(fmt::format("too few open files allowed: allowed={} needed={}",
                                           files.rlim_cur, 2 * most + 200));
    }
    const TemporaryDirectory directory(options.directory);
    Database database(directory.path(), most + 50);
    const FleetMemcached memcached(directory.path(), most + 50);
    fmt::print("polling every {} ms, {} updates a second, each measured for {} s\n",
               options.poll_ms, options.writes_per_second, options.seconds);
    fmt::print("  {:>9}  {:<16}{:>12}{:>13}{:>12}{:>12}{:>12}{:>12}\n", "followers", "log",
               "statements/s", "connections", "connects/s", "p50 ms", "p99 ms", "polls/s");
    Report report;
    for (const std::uint64_t count : options.followers) {
      for (const std::string& subject : options.subjects)
        measure(subject, count, options, database, memcached, report);
    }
    if (!options.json.empty()) report.write_json(options.json);
  } catch (const whycache::MysqlFailure& failure) {
    fmt::print(stderr, "{}: {}\n", arguments[0], failure.reason);
    return 1;
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}: {}\n", arguments[0], error.what());
    return 1;
  }
  return 0;
}

}  // namespace bench

int main(int argument_count, char** arguments) { return bench::run(argument_count, arguments); }
