// The load of a fleet of followers on the database of their log, and the delay until they see a
// write, with and without a tier in front of the log. Workloads, each by number of followers:
//
//   fleet_statements    statements per second at the database server, also those of the writer:
//                       MariaDB's counter Questions, PostgreSQL's pg_stat_statements
//   fleet_connections   most simultaneous connections (Max_used_connections); max_connections must
//                       allow them. PostgreSQL: those at the end
//   fleet_visible_p50   milliseconds of wall time from the begin of a write until a follower has it
//   fleet_visible_p99
//   fleet_polls         polls of the log or its tier per second
//
// A follower is a log opened by its URL, and its position in it, as each process of another machine
// has them. It polls with the code of Cache::update(), and verifies and decodes the updates, but
// has no state to apply them to. Behind Redis and PostgreSQL, which wake them, each follower has a
// thread that waits and polls as `whycache follow` does. Otherwise some threads poll for all, each
// follower every --poll-ms at its own point of the interval; if fleet_polls is less than that, the
// machine is too slow. One writer appends at a steady rate; at none, with --writes 0. The program
// starts real servers on the same machine and reaches them by unix sockets, so the figures show the
// protocol, not a network. At the end every follower must be at the writer's last update, with the
// same chain.
#include <fmt/format.h>
#include <pthread.h>
#include <sys/resource.h>
#include <whycache/log.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "base/call_limit.h"
#include "base/mutex.h"
#include "bench/database.h"
#include "bench/postgres_database.h"
#include "bench/report.h"
#include "bench/temporary_directory.h"
#include "bench/tier_servers.h"
#include "client/log_page.h"
#include "client/poll_pacer.h"
#include "update/update.h"

namespace bench {
namespace {

using Clock = std::chrono::steady_clock;
using whycache::UpdateId;

constexpr UpdateId updates_max = 1'000'000;
// The stack of a thread that waits is small, since there are thousands.
constexpr std::size_t stack_bytes = std::size_t{512} << 10;
constexpr int warm_up_seconds = 3;
constexpr int idle_warm_up_writes = 10;  // a second, if none are measured

std::atomic<bool> interrupted{false};

void stop_if_interrupted() {
  if (interrupted) throw std::runtime_error("interrupted");
}

struct FleetOptions {
  std::vector<std::uint64_t> followers = {10, 100, 1'000, 5'000};
  std::vector<std::string> subjects = {"redis+mysql", "memcached+mysql", "mysql"};
  int poll_ms = 1'000;
  int seconds = 10;
  int writes_per_second = 10;
  int confirm_s = 2;
  int ask_s = 3'600;
  int tier_timeout_ms = 100;
  int threads = 16;
  std::string directory = "/dev/shm";
  std::string json;

  bool wants(const std::string& part) const {
    return std::any_of(subjects.begin(), subjects.end(), [&](const std::string& subject) {
      return subject.find(part) != std::string::npos;
    });
  }
};

double seconds_since(Clock::time_point began) {
  return std::chrono::duration<double>(Clock::now() - began).count();
}

// The servers that the subjects need.
class Servers {
 public:
  Servers(const std::string& directory, const FleetOptions& options, std::uint64_t most_followers)
      : options_(options) {
    const std::string clients = std::to_string(2 * most_followers + 50);
    if (options.wants("mysql")) mysql_.emplace(directory, most_followers + 50);
    if (options.wants("postgres"))
      postgres_.emplace(options.directory, 2 * most_followers + 50, true);
    if (options.wants("memcached"))
      memcached_.emplace(directory, std::vector<std::string>{"--conn-limit=" + clients});
    if (options.wants("redis"))
      redis_.emplace(directory, std::vector<std::string>{"--maxclients", clients});
  }

  // Returns the URL of a log that nothing was written to.
  std::string url(const std::string& subject, std::string instance) const {
    std::replace(instance.begin(), instance.end(), '+', '_');
    const bool is_mysql = subject.ends_with("mysql");
    const std::string url = is_mysql ? mysql_->url(instance) : postgres_->url(instance);
    const std::size_t end_of_tier = subject.find('+');
    if (end_of_tier == std::string::npos) return url;
    const std::string tier = subject.substr(0, end_of_tier);
    return fmt::format("{}+{}&{}={}&{}_timeout_ms={}&confirm_s={}&ask_s={}", tier, url, tier,
                       tier == "redis" ? redis_->socket() : memcached_->socket(), tier,
                       options_.tier_timeout_ms, options_.confirm_s, options_.ask_s);
  }

  void reset_counters(const std::string& subject) {
    if (subject.ends_with("mysql")) mysql_->reset_counters();
  }
  double statements(const std::string& subject) {
    return subject.ends_with("mysql") ? mysql_->status().at("Questions") : postgres_->statements();
  }
  double connections(const std::string& subject) {
    constexpr double of_this_program = 1;
    return subject.ends_with("mysql")
               ? mysql_->status().at("Max_used_connections") - of_this_program
               : postgres_->connections();
  }

 private:
  const FleetOptions& options_;
  std::optional<Database> mysql_;
  std::optional<PostgresDatabase> postgres_;
  std::optional<MemcachedServer> memcached_;
  std::optional<RedisServer> redis_;
};

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
  // Writes at a steady rate.
  void write_for(double seconds, int writes_per_second) {
    const auto began = Clock::now();
    for (int i = 0; seconds_since(began) < seconds; ++i) {
      stop_if_interrupted();
      if (writes_per_second == 0) {
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
        continue;
      }
      std::this_thread::sleep_until(
          began + std::chrono::nanoseconds(std::int64_t{1'000'000'000} * i / writes_per_second));
      write();
    }
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
  // Waits until a poll is due, and polls, until a stop is requested; as FollowLoop does.
  template <typename Visible, typename Polled>
  void follow(const std::stop_token& stop, const Visible& visible, const Polled& polled) {
    using whycache::PollPacer;
    PollPacer pacer{whycache::FollowPace()};
    while (!stop.stop_requested()) {
      const PollPacer::Clock::time_point now = PollPacer::Clock::now();
      const std::chrono::nanoseconds left = pacer.time_left(now);
      if (left.count() > 0) {
        wait(left, stop, pacer);
        continue;
      }
      const UpdateId before = position_.id;
      poll(visible);
      pacer.note_poll(now, position_.id > before, log_->notifies());
      polled();
    }
  }
  const whycache::LogPosition& position() const { return position_; }

 private:
  void wait(std::chrono::nanoseconds at_most, const std::stop_token& stop,
            whycache::PollPacer& pacer) {
    const whycache::Deadline deadline(std::chrono::ceil<std::chrono::milliseconds>(at_most), stop);
    if (!log_->notifies() || pacer.was_notified()) return deadline.sleep(at_most);
    const whycache::CallLimit limit(deadline);
    const bool is_woken = log_->wait(position_.id, at_most);
    if (is_woken) {
      pacer.note_notification(Clock::now());
    } else {
      pacer.note_silence(Clock::now());
    }
  }

  std::unique_ptr<whycache::Log> log_;
  whycache::LogPosition position_;
};

// Followers, and the threads that poll for them until all have the writer's last update.
class Fleet {
 public:
  Fleet(const std::string& url, std::uint64_t count, bool waits, const FleetOptions& options,
        const Writer& writer)
      : interval_(std::chrono::milliseconds(options.poll_ms)), writer_(writer) {
    for (std::uint64_t i = 0; i < count; ++i) {
      stop_if_interrupted();
      followers_.emplace_back(url);
      followers_.back().poll([](UpdateId) {});
      followers_.back().poll([](UpdateId) {});  // closes what the first poll opened
    }
    if (waits) {
      for (Follower& follower : followers_)
        threads_.emplace_back([this, &follower] { follow(follower); });
      return;
    }
    const auto threads = std::min<std::size_t>(static_cast<std::size_t>(options.threads), count);
    for (std::size_t thread = 0; thread < threads; ++thread)
      threads_.emplace_back([this, thread, threads] { poll(thread, threads); });
  }
  Fleet(const Fleet&) = delete;
  Fleet& operator=(const Fleet&) = delete;
  ~Fleet() { stop(); }

  void stop() {
    stopping_.request_stop();
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

  // Waits until the followers, which have seen all updates up to `first`, have seen the writer's
  // last one. Throws std::runtime_error if some follower does not in time.
  void wait_until_caught_up(UpdateId first) {
    const std::uint64_t visible = (writer_.position().id - first) * followers_.size();
    const auto end = Clock::now() + std::chrono::seconds(60);
    while (visible_count() < visible) {
      stop_if_interrupted();
      if (Clock::now() > end) throw std::runtime_error("a follower does not have the last update");
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
  }
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
  // Returns the given quantile of the delays until updates were visible, in milliseconds; nullopt
  // if nothing was written.
  std::optional<double> delay_ms(double quantile) {
    const whycache::MutexLock lock(mutex_);
    if (delays_ms_.empty()) return std::nullopt;
    std::sort(delays_ms_.begin(), delays_ms_.end());
    return delays_ms_[static_cast<std::size_t>(quantile *
                                               static_cast<double>(delays_ms_.size() - 1))];
  }

 private:
  void follow(Follower& follower) {
    std::vector<double> delays_ms;
    const auto visible = [&](UpdateId id) {
      delays_ms.push_back(writer_.ms_since_append_began(id));
    };
    const auto polled = [&] {
      ++polls_;
      add_delays(delays_ms);
    };
    try {
      follower.follow(stopping_.get_token(), visible, polled);
    } catch (const std::exception& error) {
      note_failure(error);
    }
  }

  void poll(std::size_t thread, std::size_t threads) {
    const std::stop_token stop = stopping_.get_token();
    std::vector<double> delays_ms;
    try {
      for (auto round = Clock::now(); !stop.stop_requested(); round += interval_) {
        if (round + interval_ < Clock::now())
          round = Clock::now();  // too slow: missed polls are skipped
        for (std::size_t i = thread; i < followers_.size() && !stop.stop_requested();
             i += threads) {
          std::this_thread::sleep_until(round + interval_ * i / followers_.size());
          followers_[i].poll(
              [&](UpdateId id) { delays_ms.push_back(writer_.ms_since_append_began(id)); });
          ++polls_;
        }
        add_delays(delays_ms);
        while (!stop.stop_requested() && Clock::now() < round + interval_) {
          std::this_thread::sleep_until(
              std::min(round + interval_, Clock::now() + std::chrono::milliseconds(50)));
        }
      }
    } catch (const std::exception& error) {
      note_failure(error);
    }
  }

  std::uint64_t visible_count() {
    const whycache::MutexLock lock(mutex_);
    if (!failure_.empty()) throw std::runtime_error("a follower failed: " + failure_);
    return delays_ms_.size();
  }
  void add_delays(std::vector<double>& delays_ms) {
    if (delays_ms.empty()) return;
    const whycache::MutexLock lock(mutex_);
    delays_ms_.insert(delays_ms_.end(), delays_ms.begin(), delays_ms.end());
    delays_ms.clear();
  }
  void note_failure(const std::exception& error) {
    const whycache::MutexLock lock(mutex_);
    failure_ = error.what();
  }

  const Clock::duration interval_;
  const Writer& writer_;
  std::vector<Follower> followers_;
  std::vector<std::thread> threads_;
  std::stop_source stopping_;
  std::atomic<std::uint64_t> polls_{0};
  whycache::Mutex mutex_;
  std::vector<double> delays_ms_ WHYCACHE_GUARDED_BY(mutex_);
  std::string failure_ WHYCACHE_GUARDED_BY(mutex_);
};

void measure(const std::string& subject, std::uint64_t count, const FleetOptions& options,
             Servers& servers, Report& report) {
  const std::string url = servers.url(subject, fmt::format("{}_{}", subject, count));
  Writer writer(url);
  const bool waits = subject.starts_with("redis") || subject == "postgres";
  const UpdateId first = writer.position().id;
  Fleet fleet(url, count, waits, options, writer);
  // Followers that were woken trust that they will be.
  const bool is_idle = options.writes_per_second == 0;
  writer.write_for(warm_up_seconds, is_idle ? idle_warm_up_writes : options.writes_per_second);
  // A large fleet may lag behind. While nothing else is written, that would be measured.
  if (is_idle) fleet.wait_until_caught_up(first);
  // Opening needs a connection for each follower; measure only what followers hold afterwards.
  servers.reset_counters(subject);
  const double statements_before = servers.statements(subject);
  fleet.reset_counts();
  const auto begin = Clock::now();
  writer.write_for(options.seconds, options.writes_per_second);
  const double seconds = seconds_since(begin);
  const double statements = (servers.statements(subject) - statements_before) / seconds;
  const double connections = servers.connections(subject);
  const double polls = static_cast<double>(fleet.polls()) / seconds;
  fleet.verify_caught_up();

  report.add("fleet_statements", count, subject, "1/s", statements);
  report.add("fleet_connections", count, subject, "connections", connections);
  report.add("fleet_polls", count, subject, "1/s", polls);
  fmt::print("  {:>9}  {:<16}{:>12.2f}{:>14.4f}{:>13.0f}{:>10.1f}", count, subject, statements,
             statements / static_cast<double>(count), connections, polls);
  for (const auto& [workload, quantile] :
       {std::pair("fleet_visible_p50", 0.5), std::pair("fleet_visible_p99", 0.99)}) {
    const std::optional<double> delay_ms = fleet.delay_ms(quantile);
    if (delay_ms) report.add(workload, count, subject, "ms", *delay_ms);
    fmt::print("{:>10}", delay_ms ? fmt::format("{:.1f}", *delay_ms) : "");
  }
  fmt::print("\n");
  std::fflush(stdout);
}

void add_options(CLI::App& app, FleetOptions& options) {
  app.add_option("--followers", options.followers, "how many; several numbers: one after the other")
      ->delimiter(',')
      ->check(CLI::Range(1, 20'000));
  app.add_option("--subjects", options.subjects,
                 "mysql or postgres, alone or behind memcached+ or redis+, separated by commas")
      ->delimiter(',')
      ->check(CLI::IsMember({"mysql", "memcached+mysql", "redis+mysql", "postgres",
                             "memcached+postgres", "redis+postgres"}));
  app.add_option("--poll-ms", options.poll_ms, "how often a follower polls that is not woken")
      ->check(CLI::Range(10, 60'000));
  app.add_option("--seconds", options.seconds, "how long each is measured")
      ->check(CLI::Range(1, 3'600));
  app.add_option("--writes", options.writes_per_second, "updates a second; 0: none")
      ->check(CLI::Range(0, 1'000));
  app.add_option("--confirm-s", options.confirm_s, "option confirm_s of the log")
      ->check(CLI::Range(1, 3'600));
  app.add_option("--ask-s", options.ask_s, "option ask_s of the log")->check(CLI::Range(1, 86'400));
  app.add_option("--tier-timeout-ms", options.tier_timeout_ms,
                 "how long a request to the tier may take; raise it if the followers of this one "
                 "machine keep its processors busy for longer")
      ->check(CLI::Range(1, 60'000));
  app.add_option("--threads", options.threads, "how many poll for all")->check(CLI::Range(1, 256));
  app.add_option("--folder", options.directory, "directory of the databases")
      ->check(CLI::ExistingDirectory);
  app.add_option("--json", options.json, "file for the figures, one JSON object per line");
}

// A follower that is woken has two connections, and for each a descriptor that ends a wait. The
// servers inherit the limit.
void raise_limits(std::uint64_t followers) {
  const rlim_t needed = 4 * followers + 200;
  rlimit files{};
  ::getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = std::max(files.rlim_max, needed);
  files.rlim_max = files.rlim_cur;
  if (::setrlimit(RLIMIT_NOFILE, &files) != 0)
    throw std::runtime_error(fmt::format("too few open files allowed: needed={}", needed));
  pthread_attr_t attributes;
  ::pthread_attr_init(&attributes);
  ::pthread_attr_setstacksize(&attributes, stack_bytes);
  ::pthread_setattr_default_np(&attributes);
  ::pthread_attr_destroy(&attributes);
}

void measure_all(const FleetOptions& options) {
  const std::uint64_t most = *std::max_element(options.followers.begin(), options.followers.end());
  raise_limits(most);
  const TemporaryDirectory directory(options.directory);
  Servers servers(directory.path(), options, most);
  fmt::print(
      "{} updates a second, each measured for {} s; without a wake-up, polling every {} ms\n",
      options.writes_per_second, options.seconds, options.poll_ms);
  fmt::print("  {:>9}  {:<16}{:>12}{:>14}{:>13}{:>10}{:>10}{:>10}\n", "followers", "log",
             "statements/s", "per follower", "connections", "polls/s", "p50 ms", "p99 ms");
  Report report;
  for (const std::uint64_t count : options.followers) {
    for (const std::string& subject : options.subjects)
      measure(subject, count, options, servers, report);
  }
  if (!options.json.empty()) report.write_json(options.json);
}

}  // namespace

int run(int argument_count, char** arguments) {
  FleetOptions options;
  CLI::App app("What a fleet asks of its database; described at the top of bench/fleet.cc");
  add_options(app, options);
  CLI11_PARSE(app, argument_count, arguments);
  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, [](int) { interrupted = true; });
  try {
    measure_all(options);
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
