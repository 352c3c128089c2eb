// The log in SQLite: its schema, journal modes, locks, damage, forks, and failing disks.
#include <gtest/gtest.h>

#if WHYCACHE_WITH_SQLITE

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "log/log_helpers.h"
#include "log/root_tests.h"
#include "log/sqlite_log.h"
#include "log/stores.h"
#include "support/program.h"
#include "support/seed.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

namespace fs = std::filesystem;
using std::chrono::milliseconds;
using testing::expect_error;
using testing::read_file;
using testing::thrown_error;

constexpr int wal_bug_fixed_version = 3'051'003;

SqliteLogOptions sqlite_options(const std::string& path) {
  return {.path = path, .name = "sqlite", .deadline = milliseconds(2000)};
}

// --- The schema. ---

// Returns the SQL of docs/formats/sql.md: the schema and the worked example.
std::vector<std::string> documented_sqlite_sql() { return fenced_blocks("formats/sql.md", "sql"); }

std::string without_spaces(std::string text) {
  std::erase_if(text, [](unsigned char c) { return std::isspace(c) || c == ';'; });
  return text;
}

TEST(SqliteLogFormat, created_tables_equal_documented_schema) {
  SqliteStore store;
  store.open();
  const std::string made = Database(store.path())
                               .run(
                                   "SELECT group_concat(sql, '') FROM (SELECT sql FROM "
                                   "sqlite_schema WHERE sql IS NOT NULL ORDER BY rowid)");
  ASSERT_EQ(documented_sqlite_sql().size(), 2U);
  EXPECT_EQ(without_spaces(made), without_spaces(documented_sqlite_sql()[0]));
}

TEST(SqliteLogFormat, worked_example_opens_as_log_of_vectors) {
  SqliteStore store;
  for (const std::string& block : documented_sqlite_sql()) Database(store.path()).run(block);
  const auto log = store.open();
  expect_documented_log(*log, load_vectors()["log"]);
}

TEST(SqliteLogFormat, base_chain_keeps_all_64_bits) {
  SqliteStore store;
  const auto log = store.open();
  append_up_to(*log, 1);
  log->rewrite(1, 0xfedcba9876543210, [] { return std::nullopt; });
  EXPECT_EQ(store.open()->extent().base_chain, 0xfedcba9876543210);
}

TEST(SqliteLogFormat, other_tables_and_pragmas_in_file_are_unchanged) {
  SqliteStore store;
  Database application(store.path());
  application.run(
      "PRAGMA application_id = 1234; PRAGMA user_version = 7; CREATE TABLE people (name TEXT); "
      "INSERT INTO people "
      "VALUES ('Ada')");
  const auto log = store.open();
  append_up_to(*log, 3);
  rewrite(*log, 2, {"part"});
  EXPECT_EQ(application.run("PRAGMA application_id"), "1234");
  EXPECT_EQ(application.run("PRAGMA user_version"), "7");
  EXPECT_EQ(application.run("SELECT name FROM people"), "Ada");
  EXPECT_EQ(application.run("PRAGMA integrity_check"), "ok");
}

TEST(SqliteLogFormat, log_works_in_database_of_any_settings) {
  for (const std::string settings :
       {"encoding = 'UTF-16le'", "encoding = 'UTF-16be'", "page_size = 512", "page_size = 65536",
        "auto_vacuum = FULL", "journal_mode = OFF", "journal_mode = MEMORY",
        "journal_mode = TRUNCATE", "secure_delete = ON", "legacy_file_format = ON"}) {
    SCOPED_TRACE(settings);
    for (const int version : {3'040'001, wal_bug_fixed_version}) {
      SqliteStore store(version);
      Database application(store.path());
      application.run("PRAGMA " + settings +
                      "; CREATE TABLE people (name TEXT); INSERT INTO people VALUES ('Ada'); "
                      "CREATE VIEW names AS SELECT no_such_function(name) FROM people");
      const auto log = store.open("default", milliseconds(2000));
      append_up_to(*log, 5);
      ASSERT_TRUE(rewrite(*log, 2, {"part", std::string(5000, 'p')}));
      const auto other = store.open("default", milliseconds(2000));
      EXPECT_EQ(updates_of(*other).size(), 3U);
      EXPECT_EQ(parts_of(*other).size(), 2U);
      EXPECT_EQ(other->append(6, std::string(100'000, 'x')), Appended::yes);
      EXPECT_EQ(application.run("SELECT name FROM people"), "Ada");
      EXPECT_EQ(application.run("PRAGMA integrity_check"), "ok");
    }
  }
}

TEST(SqliteLogFormat, schema_that_this_library_cannot_read_is_invalid_not_corrupt) {
  SqliteStore store(3'040'001);
  append_up_to(*store.open(), 3);
  // Given a view in the words of a later SQLite.
  Database application(store.path());
  application.run(
      "PRAGMA writable_schema = ON; INSERT INTO sqlite_schema VALUES "
      "('view', 'later', 'later', 0, 'CREATE VIEW later AS SELECT 1 FROBNICATE 2')");
  expect_error(
      ErrorKind::invalid, [&] { store.open(); }, "newer", sqlite3_libversion());
  application.run("DELETE FROM sqlite_schema WHERE name = 'later'");
  append_up_to(*store.open(), 4);

  // Given a file of a later format, by its header.
  std::string bytes = read_file(store.path());
  bytes[47] = 9;
  const std::string later = store.path() + "-later";
  write_file(later, bytes);
  expect_error(
      ErrorKind::invalid, [&] { SqliteLog log(sqlite_options(later)); }, "newer");
  EXPECT_EQ(read_file(later), bytes);
}

TEST(SqliteLogFormat, application_table_with_name_of_the_log_is_refused_and_unchanged) {
  for (const std::string sql :
       {"CREATE TABLE whycache_logs (name TEXT)", "CREATE VIEW whycache_logs AS SELECT 1",
        "CREATE TABLE whycache_updates_default (name TEXT)",
        "CREATE TABLE t (x); CREATE INDEX whycache_parts_default ON t (x)"}) {
    SCOPED_TRACE(sql);
    SqliteStore store;
    Database(store.path()).run(sql);
    const std::string schema =
        Database(store.path()).run("SELECT group_concat(sql) FROM sqlite_schema");
    expect_error(
        ErrorKind::corrupt, [&] { store.open(); }, "not as whycache creates it");
    EXPECT_EQ(Database(store.path()).run("SELECT group_concat(sql) FROM sqlite_schema"), schema);
  }
}

TEST(SqliteLogFormat, instance_names_that_differ_only_in_case_are_refused) {
  SqliteStore store;
  store.open("Flags");
  expect_error(
      ErrorKind::invalid, [&] { store.open("flags"); }, "instance=flags", "existing=Flags");
  store.open("flags2");
}

TEST(SqliteLogFormat, log_of_other_format_is_refused_and_unchanged) {
  SqliteStore store;
  store.open();
  Database(store.path()).run("UPDATE whycache_logs SET format = 2");
  const auto log = store.open();
  expect_error(
      ErrorKind::corrupt, [&] { log->extent(); }, "format=2", "format_known=1");
  EXPECT_NE(thrown_error([&] { log->rewrite(1, 0, [] { return std::nullopt; }); }), std::nullopt);
}

// --- Journal modes. ---

TEST(SqliteLogJournal, versions_with_wal_reset_bug_are_recognized) {
  for (const int bad : {3'007'000, 3'008'011, 3'040'001, 3'044'005, 3'045'000, 3'046'001, 3'050'006,
                        3'051'000, 3'051'002}) {
    EXPECT_TRUE(has_wal_reset_bug(bad)) << bad;
  }
  for (const int good :
       {3'006'023, 3'044'006, 3'044'009, 3'050'007, 3'051'003, 3'052'000, 4'000'000})
    EXPECT_FALSE(has_wal_reset_bug(good)) << good;
}

TEST(SqliteLogJournal, wal_mode_is_used_only_without_wal_reset_bug) {
  SqliteStore with_bug(3'040'001);
  append_up_to(*with_bug.open(), 3);
  EXPECT_EQ(Database(with_bug.path()).run("PRAGMA journal_mode"),
            "delete");  // the default of a connection: a rollback journal
  EXPECT_TRUE(fs::exists(with_bug.path() + "-journal"));

  SqliteStore without(wal_bug_fixed_version);
  append_up_to(*without.open(), 3);
  EXPECT_EQ(Database(without.path()).run("PRAGMA journal_mode"), "wal");
}

TEST(SqliteLogJournal, existing_database_keeps_its_rollback_journal) {
  SqliteStore store(wal_bug_fixed_version);
  Database(store.path()).run("CREATE TABLE people (name TEXT)");
  append_up_to(*store.open(), 3);
  EXPECT_EQ(Database(store.path()).run("PRAGMA journal_mode"), "delete");
}

TEST(SqliteLogJournal, database_in_wal_mode_is_switched_to_rollback_journal) {
  SqliteStore store(3'040'001);
  append_up_to(*store.open(), 3);
  ASSERT_EQ(
      Database(store.path())
          .run("PRAGMA journal_mode = WAL; INSERT INTO whycache_updates_default VALUES (4, x'34')"),
      "wal");
  const auto log = store.open();
  append_up_to(*log, 5);
  EXPECT_EQ(Database(store.path()).run("PRAGMA journal_mode"), "delete");
  EXPECT_EQ(updates_of(*log).size(), 5U);
}

TEST(SqliteLogJournal, database_in_wal_mode_in_use_is_unavailable) {
  SqliteStore store(3'040'001);
  append_up_to(*store.open(), 3);
  {
    Database other(store.path());
    ASSERT_EQ(other.run("PRAGMA journal_mode = WAL"), "wal");
    other.run("SELECT count(*) FROM whycache_updates_default");
    const auto began = std::chrono::steady_clock::now();
    expect_error(
        ErrorKind::unavailable, [&] { store.open("default", milliseconds(100)); }, "WAL mode",
        "3.51.3");
    EXPECT_GE(std::chrono::steady_clock::now() - began, milliseconds(100));
  }
  append_up_to(*store.open(), 4);
}

TEST(SqliteLogJournal, later_switch_to_wal_mode_is_detected) {
  SqliteStore store(3'040'001);
  const auto log = store.open("default", milliseconds(100));
  append_up_to(*log, 3);
  auto other = std::make_unique<Database>(store.path());
  ASSERT_EQ(other->run("PRAGMA journal_mode = WAL"), "wal");
  other->run("SELECT count(*) FROM whycache_updates_default");

  // Only the first call may run before the log detects the switch. No later call writes.
  thrown_error([&] { log->extent(); });
  expect_error(
      ErrorKind::unavailable, [&] { log->append(4, "x"); }, "WAL mode");
  other.reset();
  EXPECT_EQ(log->append(4, "x"), Appended::yes);
  EXPECT_EQ(Database(store.path()).run("PRAGMA journal_mode"), "delete");
}

// --- Other users of the database. ---

TEST(SqliteLog, database_locked_beyond_deadline_is_unavailable) {
  SqliteStore store;
  const auto log = store.open("default", milliseconds(150));
  append_up_to(*log, 3);
  Database other(store.path());
  other.run("BEGIN EXCLUSIVE");
  for (const auto& call : std::vector<std::function<void()>>{
           [&] { log->append(4, "x"); }, [&] { log->extent(); }, [&] { updates_of(*log); },
           [&] { rewrite(*log, 2, {"part"}); }, [&] { store.open("new", milliseconds(150)); }}) {
    const auto began = std::chrono::steady_clock::now();
    expect_error(ErrorKind::unavailable, call, "locked", "waited_ms_max=150");
    EXPECT_GE(std::chrono::steady_clock::now() - began, milliseconds(150));
    EXPECT_LT(std::chrono::steady_clock::now() - began, milliseconds(5000));
  }
  other.run("COMMIT");
  EXPECT_EQ(log->append(4, "x"), Appended::yes);
}

// Runs `hold` in another process, which then keeps what it holds until its object is destroyed.
class LockHolder {
 public:
  explicit LockHolder(const std::function<void()>& hold) {
    require(::pipe(ends_) == 0, "pipe");
    child_.emplace([&] {
      hold();
      const pid_t own = ::getpid();
      require(::write(ends_[1], &own, sizeof own) == sizeof own, "write");
      ::pause();
    });
    require(::read(ends_[0], &id_, sizeof id_) == sizeof id_, "read");
  }
  LockHolder(const LockHolder&) = delete;
  LockHolder& operator=(const LockHolder&) = delete;
  ~LockHolder() {
    child_.reset();
    for (const int end : ends_) ::close(end);
  }
  std::string id() const { return std::to_string(id_); }

 private:
  int ends_[2] = {-1, -1};
  pid_t id_ = 0;
  std::optional<Child> child_;
};

TEST(SqliteLog, append_behind_lock_of_another_process_names_that_process) {
  for (const std::string sql :
       {"BEGIN; SELECT count(*) FROM whycache_updates_default",
        "PRAGMA locking_mode = EXCLUSIVE; BEGIN IMMEDIATE; INSERT INTO whycache_updates_default "
        "VALUES (100, x'00'); ROLLBACK"}) {
    SqliteStore store(3'040'001);
    append_up_to(*store.open(), 3);
    std::optional<Database> database;
    std::optional<LockHolder> holder;
    holder.emplace([&] { database.emplace(store.path()).run(sql); });
    const auto log =
        thrown_error([&] { store.open("default", milliseconds(150))->append(4, "x"); });
    ASSERT_TRUE(log);
    EXPECT_EQ(log->kind(), ErrorKind::unavailable);
    EXPECT_NE(std::string(log->what()).find("lock_holders=" + holder->id()), std::string::npos)
        << log->what();
    holder.reset();
    EXPECT_EQ(store.open()->append(4, "x"), Appended::yes);
  }
}

TEST(SqliteLog, reader_without_write_permission_delays_writer_to_its_deadline_only) {
  StoreDirectory directory;
  fs::permissions(fs::path(directory.file("x")).parent_path(), fs::perms(0755));
  const std::string path = directory.file("log.db");
  const bool ran_as_root = run_as_root([&] {
    SqliteLogOptions options = sqlite_options(path);
    options.sqlite_version = 3'040'001;
    options.deadline = milliseconds(150);
    SqliteLog log(options);
    require(log.append(1, "x") == Appended::yes, "append");
    for (const char* suffix : {"", "-journal"}) fs::permissions(path + suffix, fs::perms(0644));
    // The bytes that SQLite locks: pending, reserved, shared.
    for (const off_t byte : {0x40000000, 0x40000001, 0x40000002}) {
      const LockHolder holder([&] {
        drop_privileges();
        const int file = ::open(path.c_str(), O_RDONLY);
        struct flock lock = {};
        lock.l_type = F_RDLCK;
        lock.l_start = byte;
        lock.l_len = 1;
        require(::fcntl(file, F_SETLK, &lock) == 0, "lock");
      });
      const auto error = thrown_error([&] { log.append(2, "x"); });
      require(error && error->kind() == ErrorKind::unavailable, "append is unavailable");
      require(std::string(error->what()).find("lock_holders=" + holder.id()) != std::string::npos,
              error->what());
      require(updates_of(log).size() == 1, "reads go on");
    }
    require(log.append(2, "x") == Appended::yes, "append once the reader has ended");
  });
  if (!ran_as_root) GTEST_SKIP() << "NOT TESTED: needs root";
}

TEST(SqliteLog, journal_of_dead_writer_is_unavailable_to_readers_until_a_writer_opens) {
  StoreDirectory directory;
  fs::permissions(fs::path(directory.file("x")).parent_path(), fs::perms(0755));
  const std::string path = directory.file("log.db");
  const bool ran_as_root = run_as_root([&] {
    SqliteLogOptions options = sqlite_options(path);
    options.sqlite_version = 3'040'001;
    require(SqliteLog(options).append(1, "x") == Appended::yes, "append");
    // Given a writer that dies while it writes to the database.
    Child writer([&] {
      Database database(path);
      database.run(
          "PRAGMA journal_mode = PERSIST; PRAGMA cache_size = 1; BEGIN; INSERT INTO "
          "whycache_updates_default VALUES (2, zeroblob(100000)), (3, zeroblob(100000))");
      ::_exit(0);
    });
    require(writer.wait() == 0, "writer");
    for (const char* suffix : {"", "-journal"}) fs::permissions(path + suffix, fs::perms(0644));
    Child reader([&] {
      drop_privileges();
      const auto error = thrown_error([&] { updates_of(*std::make_unique<SqliteLog>(options)); });
      require(error && error->kind() == ErrorKind::unavailable, error ? error->what() : "no error");
      require(std::string(error->what()).find("may write") != std::string::npos, error->what());
    });
    require(reader.wait() == 0, "reader");
    require(updates_of(*std::make_unique<SqliteLog>(options)).size() == 1, "a writer repairs");
    Child later([&] {
      drop_privileges();
      require(updates_of(*std::make_unique<SqliteLog>(options)).size() == 1, "read");
    });
    require(later.wait() == 0, "reader after the repair");
  });
  if (!ran_as_root) GTEST_SKIP() << "NOT TESTED: needs root";
}

TEST(SqliteLog, append_waits_for_lock_released_in_time) {
  SqliteStore store;
  const auto log = store.open();
  append_up_to(*log, 1);
  Database other(store.path());
  other.run("BEGIN EXCLUSIVE");
  std::thread later([&] {
    std::this_thread::sleep_for(milliseconds(100));
    other.run("COMMIT");
  });
  EXPECT_EQ(log->append(2, "x"), Appended::yes);
  later.join();
}

TEST(SqliteLog, slow_reader_does_not_block_writer) {
  SqliteStore store;
  const auto log = store.open();
  append_up_to(*log, 10);
  const auto other = store.open("default", milliseconds(200));
  UpdateId next = 11;
  log->read(1, 10, [&](UpdateId, std::string_view) {
    return other->append(next++, "x") == Appended::yes;
  });
  EXPECT_EQ(next, 21U);
}

TEST(SqliteLog, append_beyond_next_id_returns_taken) {
  SqliteStore store;
  const auto log = store.open();
  append_up_to(*log, 5);
  EXPECT_EQ(log->append(7, "beyond"), Appended::taken);
  EXPECT_EQ(log->append(700, "far beyond"), Appended::taken);
  EXPECT_EQ(log->extent().head, 5U);
}

TEST(SqliteLog, append_of_reserved_id_or_empty_update_is_invalid) {
  SqliteStore store;
  const auto log = store.open();
  expect_error(
      ErrorKind::invalid, [&] { log->append(0, "x"); }, "id=0");
  expect_error(
      ErrorKind::invalid, [&] { log->append(no_end, "x"); }, "id=");
  expect_error(
      ErrorKind::invalid, [&] { log->append(1, ""); }, "empty");
  EXPECT_EQ(log->extent().head, 0U);
}

TEST(SqliteLog, log_deleted_by_sql_is_unavailable_until_created_again) {
  SqliteStore store;
  const auto log = store.open();
  append_up_to(*log, 5);
  const Uuid uuid = log->extent().uuid;
  Database(store.path())
      .run(
          "BEGIN; DROP TABLE whycache_updates_default; DROP TABLE whycache_parts_default; "
          "DELETE FROM whycache_logs WHERE instance = 'default'; COMMIT");
  expect_error(
      ErrorKind::unavailable, [&] { log->append(6, "x"); }, "log was deleted");
  expect_error(
      ErrorKind::unavailable, [&] { log->extent(); }, "log was deleted");
  expect_error(
      ErrorKind::unavailable, [&] { updates_of(*log); }, "log was deleted");

  const auto recreated = store.open();
  append_up_to(*recreated, 5);
  EXPECT_EQ(log->append(6, "by a writer of the old log"), Appended::taken);
  EXPECT_NE(log->extent().uuid, uuid);
  EXPECT_EQ(log->append(6, "x"), Appended::yes);
}

TEST(SqliteLog, rewrite_shrinks_database_file) {
  for (const int version : {0, wal_bug_fixed_version}) {
    SqliteStore store;
    SqliteLogOptions options = sqlite_options(store.path());
    options.sqlite_version = version;
    SqliteLog log(options);
    SqliteLog other(options);  // another user of the database
    for (UpdateId id = 1; id <= 300; ++id) {
      ASSERT_EQ(log.append(id, std::string(10'000, static_cast<char>('a' + id % 26))),
                Appended::yes);
    }
    Database(store.path()).run("PRAGMA wal_checkpoint(TRUNCATE)");
    ASSERT_GT(fs::file_size(store.path()), 3'000'000);

    ASSERT_TRUE(rewrite(log, 299, {"part", std::string(5000, 'p')}));

    Database(store.path()).run("PRAGMA wal_checkpoint(TRUNCATE)");
    EXPECT_LT(fs::file_size(store.path()), 100'000);
    EXPECT_EQ(Database(store.path()).run("PRAGMA integrity_check"), "ok");
    EXPECT_EQ(updates_of(other).size(), 1U);
    EXPECT_EQ(other.append(301, "and on"), Appended::yes);
    EXPECT_EQ(updates_of(log).size(), 2U);
  }
}

TEST(SqliteLog, rewrite_without_auto_vacuum_keeps_file_size) {
  SqliteStore store;
  Database(store.path()).run("PRAGMA auto_vacuum = NONE; CREATE TABLE people (name TEXT)");
  const auto log = store.open();
  for (UpdateId id = 1; id <= 30; ++id)
    ASSERT_EQ(log->append(id, std::string(10'000, 'u')), Appended::yes);
  const auto before = fs::file_size(store.path());

  ASSERT_TRUE(rewrite(*log, 29, {"part"}));

  EXPECT_EQ(fs::file_size(store.path()), before);
  EXPECT_EQ(Database(store.path()).run("PRAGMA freelist_count") == "0", false)
      << "room for later updates";
  EXPECT_EQ(log->append(31, "and on"), Appended::yes);
}

TEST(SqliteLog, rewrite_keeps_parts_of_later_base_only) {
  SqliteStore store;
  const auto log = store.open();
  append_up_to(*log, 10);
  Database database(store.path());
  for (const char* base : {"3", "5", "7"}) {
    database.run("INSERT INTO whycache_parts_default VALUES (" + std::string(base) +
                 ", zeroblob(16), 0, x'00')");
  }
  ASSERT_TRUE(rewrite(*log, 5, {"a", "b"}));
  EXPECT_EQ(database.run("SELECT group_concat(base || ':' || number) FROM whycache_parts_default "
                         "ORDER BY base, number"),
            "5:0,5:1,7:0");
  ASSERT_TRUE(rewrite(*log, 8, {"c"}));
  EXPECT_EQ(database.run("SELECT group_concat(base || ':' || number) FROM whycache_parts_default"),
            "8:0");
}

TEST(SqliteLog, rewrite_whose_parts_disappear_does_not_switch) {
  SqliteStore store;
  const auto log = store.open();
  append_up_to(*log, 10);
  int part = 0;
  expect_error(
      ErrorKind::unavailable,
      [&] {
        log->rewrite(5, 1, [&]() -> std::optional<std::string_view> {
          if (++part <= 3) return "part";
          Database(store.path()).run("DELETE FROM whycache_parts_default WHERE number = 1");
          return std::nullopt;
        });
      },
      "parts of the new base disappeared");
  EXPECT_EQ(log->extent().base, 0U);
  EXPECT_EQ(updates_of(*log).size(), 10U);
  EXPECT_EQ(Database(store.path()).run("SELECT count(*) FROM whycache_parts_default"), "0");
}

// --- Damage. ---

TEST(SqliteLogDamage, file_that_is_no_database_is_unchanged) {
  StoreDirectory directory;
  const std::string path = directory.file("log.db");
  const std::string bytes = "To whom it may concern: " + std::string(5000, '.');
  write_file(path, bytes);
  expect_error(
      ErrorKind::corrupt, [&] { SqliteLog log(sqlite_options(path)); }, "not an SQLite database",
      path);
  EXPECT_EQ(read_file(path), bytes);
}

TEST(SqliteLogDamage, empty_file_becomes_log) {
  StoreDirectory directory;
  write_file(directory.file("log.db"), "");
  SqliteLog log(sqlite_options(directory.file("log.db")));
  append_up_to(log, 2);
  EXPECT_EQ(updates_of(log).size(), 2U);
}

TEST(SqliteLogDamage, path_that_is_no_regular_file_is_refused) {
  StoreDirectory directory;
  fs::create_directory(directory.file("directory"));
  expect_error(
      ErrorKind::invalid, [&] { SqliteLog log(sqlite_options(directory.file("directory"))); },
      "not a regular file");
  ASSERT_EQ(::mkfifo(directory.file("pipe").c_str(), 0600), 0);
  expect_error(
      ErrorKind::invalid, [&] { SqliteLog log(sqlite_options(directory.file("pipe"))); },
      "not a regular file");
  fs::create_symlink(directory.file("elsewhere"), directory.file("link"));
  expect_error(
      ErrorKind::invalid, [&] { SqliteLog log(sqlite_options(directory.file("link"))); },
      "symbolic link");
  expect_error(
      ErrorKind::invalid, [&] { SqliteLog log(sqlite_options(directory.file("a/log.db"))); },
      "does not exist", directory.file("a"));
  EXPECT_FALSE(fs::exists(directory.file("a")));
}

TEST(SqliteLogDamage, missing_table_update_or_part_is_corrupt) {
  const auto expect_corrupt = [](const std::string& sql, const std::string& word) {
    SqliteStore store;
    const auto log = store.open();
    append_up_to(*log, 5);
    rewrite(*log, 2, {"a", "b"});
    Database(store.path()).run(sql);
    const auto other = store.open();
    for (Log* each : {static_cast<Log*>(log.get()), static_cast<Log*>(other.get())}) {
      expect_error(
          ErrorKind::corrupt,
          [&] {
            updates_of(*each);
            parts_of(*each);
          },
          word);
    }
  };
  expect_corrupt("DROP TABLE whycache_updates_default", "whycache_updates_default");
  expect_corrupt("DROP TABLE whycache_parts_default", "whycache_parts_default");
  expect_corrupt("DELETE FROM whycache_updates_default WHERE id = 4", "id=4");
  expect_corrupt("DELETE FROM whycache_updates_default WHERE id = 3", "id=3");
  expect_corrupt("DELETE FROM whycache_parts_default WHERE number = 1", "number=1");
}

TEST(SqliteLogDamage, tables_without_row_of_log_are_corrupt) {
  SqliteStore store;
  append_up_to(*store.open(), 3);
  Database(store.path()).run("DELETE FROM whycache_logs");
  expect_error(
      ErrorKind::corrupt, [&] { store.open(); }, "already exists");
}

TEST(SqliteLogDamage, damaged_database_throws_error_and_never_crashes) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  SqliteStore original;
  {
    const auto log = original.open();
    append_up_to(*log, 40);
    rewrite(*log, 10, {std::string(3000, 'a'), std::string(9000, 'b')});
  }
  const std::string whole = read_file(original.path());
  int refused = 0;
  for (int round = 0; round < 300; ++round) {
    StoreDirectory directory;
    std::string damaged = whole;
    if (round % 5 == 0) damaged.resize(random() % damaged.size());
    for (std::uint64_t flips = random() % 30; flips > 0 && !damaged.empty(); --flips)
      damaged[random() % damaged.size()] = static_cast<char>(random());
    write_file(directory.file("log.db"), damaged);
    const auto error = thrown_error([&] {
      SqliteLog log(sqlite_options(directory.file("log.db")));
      updates_of(log);
      parts_of(log);
      log.append(log.extent().head + 1, "x");
      rewrite(log, log.extent().head, {"part"});
    });
    if (error) ++refused;
  }
  EXPECT_GT(refused, 50);
}

// --- fork(). ---

TEST(SqliteLogFork, forked_child_must_reopen_log) {
  SqliteStore store;
  auto log = store.open();
  append_up_to(*log, 1);
  Child child([&] {
    for (const auto& call : std::vector<std::function<void()>>{
             [&] { log->extent(); }, [&] { log->append(2, "x"); }, [&] { updates_of(*log); },
             [&] { rewrite(*log, 1, {"part"}); }}) {
      const auto error = thrown_error(call);
      require(error && error->kind() == ErrorKind::invalid, "a call in the child is refused");
    }
    const auto own = log->reopen();
    require(own->append(2, "by the child") == Appended::yes, "append");
    log.reset();
    require(own->append(3, "by the child") == Appended::yes,
            "append after the parent's log was closed");
  });
  ASSERT_EQ(child.wait(), 0);
  EXPECT_EQ(log->append(4, "by the parent"), Appended::yes);
  EXPECT_EQ(updates_of(*log).size(), 4U);
}

TEST(SqliteLogFork, forks_during_appends_lose_nothing) {
  SqliteStore store;
  const auto log = store.open();
  const auto append_somewhere = [](Log& own, const std::string& bytes) {
    while (own.append(own.extent().head + 1, bytes) != Appended::yes) {
    }
  };
  std::atomic<bool> done{false};
  std::atomic<std::uint64_t> appended{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      while (!done) {
        append_somewhere(*log, "by a thread");
        ++appended;
      }
    });
  }
  constexpr int children = 30;
  constexpr int appends_each = 5;
  for (int i = 0; i < children; ++i) {
    Child child([&] {
      const auto own = log->reopen();
      for (int j = 0; j < appends_each; ++j) append_somewhere(*own, "by a child");
    });
    EXPECT_EQ(child.wait(), 0);
  }
  done = true;
  for (std::thread& thread : threads) thread.join();

  const Updates updates = updates_of(*log);
  EXPECT_EQ(updates.size(), appended + children * appends_each);
  EXPECT_EQ(std::count_if(updates.begin(), updates.end(),
                          [](const auto& update) { return update.second == "by a child"; }),
            children * appends_each);
  EXPECT_EQ(Database(store.path()).run("PRAGMA integrity_check"), "ok");
}

// --- Full disks and permissions. ---

TEST(SqliteLogDisk, new_database_has_owner_only_permissions) {
  SqliteStore store;
  append_up_to(*store.open(), 1);
  EXPECT_EQ(fs::status(store.path()).permissions(), fs::perms(0600));
}

TEST(SqliteLogDisk, full_disk_throws_limit_and_leaves_log_consistent) {
  StoreDirectory directory;
  const bool ran_as_root = run_as_root([&] {
    fs::create_directory(directory.file("disk"));
    mount_small_disk(directory.file("disk"), "1m");
    SqliteLog log(sqlite_options(directory.file("disk/log.db")));
    write_file(directory.file("disk/filler"), std::string(200'000, 'x'));
    UpdateId head = 0;
    std::optional<Error> error;
    while (!error) {
      error = thrown_error([&] {
        require(log.append(head + 1, std::string(20'000, 'u')) == Appended::yes, "append");
      });
      if (!error) ++head;
    }
    require(error->kind() == ErrorKind::limit, error->what());
    require(head > 5 && log.extent().head == head && updates_of(log).size() == head,
            "updates after a full disk");
    error = thrown_error([&] { rewrite(log, head, {std::string(300'000, 'p')}); });
    require(error && error->kind() == ErrorKind::limit, "rewrite on a full disk");
    require(log.extent().base == 0 && updates_of(log).size() == head,
            "updates after a rewrite on a full disk");

    fs::remove(directory.file("disk/filler"));
    require(log.append(head + 1, std::string(20'000, 'u')) == Appended::yes,
            "append when there is room");
    require(rewrite(log, head + 1, {"small"}) && updates_of(log).empty(),
            "rewrite when there is room");
  });
  if (!ran_as_root) GTEST_SKIP() << "NOT TESTED: needs root";
}

TEST(SqliteLogDisk, read_only_file_system_allows_reads_and_refuses_writes) {
  StoreDirectory directory;
  const bool ran_as_root = run_as_root([&] {
    fs::create_directory(directory.file("disk"));
    mount_small_disk(directory.file("disk"), "1m");
    require(
        SqliteLog(sqlite_options(directory.file("disk/log.db"))).append(1, "x") == Appended::yes,
        "append");
    make_disk_read_only(directory.file("disk"));

    SqliteLog log(sqlite_options(directory.file("disk/log.db")));
    require(updates_of(log).size() == 1, "read");
    const auto append_error = thrown_error([&] { log.append(2, "y"); });
    require(append_error && append_error->kind() == ErrorKind::invalid, "append");
    require(updates_of(log).size() == 1, "read again");
    const auto open_error =
        thrown_error([&] { SqliteLog other(sqlite_options(directory.file("disk/other.db"))); });
    require(open_error && open_error->kind() == ErrorKind::invalid &&
                open_error->system_error() == EROFS,
            "make");
  });
  if (!ran_as_root) GTEST_SKIP() << "NOT TESTED: needs root";
}

TEST(SqliteLogDisk, read_only_user_follows_in_wal_mode_without_connected_writer) {
  StoreDirectory directory;
  fs::permissions(fs::path(directory.file("x")).parent_path(), fs::perms(0755));
  SqliteLogOptions options = sqlite_options(directory.file("log.db"));
  options.sqlite_version = wal_bug_fixed_version;
  const bool ran_as_root = run_as_root([&] {
    append_up_to(*std::make_unique<SqliteLog>(options), 3);
    require(fs::file_size(options.path + "-wal") == 0, "all is in the database");
    for (const char* suffix : {"", "-wal", "-shm"})
      fs::permissions(options.path + suffix, fs::perms(0644));
    append_up_to(*std::make_unique<SqliteLog>(options), 5);
    Child reader([&] {
      drop_privileges();
      SqliteLog log(options);
      require(updates_of(log).size() == 5, "read");
      const auto error = thrown_error([&] { log.append(6, "z"); });
      require(error && error->kind() == ErrorKind::invalid, "a reader cannot append");
    });
    require(reader.wait() == 0, "reader");
  });
  if (!ran_as_root) GTEST_SKIP() << "NOT TESTED: needs root";
}

TEST(SqliteLogDisk, read_only_user_can_follow_and_other_user_is_refused) {
  StoreDirectory directory;
  fs::permissions(fs::path(directory.file("x")).parent_path(), fs::perms(0755));
  const std::string path = directory.file("log.db");
  const bool ran_as_root = run_as_root([&] {
    require(SqliteLog(sqlite_options(path)).append(1, "x") == Appended::yes, "append");
    Child other_user([&] {
      drop_privileges();
      const auto error = thrown_error([&] { SqliteLog log(sqlite_options(path)); });
      require(error && error->kind() == ErrorKind::invalid && error->system_error() == EACCES,
              "a other_user is refused");
    });
    require(other_user.wait() == 0, "other_user");
    for (const char* suffix : {"", "-journal"}) fs::permissions(path + suffix, fs::perms(0644));
    Child reader([&] {
      drop_privileges();
      SqliteLog log(sqlite_options(path));
      require(updates_of(log).size() == 1, "read");
      const auto error = thrown_error([&] { log.append(2, "y"); });
      require(error && error->kind() == ErrorKind::invalid, "a reader cannot append");
    });
    require(reader.wait() == 0, "reader");
  });
  if (!ran_as_root) GTEST_SKIP() << "NOT TESTED: needs root";
}

}  // namespace
}  // namespace whycache

#endif
