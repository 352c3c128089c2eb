// The speed of writes to a durable log. Workloads, each for `mysql` and `postgres` (a MariaDB and a
// PostgreSQL server that this program starts, reached by their unix sockets, which sync at every
// commit) and for `sqlite`:
//
//   write_single        one writer calls Cache::set repeatedly; for comparison, `mysql_bare`,
//                       `postgres_bare` and `sqlite_bare` insert one row of the same bytes in a
//                       transaction of its own, with a prepared statement, and the same kind of
//                       connection and settings
//   write_threads_64    64 threads of one process call set on one Cache, which groups waiting
//                       writes into one update
//   write_processes_8   8 processes of one machine, which share a state and queue for the log
//   write_machines_8    8 processes with a state each, like separate machines, which race for the
//                       next update id; only mysql
//
// Figures are writes per second of wall time, of all writers together. For several processes,
// write_processes_8_slowest and write_machines_8_slowest are the rate of the slowest writer as a
// share of the mean. Ratios (..._to_bare, ..._to_single) are medians of the ratios within each
// repetition, so that a slow minute of the machine affects both sides. write_single_statements and
// write_single_syncs are the server's own counters per write.
//
// The databases are on the disk of --folder, by default that of temporary files, because syncing
// costs nothing in /dev/shm; the states are in /dev/shm. The single writer is always measured,
// because the other workloads are compared with it. After every measurement the log must contain as
// many updates as were written, and the state the last value.
#include <sqlite3.h>
#include <unistd.h>
#include <whycache/cache.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "bench/child.h"
#include "bench/clock.h"
#include "bench/data.h"
#include "bench/database.h"
#if WHYCACHE_WITH_POSTGRES
#include "bench/postgres_database.h"
#endif
#include "bench/program.h"
#include "bench/report.h"
#include "bench/temporary_directory.h"
#include "client/cache_internal.h"
#include "log/sqlite_log.h"

namespace bench {
namespace {

using whycache::Cache;
using whycache::UpdateId;

constexpr std::size_t thread_count = 64;
constexpr std::size_t process_count = 8;
constexpr int warm_up_writes = 50;
constexpr double turn_ns = 5e7;

double seconds_per_measurement = 1;

// Inserts one row in a transaction of its own.
using InsertRow = std::function<void(std::uint64_t id, std::string_view bytes)>;
using ReadCounters = std::function<std::map<std::string, double>()>;

InsertRow prepare_mysql_insert(const Database& database) {
  const std::shared_ptr<whycache::MysqlConnection> connection = database.connect();
  connection->run(std::string(
      "CREATE TABLE bare (instance VARCHAR(48) CHARACTER SET ascii COLLATE ascii_bin NOT NULL, "
      "id BIGINT UNSIGNED NOT NULL, bytes LONGBLOB NOT NULL, PRIMARY KEY (instance, id)) "
      "ENGINE = InnoDB"));
  return [connection](std::uint64_t id, std::string_view bytes) {
    const std::string sql = "INSERT INTO bare (instance, id, bytes) VALUES ('default', ?, ?)";
    if (connection->run(sql, {id, bytes}) != 1) throw std::runtime_error("a row was not inserted");
  };
}

#if WHYCACHE_WITH_POSTGRES
InsertRow prepare_postgres_insert(const PostgresDatabase& database) {
  const auto client = std::make_shared<BarePostgres>(database.parameters());
  client->run(
      "CREATE TABLE bare (instance text NOT NULL, id bigint NOT NULL, bytes bytea NOT NULL, "
      "PRIMARY KEY (instance, id))");
  client->run("ALTER TABLE bare ALTER bytes SET STORAGE EXTERNAL");
  client->check(::PQprepare(client->get(), "insert",
                            "INSERT INTO bare (instance, id, bytes) VALUES ('default', $1, $2)", 2,
                            nullptr));
  return [client](std::uint64_t id, std::string_view bytes) {
    const std::string digits = std::to_string(id);
    const char* const values[] = {digits.c_str(), bytes.data()};
    const int sizes[] = {0, static_cast<int>(bytes.size())};
    const int formats[] = {0, 1};
    client->check(::PQexecPrepared(client->get(), "insert", 2, values, sizes, formats, 1));
  };
}
#endif

void check_sqlite(sqlite3* database, bool good) {
  if (!good) throw std::runtime_error(std::string("sqlite: ") + ::sqlite3_errmsg(database));
}

InsertRow prepare_sqlite_insert(const std::string& path) {
  sqlite3* opened = nullptr;
  const int code = ::sqlite3_open(path.c_str(), &opened);
  const std::shared_ptr<sqlite3> database(opened, ::sqlite3_close);
  check_sqlite(opened, code == SQLITE_OK);
  const bool wal = !whycache::has_wal_reset_bug(::sqlite3_libversion_number());
  for (const char* sql : {wal ? "PRAGMA journal_mode = WAL" : "PRAGMA journal_mode = PERSIST",
                          "PRAGMA synchronous = FULL",
                          "CREATE TABLE bare (id INTEGER PRIMARY KEY, bytes BLOB NOT NULL)"}) {
    check_sqlite(opened, ::sqlite3_exec(opened, sql, nullptr, nullptr, nullptr) == SQLITE_OK);
  }
  sqlite3_stmt* prepared = nullptr;
  check_sqlite(opened, ::sqlite3_prepare_v2(opened, "INSERT INTO bare (id, bytes) VALUES (?1, ?2)",
                                            -1, &prepared, nullptr) == SQLITE_OK);
  const std::shared_ptr<sqlite3_stmt> statement(
      prepared, [database](sqlite3_stmt* ended) { ::sqlite3_finalize(ended); });
  return [statement, opened](std::uint64_t id, std::string_view bytes) {
    ::sqlite3_bind_int64(statement.get(), 1, static_cast<std::int64_t>(id));
    ::sqlite3_bind_blob64(statement.get(), 2, bytes.data(), bytes.size(), SQLITE_STATIC);
    check_sqlite(opened, ::sqlite3_step(statement.get()) == SQLITE_DONE);
    check_sqlite(opened, ::sqlite3_reset(statement.get()) == SQLITE_OK);
  };
}

// Sets keys of its own, one after the other, until the time is over.
class Writer {
 public:
  Writer(Cache& cache, std::uint64_t items, std::uint64_t first_item = 0)
      : cache_(cache), items_(items), first_item_(first_item) {}

  void write() {
    const std::uint64_t item = first_item_ + count_ % items_;
    write_key(key_.data(), item);
    write_value(value_.data(), item, ++count_);
    cache_.set(key(), value());
  }
  void write_until(double end_ns) {
    while (monotonic_time_ns() < end_ns) write();
  }

  std::uint64_t count() const { return count_; }
  // Throws std::runtime_error if the cache does not have the last value written.
  void check() const {
    if (count_ > 0 && cache_.get(key()) != value())
      throw std::runtime_error("the last value written is missing");
  }

 private:
  std::string_view key() const { return {key_.data(), key_.size()}; }
  std::string_view value() const { return {value_.data(), value_.size()}; }

  Cache& cache_;
  std::uint64_t items_;
  std::uint64_t first_item_;
  std::uint64_t count_ = 0;
  std::array<char, key_bytes> key_{};
  std::array<char, value_bytes> value_{};
};

// The number of writes, and how long they took.
struct Rate {
  std::uint64_t writes = 0;
  double ns = 0;
  std::uint64_t updates = 0;
  double slowest_share = 1;                         // of the mean
  std::map<std::string, double> server_counters{};  // their increase

  double per_write(const char* counter) const {
    return server_counters.at(counter) / static_cast<double>(writes);
  }
  double per_second() const { return static_cast<double>(writes) / ns * 1e9; }
};

// A log, and the measurements on it.
class MeasuredLog {
 public:
  MeasuredLog(std::string name, std::string url, const std::string& states, std::uint64_t items,
              InsertRow insert, ReadCounters status)
      : name_(std::move(name)),
        url_(std::move(url)),
        state_path_prefix_(states + '/' + name_),
        items_(items),
        insert_row_(std::move(insert)),
        read_counters_(std::move(status)) {}

  const std::string& name() const { return name_; }

  // Measures the bare database and one writer in short turns, because the speed of the disk may
  // change by a factor within a second.
  std::pair<Rate, Rate> write_by_turns(double seconds) {
    Cache cache = open("machine");
    Writer writer(cache, items_);
    for (int i = 0; i < warm_up_writes; ++i) writer.write();
    if (row_bytes_.empty()) row_bytes_ = last_update(cache);
    for (int i = 0; i < warm_up_writes; ++i) insert_row_(++bare_row_count_, row_bytes_);

    Rate bare;
    Rate single;
    const UpdateId before = cache.applied_id();
    while (bare.ns < seconds * 1e9 || single.ns < seconds * 1e9) {
      stop_if_interrupted();
      run_turn(bare, [&] { insert_row_(++bare_row_count_, row_bytes_); });
      run_turn(single, [&] { writer.write(); });
    }
    single.updates = updates_since(cache, before);
    if (single.updates != single.writes)
      throw std::runtime_error("the log has not as many updates as were written");
    writer.check();
    return {bare, single};
  }

  Rate write_with_threads(double seconds) {
    Cache cache = open("machine");
    std::vector<Writer> writers;
    const std::uint64_t items_each = items_ / thread_count;
    for (std::size_t i = 0; i < thread_count; ++i)
      writers.emplace_back(cache, items_each, i * items_each);
    std::atomic<std::size_t> ready = 0;
    std::atomic<double> end = 0;
    std::vector<std::string> failures(thread_count);
    std::vector<std::thread> threads;
    for (std::size_t i = 0; i < thread_count; ++i) {
      threads.emplace_back([&, i] {
        ++ready;
        while (end == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        try {
          writers[i].write_until(end);
        } catch (const std::exception& error) {
          failures[i] = error.what();
        }
      });
    }
    while (ready < thread_count) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    const UpdateId before = cache.applied_id();
    const double begin = monotonic_time_ns();
    end = begin + seconds * 1e9;
    for (std::thread& thread : threads) thread.join();
    Rate rate{0, monotonic_time_ns() - begin};
    for (const std::string& failure : failures) {
      if (!failure.empty()) throw std::runtime_error("a thread failed: " + failure);
    }
    for (const Writer& writer : writers) {
      rate.writes += writer.count();
      writer.check();
    }
    rate.updates = updates_since(cache, before);
    return rate;
  }

  // Measures writers with one shared state, or with a state each.
  Rate write_with_processes(double seconds, bool one_state) {
    struct Start {
      std::atomic<std::size_t> ready = 0;
      std::atomic<double> end = 0;
      std::array<std::uint64_t, process_count> writes{};
      std::array<double, process_count> ended{};
    };
    const UpdateId before = open("machine").update();
    const SharedWithChildren<Start> start;
    std::array<std::optional<Child>, process_count> children;
    for (std::size_t i = 0; i < process_count; ++i) {
      children[i].emplace([&, i] {
        Cache cache = open(one_state ? "machine" : "machine" + std::to_string(i));
        Writer writer(cache, items_);
        ++start->ready;
        while (start->end == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
        writer.write_until(start->end);
        start->ended[i] = monotonic_time_ns();
        start->writes[i] = writer.count();
      });
    }
    while (start->ready < process_count) {
      for (std::optional<Child>& child : children) child->throw_if_failed();
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    const double begin = monotonic_time_ns();
    start->end = begin + seconds * 1e9;
    for (std::optional<Child>& child : children) child->wait();
    Rate rate;
    rate.writes = std::accumulate(start->writes.begin(), start->writes.end(), std::uint64_t{0});
    rate.ns = *std::max_element(start->ended.begin(), start->ended.end()) - begin;
    const auto slowest =
        static_cast<double>(*std::min_element(start->writes.begin(), start->writes.end()));
    rate.slowest_share = slowest * process_count / static_cast<double>(rate.writes);
    Cache cache = open("machine");
    rate.updates = updates_since(cache, before);
    if (rate.updates != rate.writes)
      throw std::runtime_error("the log has not as many updates as were written");
    return rate;
  }

 private:
  Cache open(const std::string& machine) const {
    whycache::Options options;
    options.state_path = state_path_prefix_ + '_' + machine;
    options.deadline = std::chrono::seconds(30);
    Cache cache(url_, options);
    cache.update();
    return cache;
  }
  static UpdateId updates_since(Cache& cache, UpdateId before) {
    return cache.update({.staleness_max = std::chrono::nanoseconds(0)}) - before;
  }
  static std::string last_update(Cache& cache) {
    std::string bytes;
    whycache::CacheInternal::log(cache).read(cache.applied_id(), cache.applied_id(),
                                             [&](UpdateId, std::string_view found) {
                                               bytes = found;
                                               return true;
                                             });
    return bytes;
  }

  // Also adds up the counters of the server, if there is one.
  template <typename Write>
  void run_turn(Rate& rate, const Write& write) const {
    const auto before = read_counters_();
    const double begin = monotonic_time_ns();
    for (const double end = begin + turn_ns; monotonic_time_ns() < end; ++rate.writes) write();
    rate.ns += monotonic_time_ns() - begin;
    for (const auto& [counter, count] : read_counters_())
      rate.server_counters[counter] += count - before.at(counter);
  }

  std::string name_;
  std::string url_;
  std::string state_path_prefix_;
  std::uint64_t items_;
  InsertRow insert_row_;
  ReadCounters read_counters_;
  std::string row_bytes_;
  std::uint64_t bare_row_count_ = 0;
};

// Targets for the ratios.
struct Goal {
  const char* workload;
  const char* description;
  double target;  // 0 means none
};
constexpr std::array<Goal, 6> goals = {{
    {"write_single_to_bare", "one writer, of the bare database", 0.8},
    {"write_threads_64_to_single", "64 threads, of one writer", 15},
    {"write_processes_8_to_single", "8 processes, of one writer", 0.6},
    {"write_processes_8_slowest", "the slowest of them, of their mean", 0.25},
    {"write_machines_8_to_single", "8 machines, of one writer", 0},
    {"write_machines_8_slowest", "the slowest of them, of their mean", 0},
}};

void print_tables(const std::vector<MeasuredLog>& stores, std::uint64_t items,
                  const Report& report) {
  for (const char* workload :
       {"write_single", "write_threads_64", "write_processes_8", "write_machines_8",
        "write_single_statements", "write_single_syncs", "write_threads_64_group"}) {
    report.print(workload, items);
  }
  fmt::print("\n  {:<36}", "");
  for (const MeasuredLog& store : stores) fmt::print("{:>9}", store.name());
  fmt::print("{:>12}\n", "to reach");
  for (const Goal& goal : goals) {
    if (!report.median(goal.workload, items, stores[0].name())) continue;
    fmt::print("  {:<36}", goal.description);
    for (const MeasuredLog& store : stores) {
      const std::optional<double> reached = report.median(goal.workload, items, store.name());
      fmt::print("{:>9}", reached ? fmt::format("{:.2f} x", *reached) : "");
    }
    fmt::print("{:>12}\n", goal.target > 0 ? fmt::format("{:.2f} x", goal.target) : "");
  }
  std::fflush(stdout);
}

void measure(const BenchmarkOptions& options, std::uint64_t items, Report& report) {
  const TemporaryDirectory directory(options.directory);
  const TemporaryDirectory states("/dev/shm");
  Database database(directory.path(), 2 * thread_count);
  std::vector<MeasuredLog> stores;
  stores.emplace_back("mysql", database.url("default"), states.path(), items,
                      prepare_mysql_insert(database), [&] { return database.status(); });
  stores.emplace_back("sqlite", "sqlite://" + directory.path() + "/log.db", states.path(), items,
                      prepare_sqlite_insert(directory.path() + "/bare.db"),
                      [] { return std::map<std::string, double>(); });
#if WHYCACHE_WITH_POSTGRES
  const PostgresDatabase postgres(options.directory, 2 * thread_count);
  stores.emplace_back("postgres", postgres.url("default"), states.path(), items,
                      prepare_postgres_insert(postgres),
                      [] { return std::map<std::string, double>(); });
#endif
  // The first round is a warm-up.
  for (int repetition = -1; repetition < options.repetitions; ++repetition) {
    const double seconds = repetition < 0 ? seconds_per_measurement / 5 : seconds_per_measurement;
    for (MeasuredLog& store : stores) {
      const auto add = [&](const std::string& workload, const std::string& subject,
                           const char* unit, double figure) {
        if (repetition >= 0) report.add(workload, items, subject, unit, figure);
      };
      const auto [bare, one] = store.write_by_turns(seconds);
      const double single = one.per_second();
      add("write_single", store.name() + "_bare", "1/s", bare.per_second());
      add("write_single", store.name(), "1/s", single);
      add("write_single_to_bare", store.name(), "x", single / bare.per_second());
      if (!one.server_counters.empty()) {
        for (const auto& [subject, rate] :
             {std::pair(store.name() + "_bare", bare), std::pair(store.name(), one)}) {
          add("write_single_statements", subject, "each", rate.per_write("Questions"));
          add("write_single_syncs", subject, "each", rate.per_write("Innodb_data_fsyncs"));
        }
      }

      if (options.wants("write_threads_64")) {
        stop_if_interrupted();
        const Rate rate = store.write_with_threads(seconds);
        add("write_threads_64", store.name(), "1/s", rate.per_second());
        add("write_threads_64_to_single", store.name(), "x", rate.per_second() / single);
        add("write_threads_64_group", store.name(), "writes in an update",
            static_cast<double>(rate.writes) / static_cast<double>(rate.updates));
      }
      for (const auto& [workload, one_state] :
           {std::pair("write_processes_8", true), std::pair("write_machines_8", false)}) {
        if (!options.wants(workload) || (!one_state && store.name() == "sqlite")) continue;
        stop_if_interrupted();
        const Rate rate = store.write_with_processes(seconds, one_state);
        add(workload, store.name(), "1/s", rate.per_second());
        add(std::string(workload) + "_to_single", store.name(), "x", rate.per_second() / single);
        add(std::string(workload) + "_slowest", store.name(), "x", rate.slowest_share);
      }
    }
  }
  print_tables(stores, items, report);
}

Program program = {
    .description = "How fast writes are; described at the top of bench/writes.cc",
    .workloads = {"write_single", "write_threads_64", "write_processes_8", "write_machines_8"},
    .options = {.items = {1'000}, .directory = std::filesystem::temp_directory_path().string()},
    .measure = measure,
    .own_options = {
        {"--seconds", &seconds_per_measurement, "how long to measure each workload", 0.01, 60}}};

}  // namespace
}  // namespace bench

int main(int argument_count, char** arguments) {
  try {
    return bench::program.run(argument_count, arguments);
  } catch (const whycache::MysqlFailure& failure) {
    fmt::print(stderr, "{}: {}\n", arguments[0], failure.reason);
    return 1;
  }
}
