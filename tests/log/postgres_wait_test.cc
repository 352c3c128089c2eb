// How appends to the log in PostgreSQL wake those that wait for them.
#include <gtest/gtest.h>

#include <sys/resource.h>

#include <atomic>
#include <cstdint>
#include <memory>
#include <stop_token>
#include <string>
#include <thread>

#include "base/call_limit.h"
#include "log/postgres_test_support.h"

namespace whycache {
namespace {

using PostgresLogWait = PostgresTest;
using std::chrono::seconds;

// Opens the connection that listens.
void begin_to_listen(Log& log) {
  const UpdateId head = log.extent().head;
  ASSERT_TRUE(log.wait(head, seconds(20)));
  ASSERT_EQ(log.extent().head, head);
}

TEST_F(PostgresLogWait, append_of_another_log_object_wakes_waiter) {
  PostgresStore store;
  const auto log = store.open();
  const auto writer = store.open();
  begin_to_listen(*log);
  for (UpdateId id = 1; id <= 5; ++id) {
    std::thread later([&] {
      std::this_thread::sleep_for(milliseconds(20));
      writer->append(id, "x");
    });
    EXPECT_TRUE(log->wait(id - 1, seconds(30)));
    later.join();
    EXPECT_EQ(log->extent().head, id);
  }
}

TEST_F(PostgresLogWait, forged_notification_wakes_once) {
  PostgresStore store;
  const auto log = store.open();
  begin_to_listen(*log);
  for (const std::string payload : {"9000000000000000000", "", "x", "99999999999999999999999"}) {
    store.run("SELECT pg_notify('whycache_default', '" + payload + "')");
    EXPECT_TRUE(log->wait(0, seconds(20))) << payload;
    EXPECT_EQ(log->extent().head, 0U);
    EXPECT_FALSE(log->wait(0, milliseconds(50))) << payload;
  }
  EXPECT_EQ(store.open()->append(1, "x"), Appended::yes);
  EXPECT_TRUE(log->wait(0, seconds(20)));
}

// The notifications of several writers arrive in the order of their own transactions.
TEST_F(PostgresLogWait, later_notification_of_earlier_update_hides_none) {
  PostgresStore store;
  const auto log = store.open();
  begin_to_listen(*log);
  append_up_to(*open_log(store.url("?notify=off")), 7);
  for (const std::string payload : {"7", "5"})
    store.run("SELECT pg_notify('whycache_default', '" + payload + "')");
  EXPECT_TRUE(log->wait(4, seconds(20)));
  EXPECT_TRUE(log->wait(6, seconds(20)));
}

// NOTIFY locks the whole server while it is committed, which may wait for a replica.
TEST_F(PostgresLogWait, held_lock_of_notify_delays_append_by_a_second_at_most) {
  PostgresTestServer server;
  PostgresStore store(server);
  store.run("ALTER DATABASE " + store.database() + " SET synchronous_commit = local");
  const auto log = store.open();
  PostgresClient admin = store.client();
  admin.run("ALTER SYSTEM SET synchronous_standby_names = 'nobody'");
  admin.run("SELECT pg_reload_conf()");
  const std::string waiting =
      "FROM pg_stat_activity WHERE wait_event = 'SyncRep' AND datname = '" + store.database() + "'";
  std::atomic<bool> is_over = false;
  // The server learns the setting at some moment.
  std::thread holder([&] {
    PostgresClient client = store.client();
    client.run("SET synchronous_commit = on");
    while (!is_over)
      client.run("DROP TABLE IF EXISTS held; CREATE TABLE held (); NOTIFY elsewhere");
  });
  EXPECT_TRUE(becomes_true_within(milliseconds(20'000),
                                  [&] { return admin.run("SELECT count(*) " + waiting) == "1"; }));
  EXPECT_LT(measure_duration([&] { append_up_to(*log, 3); }), milliseconds(9'000));
  EXPECT_EQ(updates_of(*log).size(), 3U);
  is_over = true;
  admin.run("ALTER SYSTEM RESET synchronous_standby_names");
  admin.run("SELECT pg_reload_conf()");
  holder.join();
  begin_to_listen(*log);
  append_up_to(*store.open(), 4);
  EXPECT_TRUE(log->wait(3, seconds(20)));
}

TEST_F(PostgresLogWait, notification_is_not_synced) {
  PostgresTestServer server;
  PostgresStore store(server);
  if (store.run("SELECT count(*) FROM pg_attribute WHERE attrelid = "
                "to_regclass('pg_catalog.pg_stat_wal') AND attname = 'wal_sync'") != "1")
    GTEST_SKIP() << "NOT TESTED: this PostgreSQL has no pg_stat_wal.wal_sync";
  constexpr UpdateId appends = 300;
  const auto syncs = [&] { return std::stoull(store.run("SELECT wal_sync FROM pg_stat_wal")); };
  {
    const auto log = store.open();
    append_up_to(*log, appends);
  }
  // The connection of the log reports what it counted when it ends.
  EXPECT_TRUE(becomes_true_within(milliseconds(20'000), [&] { return syncs() >= appends; }));
  EXPECT_LT(syncs(), appends * 3 / 2);
}

// A server that counts its statements; null if that is not installed.
std::unique_ptr<PostgresTestServer> start_counting_server() {
  auto server = std::make_unique<PostgresTestServer>();
  if (PostgresClient(*server).run("SELECT count(*) FROM pg_available_extensions WHERE name = "
                                  "'pg_stat_statements'") != "1")
    return nullptr;
  server->stop();
  server->set_settings({"shared_preload_libraries=pg_stat_statements"});
  server->start();
  return server;
}

std::string count_statements(const PostgresStore& store, const std::string& like) {
  return store.run("SELECT COALESCE(sum(calls), 0) FROM pg_stat_statements WHERE " + like);
}

const std::string transaction_statements = "query LIKE 'BEGIN%' OR query LIKE 'COMMIT%'";

TEST_F(PostgresLogWait, poll_is_one_statement) {
  const auto server = start_counting_server();
  if (!server) GTEST_SKIP() << "NOT TESTED: PostgreSQL's contrib is not installed";
  PostgresStore store(*server);
  store.run("CREATE EXTENSION pg_stat_statements");
  const auto log = store.open();
  append_up_to(*log, 3);
  constexpr int polls = 20;
  const auto poll = [&] {
    const auto stop = [](UpdateId, std::string_view) { return true; };
    EXPECT_EQ(log->poll(3, std::nullopt, stop).extent.head, 3U);
  };
  poll();  // prepares it, and sets the time limit of the session
  store.run("SELECT pg_stat_statements_reset()");
  for (int i = 0; i < polls; ++i) poll();
  EXPECT_EQ(count_statements(store, "query LIKE '%whycache_%'"), std::to_string(polls));
  EXPECT_EQ(count_statements(store, transaction_statements), "0");
}

TEST_F(PostgresLogWait, append_is_one_statement_and_notification_another) {
  const auto server = start_counting_server();
  if (!server) GTEST_SKIP() << "NOT TESTED: PostgreSQL's contrib is not installed";
  PostgresStore store(*server);
  store.run("CREATE EXTENSION pg_stat_statements");
  const auto log = store.open();
  append_up_to(*log, 3);  // prepares both
  store.run("SELECT pg_stat_statements_reset()");
  append_up_to(*log, 23);
  EXPECT_EQ(count_statements(store, "query LIKE 'INSERT INTO %whycache_updates%'"), "20");
  EXPECT_TRUE(becomes_true_within(milliseconds(20'000), [&] {
    return count_statements(store, "query LIKE '%pg_notify%'") == "20";
  }));
  // A stall may make one of them set up the session again.
  EXPECT_LT(std::stoi(count_statements(store, transaction_statements)), 20);
}

TEST_F(PostgresLogWait, refused_connection_is_tried_again) {
  PostgresStore store;
  const auto log = store.open();
  begin_to_listen(*log);
  PostgresClient admin(store.server(), "postgres");
  admin.run("ALTER DATABASE " + store.database() + " ALLOW_CONNECTIONS false");
  admin.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '" +
            store.database() + "'");
  for (int i = 0; i < 3; ++i) log->wait(0, milliseconds(100));
  EXPECT_TRUE(log->notifies());
  admin.run("ALTER DATABASE " + store.database() + " ALLOW_CONNECTIONS true");
  EXPECT_TRUE(log->wait(0, seconds(20)));
  ASSERT_EQ(store.open()->append(1, "x"), Appended::yes);
  EXPECT_TRUE(log->wait(0, seconds(20)));
}

TEST_F(PostgresLogWait, waiter_sleeps_until_stop_wakes_it) {
  PostgresStore store;
  const auto log = store.open();
  begin_to_listen(*log);
  std::stop_source stop;
  std::int64_t switches = 0;
  steady_clock::time_point ended;
  std::thread waiter([&] {
    const Deadline deadline(std::chrono::hours(1), stop.get_token());
    const CallLimit limit(deadline);
    struct rusage before {};
    struct rusage after {};
    ::getrusage(RUSAGE_THREAD, &before);
    EXPECT_FALSE(log->wait(0, std::chrono::hours(1)));
    ended = steady_clock::now();
    ::getrusage(RUSAGE_THREAD, &after);
    switches = after.ru_nvcsw - before.ru_nvcsw;
  });
  std::this_thread::sleep_for(milliseconds(500));
  stop.request_stop();
  waiter.join();
  EXPECT_LE(switches, 5);
}

TEST_F(PostgresLogWait, notification_of_other_instance_wakes_no_waiter) {
  PostgresStore store;
  const auto log = store.open();
  begin_to_listen(*log);
  ASSERT_EQ(store.open("other")->append(1, "x"), Appended::yes);
  EXPECT_FALSE(log->wait(0, milliseconds(300)));
}

TEST_F(PostgresLogWait, waiter_whose_connection_was_closed_returns_and_listens_again) {
  PostgresStore store;
  const auto log = store.open();
  begin_to_listen(*log);
  std::thread later([&] {
    std::this_thread::sleep_for(milliseconds(50));
    store.run(
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = "
        "'whycache' AND datname = '" +
        store.database() + "'");
  });
  EXPECT_TRUE(log->wait(0, seconds(30)));
  later.join();
  EXPECT_TRUE(log->wait(0, seconds(30))) << "a new connection may have missed something";
  ASSERT_EQ(store.open()->append(1, "x"), Appended::yes);
  EXPECT_TRUE(log->wait(0, seconds(30)));
}

TEST_F(PostgresLogWait, server_that_is_away_lets_waiter_sleep) {
  PostgresTestServer server;
  PostgresStore store(server);
  const auto log = store.open();
  begin_to_listen(*log);
  server.kill();
  log->wait(0, milliseconds(100));
  EXPECT_GE(measure_duration([&] { EXPECT_FALSE(log->wait(0, milliseconds(300))); }),
            milliseconds(250));
  server.start();
  EXPECT_TRUE(log->wait(0, seconds(20)));
}

TEST_F(PostgresLogWait, option_notify_off_sends_and_expects_nothing) {
  PostgresStore store;
  const auto log = open_log(store.url("?notify=off"));
  const auto listening = store.open();
  begin_to_listen(*listening);
  EXPECT_FALSE(log->notifies());
  ASSERT_EQ(log->append(1, "x"), Appended::yes);
  EXPECT_FALSE(listening->wait(0, milliseconds(200)));
}

}  // namespace
}  // namespace whycache
