// How soon a write is visible on another machine, beside the bare mechanism that wakes it.
// Workloads:
//
//   visible_postgres        whycache: from the return of set() to when the state of a machine that
//                           follows, with a state of its own, has the update for its readers
//                           bare: from the return of an INSERT, which NOTIFY follows, to when a
//                           client that LISTENs has read the row
//   visible_redis           whycache, with redis+postgres: the same
//                           bare: from just before XADD is sent to when a client that is blocked in
//                           XREAD has the entry
//   visible_redis_returned  the same, but for the bare mechanism from the return of XADD
//
// The writer and each of the two that are woken are processes of one machine, reached by unix
// sockets. They take turns, and each is asleep when it is woken. The writer looks all the time
// whether the write has arrived, in shared memory. Keys have 15 bytes, values 100; a bare row or
// entry has as many bytes as the update of such a write. Figures are microseconds of wall time, one
// for each write; less than 0 if the listener was faster than the return. --items is the number of
// writes. PostgreSQL is on the disk of --folder, and syncs at each commit. The first writes are not
// counted.
#include <fmt/format.h>
#include <hiredis/hiredis.h>
#include <poll.h>
#include <whycache/cache.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <stop_token>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "bench/child.h"
#include "bench/clock.h"
#include "bench/data.h"
#include "bench/postgres_database.h"
#include "bench/program.h"
#include "bench/temporary_directory.h"
#include "bench/tier_servers.h"
#include "client/cache_internal.h"
#include "client/follow_loop.h"

namespace bench {
namespace {

using whycache::Cache;
using whycache::UpdateId;

constexpr std::uint64_t warm_up_writes = 50;
// An update with one key of 15 bytes and a value of 100 has so many.
constexpr std::size_t update_bytes = 180;

double pause_ms = 5;

// Shared with the process that is woken, which stores it.
struct Arrivals {
  std::atomic<std::uint64_t> count = 0;
  std::atomic<double> last_at_ns = 0;

  void note() {
    last_at_ns = monotonic_time_ns();
    ++count;
  }
};

// Another machine: follows as `whycache follow` does.
void follow(const std::string& url, const std::string& state_path, Arrivals& arrivals) {
  whycache::Options options;
  options.state_path = state_path;
  Cache cache(url, options);
  whycache::FollowLoop loop(whycache::CacheInternal::session(cache), options.follow_pace,
                            whycache::FollowLoop::WakeFor::polls, whycache::MappingPolicy::cache);
  const std::stop_token never;
  loop.poll_if_due(never);
  arrivals.note();  // ready
  for (;;) {
    loop.wait(never);
    loop.poll_if_due(never);
  }
}

void listen_to_postgres(const std::string& parameters, Arrivals& arrivals) {
  const BarePostgres client(parameters);
  client.run("LISTEN bare");
  client.check(
      ::PQprepare(client.get(), "read", "SELECT bytes FROM bare WHERE id = $1", 1, nullptr));
  arrivals.note();  // ready
  for (;;) {
    pollfd polled{::PQsocket(client.get()), POLLIN, 0};
    ::poll(&polled, 1, -1);
    if (::PQconsumeInput(client.get()) == 0) client.fail();
    while (PGnotify* const notification = ::PQnotifies(client.get())) {
      const std::string id = notification->extra;
      ::PQfreemem(notification);
      const char* const values[] = {id.c_str()};
      const PostgresResult row =
          client.check(::PQexecPrepared(client.get(), "read", 1, values, nullptr, nullptr, 1));
      if (::PQntuples(row.get()) != 1 || ::PQgetlength(row.get(), 0, 0) != update_bytes)
        throw std::runtime_error("a row is missing");
      arrivals.note();
    }
  }
}

// hiredis without anything in between.
class BareRedis {
 public:
  explicit BareRedis(const std::string& socket) : connection_(::redisConnectUnix(socket.c_str())) {
    if (!connection_ || connection_->err != 0) fail();
  }
  template <typename... Words>
  std::unique_ptr<redisReply, void (*)(redisReply*)> run(const char* format, Words... words) const {
    auto* const reply =
        static_cast<redisReply*>(::redisCommand(connection_.get(), format, words...));
    if (reply == nullptr || reply->type == REDIS_REPLY_ERROR) fail();
    return {reply, [](redisReply* answered) { ::freeReplyObject(answered); }};
  }

 private:
  [[noreturn]] void fail() const { throw std::runtime_error("redis does not answer"); }
  struct Free {
    void operator()(redisContext* connection) const { ::redisFree(connection); }
  };
  std::unique_ptr<redisContext, Free> connection_;
};

void wait_in_xread(const std::string& socket, Arrivals& arrivals) {
  const BareRedis client(socket);
  arrivals.note();  // ready
  for (std::uint64_t id = 0;; ++id) {
    const std::string after = std::to_string(id) + "-0";
    const auto reply = client.run("XREAD BLOCK 0 STREAMS bare %s", after.c_str());
    if (reply->type != REDIS_REPLY_ARRAY) throw std::runtime_error("an entry is missing");
    arrivals.note();
  }
}

// A process that is woken, and what it says.
class Woken {
 public:
  template <typename Run>
  explicit Woken(const Run& run) : child_([&] { run(*arrivals_); }) {
    wait_until([&] { return count() == 1; });
  }
  std::uint64_t count() const { return arrivals_->count; }
  double last_at_ns() const { return arrivals_->last_at_ns; }

  template <typename HasArrived>
  void wait_until(const HasArrived& has_arrived) {
    constexpr int looks_between_checks = 1'000;
    for (int look = 1; !has_arrived(); ++look) {
      std::this_thread::yield();  // to the others, if processors are scarce
      if (look % looks_between_checks != 0) continue;
      stop_if_interrupted();
      child_.throw_if_failed();
    }
  }

 private:
  const SharedWithChildren<Arrivals> arrivals_;
  Child child_;
};

void pause() { std::this_thread::sleep_for(std::chrono::duration<double, std::milli>(pause_ms)); }

// Calls `write`, which returns the time from which to count. Returns microseconds.
template <typename Write>
double measure_bare(Woken& woken, const Write& write) {
  pause();
  const std::uint64_t before = woken.count();
  const double from_ns = write();
  woken.wait_until([&] { return woken.count() > before; });
  return (woken.last_at_ns() - from_ns) / 1000;
}

// The delays of one side.
class Delays {
 public:
  void add(double delay_us) { delays_us_.push_back(delay_us); }
  double quantile(double part) {
    std::sort(delays_us_.begin(), delays_us_.end());
    return delays_us_.at(
        static_cast<std::size_t>(part * static_cast<double>(delays_us_.size() - 1)));
  }

 private:
  std::vector<double> delays_us_;
};

void report_delays(const std::string& workload, std::uint64_t items, Delays& ours, Delays& bare,
                   Report& report) {
  fmt::print("\n{}, {} writes, us{:>17}{:>10}{:>9}{:>10}\n", workload, items, "whycache", "bare",
             "ratio", "at most");
  struct {
    const char* name;
    double part;
    double ratio_max;
  } const quantiles[] = {{"p50", 0.5, 2}, {"p99", 0.99, 3}};
  for (const auto& [name, part, ratio_max] : quantiles) {
    const double own_us = ours.quantile(part);
    const double bare_us = bare.quantile(part);
    report.add(workload + '_' + name, items, "whycache", "us", own_us);
    report.add(workload + '_' + name, items, "bare", "us", bare_us);
    fmt::print("  {:<35}{:>10.1f}{:>10.1f}{:>7.2f} x{:>8.1f} x\n", name, own_us, bare_us,
               own_us / bare_us, ratio_max);
  }
  std::fflush(stdout);
}

// A machine that writes, and another one that follows.
class Machines {
 public:
  Machines(const std::string& url, const std::string& writer_state, const std::string& other_state)
      : cache_(url, with(writer_state)),
        follower_([&](Arrivals& arrivals) { follow(url, other_state, arrivals); }),
        other_(Cache::attach(other_state)) {}

  // Writes. Returns microseconds from the return of set() to when the other machine has the update.
  double measure() {
    pause();
    std::array<char, key_bytes> key;
    std::array<char, value_bytes> value;
    write_key(key.data(), ++count_);
    write_value(value.data(), count_, count_);
    const UpdateId id = cache_.set({key.data(), key.size()}, {value.data(), value.size()});
    const double returned_ns = monotonic_time_ns();
    follower_.wait_until([&] { return other_.applied_id() >= id; });
    return (monotonic_time_ns() - returned_ns) / 1000;
  }

 private:
  static whycache::Options with(const std::string& state_path) {
    whycache::Options options;
    options.state_path = state_path;
    return options;
  }
  Cache cache_;
  Woken follower_;
  const Cache other_;
  std::uint64_t count_ = 0;
};

void measure_postgres(const PostgresDatabase& database, const std::string& states,
                      std::uint64_t items, Report& report) {
  const BarePostgres client(database.parameters());
  client.run("CREATE TABLE bare (id bigint PRIMARY KEY, bytes bytea NOT NULL)");
  client.check(::PQprepare(client.get(), "insert", "INSERT INTO bare VALUES ($1, $2)", 2, nullptr));
  const std::string url = database.url("alone");
  Machines machines(url, states + "/postgres_writer", states + "/postgres_other");
  Woken listener([&](Arrivals& arrivals) { listen_to_postgres(database.parameters(), arrivals); });

  const std::string bytes = "\\x" + std::string(2 * update_bytes, '7');
  Delays ours;
  Delays bare;
  for (std::uint64_t i = 0; i < warm_up_writes + items; ++i) {
    const double own_us = machines.measure();
    const double bare_us = measure_bare(listener, [&] {
      const std::string id = std::to_string(i);
      const char* const values[] = {id.c_str(), bytes.c_str()};
      client.check(::PQexecPrepared(client.get(), "insert", 2, values, nullptr, nullptr, 0));
      const double inserted_ns = monotonic_time_ns();
      client.run("NOTIFY bare, '" + id + "'");
      return inserted_ns;
    });
    if (i < warm_up_writes) continue;
    ours.add(own_us);
    bare.add(bare_us);
  }
  report_delays("visible_postgres", items, ours, bare, report);
}

void measure_redis(const PostgresDatabase& database, const RedisServer& redis,
                   const std::string& states, std::uint64_t items, Report& report) {
  const BareRedis client(redis.socket());
  const std::string url = "redis+" + database.url("tier") + "&redis=" + redis.socket();
  Machines machines(url, states + "/redis_writer", states + "/redis_other");
  Woken reader([&](Arrivals& arrivals) { wait_in_xread(redis.socket(), arrivals); });

  const std::string bytes(update_bytes, '7');
  Delays ours;
  Delays bare;
  Delays bare_returned;
  for (std::uint64_t i = 0; i < warm_up_writes + items; ++i) {
    const double own_us = machines.measure();
    double returned_ns = 0;
    double sent_ns = 0;
    const double bare_us = measure_bare(reader, [&] {
      const std::string id = std::to_string(i + 1) + "-0";
      sent_ns = monotonic_time_ns();
      client.run("XADD bare %s b %b", id.c_str(), bytes.data(), bytes.size());
      returned_ns = monotonic_time_ns();
      return sent_ns;
    });
    if (i < warm_up_writes) continue;
    ours.add(own_us);
    bare.add(bare_us);
    bare_returned.add(bare_us - (returned_ns - sent_ns) / 1000);
  }
  report_delays("visible_redis", items, ours, bare, report);
  report_delays("visible_redis_returned", items, ours, bare_returned, report);
}

void measure(const BenchmarkOptions& options, std::uint64_t items, Report& report) {
  const TemporaryDirectory states("/dev/shm");
  const PostgresDatabase database(options.directory, 50);
  if (options.wants("visible_postgres")) measure_postgres(database, states.path(), items, report);
  if (!options.wants("visible_redis") && !options.wants("visible_redis_returned")) return;
  const RedisServer redis(states.path());
  measure_redis(database, redis, states.path(), items, report);
}

}  // namespace
}  // namespace bench

int main(int argument_count, char** arguments) {
  bench::Program program{
      .description =
          "How soon another machine sees a write; described at the top of bench/visible.cc",
      .workloads = {"visible_postgres", "visible_redis", "visible_redis_returned"},
      .options = {.items = {2'000}, .directory = std::filesystem::temp_directory_path().string()},
      .measure = bench::measure,
      .own_options = {{"--pause-ms", &bench::pause_ms, "between two writes (5)", 0, 10'000}}};
  return program.run(argument_count, arguments);
}
