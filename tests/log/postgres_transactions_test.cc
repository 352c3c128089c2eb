// The log in PostgreSQL beside foreign transactions: order, locks, snapshots, rewrites.
#include <gtest/gtest.h>

#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "log/postgres_connection.h"
#include "log/postgres_test_support.h"
#include "log/statement_time.h"
#include "support/child_process.h"

namespace whycache {
namespace {

using PostgresLogTransactions = PostgresTest;

// Makes the statement that inserts an update with the bytes "paused" wait, between the moment at
// which it took its snapshot and the insertion, until release().
class PausedInsert {
 public:
  explicit PausedInsert(PostgresStore& store) : client_(store.client()) {
    client_.run(
        "CREATE FUNCTION pause_insert() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF NEW.bytes = 'paused'::bytea THEN PERFORM pg_advisory_xact_lock(42); END IF; "
        "RETURN NEW; END $$");
    client_.run(
        "CREATE TRIGGER pause_insert BEFORE INSERT ON whycache_updates FOR EACH ROW EXECUTE "
        "FUNCTION pause_insert()");
    client_.run("SELECT pg_advisory_lock(42)");
  }
  void release() { client_.run("SELECT pg_advisory_unlock(42)"); }

 private:
  PostgresClient client_;
};

// Shows why the lock is needed. At READ COMMITTED, the base moves between the snapshot of the
// statement and its insertion, and an update that was acknowledged is never read.
TEST_F(PostgresLogTransactions, guarded_insert_without_row_lock_lands_below_base) {
  PostgresStore store;
  const auto log = store.open();
  append_up_to(*log, 5);
  PausedInsert pause(store);
  std::string inserted;
  std::thread writer([&] {
    PostgresClient client = store.client();
    inserted = client.run(
        "WITH done AS (INSERT INTO whycache_updates (instance, id, bytes) SELECT l.instance, 6, "
        "'paused' FROM whycache_logs AS l WHERE l.instance = 'default' AND l.base < 6 AND (l.base "
        "= 5 OR EXISTS (SELECT 1 FROM whycache_updates AS u WHERE u.instance = 'default' AND u.id "
        "= 5)) ON CONFLICT DO NOTHING RETURNING 1) SELECT count(*) FROM done");
  });
  ASSERT_TRUE(becomes_blocked(store));
  append_up_to(*log, 8);
  ASSERT_TRUE(rewrite(*log, 8, {"part"}));
  pause.release();
  writer.join();
  EXPECT_EQ(inserted, "1") << "the statement reports success";
  EXPECT_TRUE(updates_of(*log).empty()) << "nobody sees the update";
  EXPECT_EQ(log->extent().head, 8U);
}

TEST_F(PostgresLogTransactions, append_keeps_base_where_it_was_until_it_is_committed) {
  PostgresStore store;
  const auto log = store.open();
  append_up_to(*log, 5);
  PausedInsert pause(store);
  std::optional<Appended> appended;
  std::thread writer([&] { appended = store.open()->append(6, "paused"); });
  ASSERT_TRUE(becomes_blocked(store));
  append_up_to(*log, 8);
  std::optional<bool> switched;
  std::thread rewriter([&] { switched = rewrite(*store.open(), 8, {"part"}); });
  ASSERT_TRUE(becomes_blocked(store, 2)) << "the switch waits for the append";
  EXPECT_EQ(log->extent().base, 0U);
  pause.release();
  writer.join();
  rewriter.join();
  EXPECT_TRUE(appended == Appended::taken || appended == Appended::below_base);
  EXPECT_EQ(switched, true);
  EXPECT_EQ(store.stored_updates(), 0U);
  EXPECT_EQ(log->extent().base, 8U);
}

// The append took its snapshot before the switch, and gets the lock after it.
TEST_F(PostgresLogTransactions, append_that_waited_for_switch_sees_new_base) {
  PostgresStore store;
  const auto log = store.open();
  append_up_to(*log, 8);
  store.run("DELETE FROM whycache_updates WHERE id > 5");
  PostgresClient other = store.client();
  other.run("BEGIN");
  other.run("UPDATE whycache_logs SET base = 8");
  std::optional<Appended> appended;
  std::thread writer([&] { appended = store.open()->append(6, "late"); });
  ASSERT_TRUE(becomes_blocked(store));
  other.run("COMMIT");
  writer.join();
  EXPECT_EQ(appended, Appended::below_base);
  EXPECT_EQ(store.stored_updates(), 5U);
}

TEST_F(PostgresLogTransactions, append_waits_for_uncommitted_update_at_its_id) {
  PostgresStore store;
  const auto log = store.open();
  append_up_to(*log, 3);
  for (const bool commits : {true, false}) {
    const UpdateId head = log->extent().head;
    PostgresClient other = store.client();
    other.run("BEGIN");
    other.run("INSERT INTO whycache_updates VALUES ('default', " + std::to_string(head + 1) +
              ", 'held')");
    std::optional<Appended> at_next_id;
    std::thread same([&] { at_next_id = store.open()->append(head + 1, "mine"); });
    ASSERT_TRUE(becomes_blocked(store));
    EXPECT_EQ(store.open()->append(head + 2, "beyond"), Appended::taken);
    EXPECT_EQ(log->extent().head, head);
    EXPECT_EQ(updates_of(*log).size(), head);

    other.run(commits ? "COMMIT" : "ROLLBACK");
    same.join();
    EXPECT_EQ(at_next_id, commits ? Appended::taken : Appended::yes);
    const Updates updates = updates_of(*log);
    EXPECT_EQ(updates.at(head + 1), commits ? "held" : "mine");
    EXPECT_EQ(updates.size(), log->extent().head);
  }
}

// An UPDATE alone would take its snapshot, find all parts, wait for the lock, and go on without
// looking again, as the row has not changed.
TEST_F(PostgresLogTransactions, switch_that_waited_for_deletion_of_its_parts_does_not_happen) {
  PostgresStore store;
  const auto log = store.open();
  append_up_to(*log, 10);
  PostgresClient other = store.client();
  std::thread commit;
  int part = 0;
  expect_error(
      ErrorKind::unavailable,
      [&] {
        log->rewrite(5, 1, [&]() -> std::optional<std::string_view> {
          if (++part <= 3) return "part";
          other.run("BEGIN");
          other.run("SELECT 1 FROM whycache_logs FOR SHARE");
          other.run("DELETE FROM whycache_parts");
          commit = std::thread([&] {
            EXPECT_TRUE(becomes_blocked(store));
            other.run("COMMIT");
          });
          return std::nullopt;
        });
      },
      "parts of the new base disappeared");
  commit.join();
  EXPECT_EQ(log->extent().base, 0U);
  EXPECT_EQ(updates_of(*log).size(), 10U);
  EXPECT_EQ(store.run("SELECT count(*) FROM whycache_parts"), "0");
}

TEST_F(PostgresLogTransactions, rewrite_keeps_parts_of_later_base_only) {
  PostgresStore store;
  const auto log = store.open();
  append_up_to(*log, 10);
  for (const std::string base : {"3", "5", "7"}) {
    store.run("INSERT INTO whycache_parts VALUES ('default', " + base +
              ", repeat('0', 16)::bytea, 0, 'x'), ('other', " + base +
              ", repeat('0', 16)::bytea, 0, 'x')");
  }
  const auto parts_left = [&] {
    return store.run(
        "SELECT string_agg(base || ':' || number, ',' ORDER BY base, number) FROM whycache_parts "
        "WHERE instance = 'default'");
  };
  ASSERT_TRUE(rewrite(*log, 5, {"a", "b"}));
  EXPECT_EQ(parts_left(), "5:0,5:1,7:0");
  ASSERT_TRUE(rewrite(*log, 8, {"c"}));
  EXPECT_EQ(parts_left(), "8:0");
  EXPECT_EQ(store.run("SELECT count(*) FROM whycache_parts WHERE instance = 'other'"), "3");
}

TEST_F(PostgresLogTransactions, rewrite_deletes_more_updates_than_one_batch) {
  PostgresStore store;
  const auto log = store.open();
  append_up_to(*log, 1);
  store.run(
      "INSERT INTO whycache_updates SELECT 'default', n, 'x' FROM generate_series(2, 1000) n");
  ASSERT_TRUE(rewrite(*log, 990, {"part"}));
  EXPECT_EQ(store.stored_updates(), 10U);
}

TEST_F(PostgresLogTransactions, row_lock_held_beyond_deadline_makes_append_unavailable) {
  PostgresStore store;
  const auto log = store.open("default", milliseconds(1000));
  append_up_to(*log, 3);
  PostgresClient other = store.client();
  other.run("BEGIN");
  other.run("UPDATE whycache_logs SET part_count = 1 WHERE instance = 'default'");
  std::optional<Error> error;
  const milliseconds waited =
      measure_duration([&] { error = thrown_error([&] { log->append(4, "x"); }); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::unavailable) << error->what();
  EXPECT_EQ(error->system_error(), EBUSY) << error->what();
  EXPECT_NE(std::string(error->what()).find("connections_with_locks="), std::string::npos)
      << error->what();
  EXPECT_GE(waited, milliseconds(500));
  EXPECT_LT(waited, milliseconds(4000));
  EXPECT_EQ(updates_of(*log).size(), 3U) << "a read waits for no lock";
  other.run("ROLLBACK");
  EXPECT_EQ(log->append(4, "x"), Appended::yes);
}

TEST_F(PostgresLogTransactions, deadlocked_append_is_retried) {
  PostgresStore store;
  const auto log = store.open();
  append_up_to(*log, 5);
  PostgresClient other = store.client();
  other.run("SET deadlock_timeout = '20s'");  // so that the append is the one that is rolled back
  other.run("BEGIN");
  other.run("INSERT INTO whycache_updates VALUES ('default', 6, 'held')");
  // The append holds the row of the log, and waits for the update at its id.
  std::optional<Appended> appended;
  std::thread writer([&] { appended = log->append(6, "x"); });
  ASSERT_TRUE(becomes_blocked(store));
  other.run("UPDATE whycache_logs SET part_count = part_count");
  other.run("ROLLBACK");
  writer.join();
  EXPECT_EQ(appended, Appended::yes);
  EXPECT_EQ(updates_of(*log).at(6), "x");
  EXPECT_EQ(store.run("SELECT deadlocks > 0 FROM pg_stat_database WHERE datname = '" +
                      store.database() + "'"),
            "t");
}

// --- The session. ---

TEST_F(PostgresLogTransactions, read_may_use_nearly_all_of_its_deadline) {
  using std::chrono::seconds;
  PostgresStore store;
  PostgresConnection connection(store.options().server, Deadline(seconds(20)));
  // They are so long that the time that the calls take does not matter.
  for (const int deadline_s : {1'000, 990, 900, 800, 1'000, 1'040, 1'200, 3'000}) {
    const PostgresRows rows =
        connection.query({"SELECT setting FROM pg_settings WHERE name = 'statement_timeout'"},
                         Deadline(seconds(deadline_s)));
    const int limit_ms = std::stoi(std::string(rows.at(0, 0).value_or("0")));
    EXPECT_LE(limit_ms, statement_time(seconds(deadline_s)).count()) << deadline_s;
    EXPECT_GT(limit_ms, statement_time(seconds(deadline_s)).count() * 92 / 100) << deadline_s;
  }
}

// A balancer may lead one connection of a client to several servers.
TEST_F(PostgresLogTransactions, answer_by_another_server_is_noticed_by_a_read) {
  PostgresTestServer server;
  PostgresStore store(server);
  const auto log = store.open();
  append_up_to(*log, 3);
  EXPECT_EQ(updates_of(*log).size(), 3U);
  PostgresClient(server, store.database())
      .run(
          "CREATE OR REPLACE FUNCTION pg_catalog.pg_postmaster_start_time() RETURNS timestamptz "
          "LANGUAGE sql STABLE AS $$ SELECT timestamptz '2001-01-01' $$");
  EXPECT_EQ(log->extent().head, 3U);
  expect_error(
      ErrorKind::unavailable, [&] { log->append(4, "x"); }, "was not read over the new one");
  EXPECT_EQ(updates_of(*log).size(), 3U);
  EXPECT_EQ(log->append(4, "x"), Appended::yes);
}

TEST_F(PostgresLogTransactions, defaults_of_database_change_nothing) {
  PostgresStore store;
  append_up_to(*store.open(), 3);
  for (const char* const setting :
       {"default_transaction_isolation = 'serializable'", "search_path = ''",
        "bytea_output = 'escape'", "DateStyle = 'German'", "statement_timeout = '20s'",
        "lock_timeout = '1ms'", "standard_conforming_strings = off",
        "default_toast_compression = 'pglz'", "IntervalStyle = 'iso_8601'", "row_security = off",
        "parallel_setup_cost = 0", "parallel_tuple_cost = 0", "min_parallel_table_scan_size = 0",
        "min_parallel_index_scan_size = 0", "max_parallel_workers_per_gather = 4",
        "client_min_messages = 'error'", "default_transaction_read_only = on"}) {
    store.run("ALTER DATABASE " + store.database() + " SET " + setting);
  }
  const auto log = store.open();
  append_up_to(*log, 6);
  EXPECT_EQ(updates_of(*log).size(), 6U);
  EXPECT_TRUE(rewrite(*log, 4, {"a"}));
  EXPECT_EQ(parts_of(*store.open()).size(), 1U);
}

// Makes the commit of an update note the setting in its transaction, and that of the server.
void note_settings_of_appends(const PostgresStore& store) {
  store.run("CREATE TABLE noted (of_transaction text, of_server text)");
  store.run(
      "CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN INSERT INTO noted "
      "SELECT setting, reset_val FROM pg_settings WHERE name = 'synchronous_commit'; RETURN NULL; "
      "END $$");
  store.run(
      "CREATE CONSTRAINT TRIGGER note AFTER INSERT ON whycache_updates DEFERRABLE INITIALLY "
      "DEFERRED FOR EACH ROW EXECUTE FUNCTION note()");
}

TEST_F(PostgresLogTransactions, change_of_synchronous_commit_at_server_never_makes_append_unsafe) {
  PostgresTestServer server;
  PostgresStore store(server);
  const auto log = store.open();
  append_up_to(*log, 3);
  note_settings_of_appends(store);
  PostgresClient admin(server);
  UpdateId head = 3;
  for (const std::string setting : {"off", "remote_apply"}) {
    admin.run("ALTER SYSTEM SET synchronous_commit = '" + setting + "'");
    admin.run("SELECT pg_reload_conf()");
    // The connection of the log learns it between two statements.
    EXPECT_TRUE(becomes_true_within(milliseconds(20'000), [&] {
      while (log->append(head + 1, "x") != Appended::yes) updates_of(*log);
      ++head;
      return store.run("SELECT count(*) > 0 FROM noted WHERE of_server = '" + setting + "'") == "t";
    })) << setting;
  }
  EXPECT_EQ(store.run("SELECT count(*) FROM noted WHERE of_transaction = 'off'"), "0");
  EXPECT_EQ(store.run("SELECT count(*) FROM noted WHERE of_server = 'remote_apply' AND "
                      "of_transaction <> of_server"),
            "0");
  EXPECT_EQ(updates_of(*log).size(), head);
}

TEST_F(PostgresLogTransactions, append_is_safe_if_synchronous_commit_is_switched_off_meanwhile) {
  PostgresTestServer server;
  PostgresStore store(server);
  const auto log = store.open();
  append_up_to(*log, 3);
  note_settings_of_appends(store);
  PostgresClient admin(server);
  PostgresClient holder = store.client();
  holder.run("BEGIN");
  holder.run("SELECT 1 FROM whycache_logs FOR NO KEY UPDATE");
  std::thread writer([&] { EXPECT_EQ(log->append(4, "x"), Appended::yes); });
  EXPECT_TRUE(becomes_true_within(milliseconds(20'000), [&] {
    return admin.run("SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'") == "1";
  }));
  admin.run("ALTER SYSTEM SET synchronous_commit = off");
  admin.run("SELECT pg_reload_conf()");
  EXPECT_TRUE(becomes_true_within(milliseconds(20'000), [&] {
    return admin.run("SELECT current_setting('synchronous_commit')") == "off";
  }));
  holder.run("COMMIT");
  writer.join();
  EXPECT_EQ(store.run("SELECT of_transaction FROM noted"), "on");
}

TEST_F(PostgresLogTransactions, warning_of_trigger_does_not_make_append_uncertain) {
  PostgresStore store;
  const auto log = store.open();
  append_up_to(*log, 3);
  store.run(
      "CREATE FUNCTION warn() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE WARNING 'seen'; "
      "RETURN NULL; END $$");
  for (const char* const when : {"", "DEFERRABLE INITIALLY DEFERRED"}) {
    store.run(std::string("CREATE CONSTRAINT TRIGGER warn_") + (*when == 0 ? "insert" : "commit") +
              " AFTER INSERT ON whycache_updates " + when +
              " FOR EACH ROW EXECUTE FUNCTION warn()");
  }
  append_up_to(*log, 6);
  EXPECT_EQ(updates_of(*log).size(), 6U);
}

TEST_F(PostgresLogTransactions, statement_in_session_that_lost_its_settings_is_repeated_with_them) {
  PostgresStore store;
  append_up_to(*store.open(), 1);
  PostgresConnection connection(store.options().server, Deadline(milliseconds(20'000)));
  const auto delete_update = [&] {
    return connection.run_with_settings(
        {"DELETE FROM whycache_updates WHERE " + PostgresConnection::settings_condition("$1"),
         {connection.settings_mark()}},
        Deadline(milliseconds(20'000)));
  };
  EXPECT_EQ(delete_update(), 1U);
  append_up_to(*store.open(), 1);
  connection.query({"SELECT set_config('whycache.session', '', false)"},
                   Deadline(milliseconds(20'000)));
  EXPECT_EQ(delete_update(), 1U) << "once more, with the settings";
}

TEST_F(PostgresLogTransactions, failed_commit_is_no_success) {
  PostgresStore store;
  const auto log = store.open();
  append_up_to(*log, 3);
  store.run(
      "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
      "IF NEW.bytes = 'refused'::bytea THEN RAISE 'refused at commit'; END IF; RETURN NULL; "
      "END $$");
  store.run(
      "CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON whycache_updates DEFERRABLE INITIALLY "
      "DEFERRED FOR EACH ROW EXECUTE FUNCTION refuse()");
  for (int i = 0; i < 2; ++i) {
    expect_error(
        ErrorKind::uncertain, [&] { log->append(4, "refused"); }, "refused at commit");
    EXPECT_EQ(updates_of(*log).size(), 3U);
  }
  EXPECT_EQ(log->append(4, "x"), Appended::yes);
  EXPECT_EQ(log->append(5, "y"), Appended::yes);
}

TEST_F(PostgresLogTransactions, append_whose_wait_for_replica_was_cancelled_is_uncertain) {
  PostgresTestServer server;
  PostgresStore store(server);
  const auto log = store.open();
  append_up_to(*log, 3);
  PostgresClient admin(server);
  admin.run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
  admin.run("SELECT pg_reload_conf()");
  const std::string waiting = "FROM pg_stat_activity WHERE wait_event = 'SyncRep'";
  std::optional<Error> error;
  UpdateId head = 3;
  // The server learns the setting at some moment.
  std::thread writer([&] {
    while (!error) error = thrown_error([&] { log->append(++head, "x"); });
  });
  EXPECT_TRUE(becomes_true_within(milliseconds(20'000),
                                  [&] { return admin.run("SELECT count(*) " + waiting) == "1"; }));
  admin.run("SELECT pg_cancel_backend(pid) " + waiting);
  writer.join();
  admin.run("ALTER SYSTEM RESET synchronous_standby_names");
  admin.run("SELECT pg_reload_conf()");
  EXPECT_EQ(error->kind(), ErrorKind::uncertain) << error->what();
  EXPECT_EQ(updates_of(*log).size(), head);
  EXPECT_EQ(log->append(head + 1, "y"), Appended::yes);
}

TEST_F(PostgresLogTransactions, value_of_column_is_stored_out_of_line_and_not_compressed) {
  PostgresStore store;
  const auto log = store.open();
  const std::string bytes(100'000, 'x');
  ASSERT_EQ(log->append(1, bytes), Appended::yes);
  EXPECT_EQ(store.run("SELECT pg_column_size(bytes) FROM whycache_updates"), "100000");
  EXPECT_EQ(updates_of(*log).at(1), bytes);
}

TEST_F(PostgresLogTransactions, read_fetches_pages_of_bytes_and_of_rows) {
  PostgresStore store;
  const auto log = store.open();
  append_up_to(*log, 1);
  store.run(
      "INSERT INTO whycache_updates SELECT 'default', n, repeat('x', CASE WHEN n % 1000 = 0 THEN "
      "3000000 ELSE 10 END)::bytea FROM generate_series(2, 9500) n");
  UpdateId expected = 1;
  std::size_t bytes = 0;
  log->read(1, no_end, [&](UpdateId id, std::string_view update) {
    EXPECT_EQ(id, expected++);
    bytes += update.size();
    return true;
  });
  EXPECT_EQ(expected, 9501U);
  EXPECT_GT(bytes, 27'000'000U);
}

}  // namespace
}  // namespace whycache
