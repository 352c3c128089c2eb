// The log in PostgreSQL on servers that die, stall, close connections, fail over, or refuse to
// write.
#include <gtest/gtest.h>

#include <pwd.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/call_limit.h"
#include "log/full_disk.h"
#include "log/postgres_test_support.h"
#include "support/memory_directory.h"
#include "support/tcp_proxy.h"
#include "update/update.h"

namespace whycache {
namespace {

using PostgresLogAway = PostgresTest;
using PostgresLogFailover = PostgresTest;

// Creates a directory that the server's user can write.
void make_directory_of_server(const std::string& path) {
  std::filesystem::create_directories(path);
  const passwd* const user = ::getpwnam("postgres");
  require(user != nullptr && ::chown(path.c_str(), user->pw_uid, user->pw_gid) == 0, path);
}

void close_connections(const PostgresStore& store) {
  store.run(
      "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = "
      "'whycache' AND datname = '" +
      store.database() + "'");
  ASSERT_TRUE(becomes_true_within(milliseconds(20'000), [&] {
    return store.run(
               "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'whycache' AND "
               "datname = '" +
               store.database() + "'") == "0";
  }));
}

TEST_F(PostgresLogAway, closed_connection_is_reopened_transparently) {
  PostgresStore store;
  const auto log = store.open();
  append_up_to(*log, 3);
  close_connections(store);
  EXPECT_EQ(updates_of(*log).size(), 3U);
  EXPECT_EQ(log->append(4, "x"), Appended::yes);
  close_connections(store);
  EXPECT_EQ(log->extent().head, 4U);
  close_connections(store);
  EXPECT_TRUE(rewrite(*log, 4, {"part"}));
}

// The address may now lead to another server, with as many updates but different ones.
TEST_F(PostgresLogAway, append_over_new_connection_requires_reading_previous_update) {
  PostgresStore store;
  const auto log = store.open();
  append_up_to(*log, 5);
  testing::TcpProxy proxy(store.server().port());
  const auto behind_proxy = open_log(
      "postgres://postgres@127.0.0.1:" + std::to_string(proxy.port()) + '/' + store.database());
  ASSERT_EQ(behind_proxy->append(6, "x"), Appended::yes);

  proxy.cut_all();
  for (int i = 0; i < 2; ++i) {
    expect_error(
        ErrorKind::unavailable, [&] { behind_proxy->append(7, "y"); }, "connection was lost",
        "nothing was written");
  }
  behind_proxy->extent();
  updates_of(*behind_proxy, 7);
  expect_error(ErrorKind::unavailable, [&] { behind_proxy->append(7, "y"); });
  EXPECT_EQ(log->extent().head, 6U);

  updates_of(*behind_proxy, 6);
  EXPECT_EQ(behind_proxy->append(7, "y"), Appended::yes);
  EXPECT_EQ(behind_proxy->append(8, "z"), Appended::yes);
}

TEST_F(PostgresLogAway, cancelled_statement_writes_nothing) {
  PostgresStore store;
  const auto log = store.open();
  append_up_to(*log, 3);
  PostgresClient other = store.client();
  other.run("BEGIN");
  other.run("UPDATE whycache_logs SET part_count = 1");
  std::optional<Error> error;
  std::thread writer([&] { error = thrown_error([&] { log->append(4, "x"); }); });
  ASSERT_TRUE(becomes_blocked(store));
  store.run(
      "SELECT pg_cancel_backend(pid) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND "
      "datname = '" +
      store.database() + "'");
  writer.join();
  other.run("ROLLBACK");
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::unavailable) << error->what();
  EXPECT_EQ(log->extent().head, 3U);
  EXPECT_EQ(log->append(4, "x"), Appended::yes);
}

TEST_F(PostgresLogAway, call_ends_soon_after_its_deadline_whatever_the_server_does) {
  PostgresTestServer server;
  PostgresStore store(server);
  const auto log = store.open();
  append_up_to(*log, 3);
  server.pause();
  for (const int ms : {200, 1, 50}) {
    std::optional<Error> error;
    const milliseconds took = measure_duration([&] {
      const Deadline deadline{milliseconds(ms)};
      const CallLimit limit(deadline);
      error = thrown_error([&] { log->append(4, "x"); });
    });
    EXPECT_GE(took, milliseconds(ms));
    EXPECT_LT(took, milliseconds(ms + 1000));  // far more than it takes, for machines with load
    ASSERT_TRUE(error);
    EXPECT_TRUE(error->kind() == ErrorKind::uncertain || error->kind() == ErrorKind::unavailable)
        << error->what();
  }
  server.resume();
  append_until_acknowledged(*log, "y");
  const Updates updates = updates_of(*log);
  EXPECT_TRUE(updates.at(4) == "x" || updates.at(4) == "y");
  EXPECT_EQ(std::count_if(updates.begin(), updates.end(),
                          [](const auto& each) { return each.second == "y"; }),
            1);
}

TEST_F(PostgresLogAway, stop_request_ends_call_at_once) {
  PostgresTestServer server;
  PostgresStore store(server);
  const auto log = store.open();
  server.pause();
  std::stop_source stop;
  std::optional<Error> error;
  std::thread reader([&] {
    const Deadline deadline(milliseconds(60'000), stop.get_token());
    const CallLimit limit(deadline);
    error = thrown_error([&] { log->extent(); });
  });
  std::this_thread::sleep_for(milliseconds(100));
  const milliseconds took = measure_duration([&] {
    stop.request_stop();
    reader.join();
  });
  server.resume();
  EXPECT_LT(took, milliseconds(2000));
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::unavailable) << error->what();
}

TEST_F(PostgresLogAway, killed_server_loses_and_duplicates_no_acknowledged_update) {
  PostgresTestServer server;
  PostgresStore store(server);
  const auto log = store.open();
  constexpr int writers = 3;
  constexpr int appends_each = 150;
  std::vector<Child> children;
  for (int writer = 0; writer < writers; ++writer) {
    children.emplace_back([&, writer] {
      std::unique_ptr<Log> own;
      while (!own) {  // the server may be killed before a child opens the log
        try {
          own = store.open("default", milliseconds(2000));
        } catch (const Error& error) {
          if (error.kind() != ErrorKind::unavailable) throw;
          std::this_thread::sleep_for(milliseconds(10));
        }
      }
      for (int i = 0; i < appends_each; ++i)
        append_until_acknowledged(*own, std::to_string(writer) + ' ' + std::to_string(i));
    });
  }
  for (int round = 0; round < 3; ++round) {
    const UpdateId before = log->extent().head;
    ASSERT_TRUE(becomes_true_within(milliseconds(20'000),
                                    [&] { return log->extent().head > before + 40; }));
    server.kill();
    std::this_thread::sleep_for(milliseconds(50));
    server.start();
  }
  for (Child& child : children) EXPECT_EQ(child.wait(), 0);

  // The log has each writer's updates once and in order.
  std::vector<int> next(writers, 0);
  const Updates updates = updates_of(*log);
  EXPECT_EQ(updates.size(), static_cast<std::size_t>(writers * appends_each));
  for (const auto& [id, bytes] : updates) {
    const auto writer = static_cast<std::size_t>(bytes[0] - '0');
    ASSERT_LT(writer, next.size());
    EXPECT_EQ(bytes.substr(2), std::to_string(next[writer]++)) << id;
  }
}

TEST_F(PostgresLogAway, machines_detect_restored_log_and_rebuild) {
  PostgresStore store;
  const TemporaryDirectory directory;
  Cache writer(store.url(), options_for(directory, "writer"));
  Cache other(store.url(), options_for(directory, "other"));
  writer.set("kept", "1");
  writer.set("lost", "1");
  other.update();
  // Given a backup that has only the first update.
  store.run("DELETE FROM whycache_updates WHERE id = 2");
  EXPECT_EQ(writer.set("new", "1"), 2U);
  other.update();
  for (const Cache* const cache : {&writer, &other}) {
    EXPECT_EQ(cache->get("lost"), std::nullopt);
    EXPECT_EQ(cache->get("new"), "1");
    EXPECT_EQ(cache->counters().rebuilds_diverged, 1U);
  }
  EXPECT_EQ(writer.digest(), other.digest());
}

// --- Disks that fill up. ---

TEST_F(PostgresLogAway, full_disk_throws_limit_and_leaves_log_consistent) {
  const TemporaryDirectory disk(testing::memory_directory());
  const TemporaryDirectory states;
  const bool ran_as_root = run_as_root([&] {
    mount_small_disk(disk.path(), "40m");
    PostgresTestServer server;
    make_directory_of_server(disk.file("tables"));
    PostgresClient(server).run("CREATE TABLESPACE small LOCATION '" + disk.file("tables") + "'");
    PostgresClient(server).run("CREATE DATABASE flags TABLESPACE small");
    write_on_full_disk(server.url("flags"), states, disk.file("filler"), std::size_t{2} << 20);
  });
  if (!ran_as_root) GTEST_SKIP() << "NOT TESTED: needs root";
}

// Without room for its WAL, PostgreSQL ends all its processes. It reports a full disk then,
// although the commit may already be in the WAL.
TEST_F(PostgresLogAway, full_disk_of_wal_loses_and_duplicates_no_acknowledged_update) {
  const TemporaryDirectory directory;
  const bool ran_as_root = run_as_root([&] {
    PostgresTestServer server({"min_wal_size=2MB", "max_wal_size=8MB"});
    const PostgresStore store(server);
    server.stop();
    const std::string wal = server.file("data/pg_wal");
    const auto copy = std::filesystem::copy_options::recursive;
    std::filesystem::copy(wal, directory.file("wal"), copy);
    mount_small_disk(wal, "30m");
    std::filesystem::copy(directory.file("wal"), wal, copy);
    server.start();

    const auto log = store.open("default", milliseconds(2000));
    for (int round = 0; round < 2; ++round) {
      fill_disk(wal + "/filler", 0);
      const UpdateId first = log->extent().head + 1;
      std::optional<Error> error;
      UpdateId next = first;
      for (; next < first + 5000 && !error; ++next) {
        const std::string bytes = std::to_string(next) + incompressible_bytes(3000);
        error = thrown_error([&] { require(log->append(next, bytes) == Appended::yes, "append"); });
      }
      require(error.has_value(), "a server without room for its WAL refuses a write");
      // The server may have ended between two appends.
      require(error->kind() == ErrorKind::uncertain || error->kind() == ErrorKind::unavailable,
              error->what());

      std::filesystem::remove(wal + "/filler");
      server.kill();  // it may have ended, or have started by itself
      server.start();
      const UpdateId acknowledged = next - 2;
      const Updates kept = updates_of(*log);
      require(
          kept.size() == acknowledged ||
              (error->kind() == ErrorKind::uncertain && kept.size() == acknowledged + 1),
          "acknowledged=" + std::to_string(acknowledged) + " kept=" + std::to_string(kept.size()));
      append_until_acknowledged(*log, "room " + std::to_string(round));
    }
  });
  if (!ran_as_root) GTEST_SKIP() << "NOT TESTED: needs root";
}

// --- Failover. ---

struct PostgresPair {
  PostgresPair() : store(primary) {
    store.open();
    replica = PostgresTestServer::replica_of(primary);
  }
  void catch_up() const {
    const std::string position = PostgresClient(primary).run("SELECT pg_current_wal_lsn()");
    ASSERT_TRUE(becomes_true_within(milliseconds(20'000), [&] {
      return PostgresClient(*replica).run("SELECT pg_last_wal_replay_lsn() >= '" + position +
                                          "'") == "t";
    }));
  }
  std::string url_of_both() const {
    return "postgres://postgres@127.0.0.1:" + std::to_string(replica->port()) +
           ",127.0.0.1:" + std::to_string(primary.port()) + '/' + store.database() +
           "?deadline_ms=5000";
  }

  PostgresTestServer primary;
  PostgresStore store;
  std::unique_ptr<PostgresTestServer> replica;
};

TEST_F(PostgresLogFailover, url_with_several_hosts_follows_the_primary) {
  PostgresPair pair;
  const auto log = open_log(pair.url_of_both());
  append_up_to(*log, 3);
  EXPECT_EQ(pair.store.open()->extent().head, 3U);
  pair.catch_up();
  pair.primary.kill();
  expect_error(
      ErrorKind::unavailable, [&] { log->extent(); }, "recovery", "promote");
  pair.replica->promote();
  expect_error(
      ErrorKind::unavailable, [&] { log->append(4, "x"); }, "nothing was written");
  EXPECT_EQ(updates_of(*log).size(), 3U);
  EXPECT_EQ(log->append(4, "x"), Appended::yes);
  EXPECT_EQ(PostgresClient(*pair.replica, pair.store.database())
                .run("SELECT max(id) FROM whycache_updates"),
            "4");
}

TEST_F(PostgresLogFailover, machines_detect_lost_updates_after_failover) {
  PostgresPair pair;
  const TemporaryDirectory directory;
  Cache writer(pair.url_of_both(), options_for(directory, "writer"));
  for (int i = 0; i < 5; ++i) writer.set("kept " + std::to_string(i), "1");
  pair.catch_up();
  // Later writes do not reach the replica.
  PostgresClient(*pair.replica).run("ALTER SYSTEM SET primary_conninfo = ''");
  PostgresClient(*pair.replica).run("SELECT pg_reload_conf()");
  ASSERT_TRUE(becomes_true_within(milliseconds(20'000), [&] {
    return PostgresClient(pair.primary).run("SELECT count(*) FROM pg_stat_replication") == "0";
  }));
  for (int i = 0; i < 3; ++i) writer.set("lost " + std::to_string(i), "1");
  pair.primary.kill();
  pair.replica->promote();
  EXPECT_EQ(writer.set("new", "1"), 6U);
  EXPECT_EQ(writer.get("lost 0"), std::nullopt);
  EXPECT_EQ(writer.counters().rebuilds_diverged, 1U);
  Cache other(pair.url_of_both(), options_for(directory, "other"));
  EXPECT_EQ(other.digest(), writer.digest());
}

TEST_F(PostgresLogFailover, replica_alone_is_read_and_refuses_appends) {
  PostgresPair pair;
  append_up_to(*pair.store.open(), 3);
  pair.catch_up();
  const auto log = open_log(pair.replica->url(pair.store.database()));
  EXPECT_EQ(updates_of(*log).size(), 3U);
  expect_error(
      ErrorKind::unavailable, [&] { log->append(4, "x"); }, "read-only",
      "the url must name the primary");
  EXPECT_EQ(log->extent().head, 3U);
}

// A server in recovery cannot run a transaction at that default.
TEST_F(PostgresLogFailover, replica_is_read_whatever_its_default_isolation) {
  PostgresPair pair;
  const TemporaryDirectory directory;
  Cache writer(pair.store.url(), options_for(directory, "writer"));
  for (int i = 0; i < 3; ++i) writer.set("key " + std::to_string(i), "1");
  pair.store.run("ALTER DATABASE " + pair.store.database() +
                 " SET default_transaction_isolation = 'serializable'");
  pair.catch_up();
  EXPECT_EQ(updates_of(*open_log(pair.replica->url(pair.store.database()))).size(), 3U);
  const auto log =
      open_log(pair.store.url("?replica=127.0.0.1:" + std::to_string(pair.replica->port())));
  std::size_t count = 0;
  const auto visit = [&](UpdateId, std::string_view) { return ++count > 0; };
  EXPECT_GT(log->poll(1, std::nullopt, visit).staleness.count(), 0) << "by the replica";
  EXPECT_EQ(count, 3U);
}

TEST_F(PostgresLogFailover, poll_takes_updates_from_replica_and_from_primary_if_it_lags) {
  PostgresPair pair;
  const TemporaryDirectory directory;
  Cache writer(pair.store.url(), options_for(directory, "writer"));
  for (int i = 0; i < 5; ++i) writer.set("key " + std::to_string(i), "1");
  pair.catch_up();
  const auto log =
      open_log(pair.store.url("?replica=127.0.0.1:" + std::to_string(pair.replica->port())));
  std::size_t count = 0;
  const auto visit = [&](UpdateId, std::string_view) { return ++count > 0; };
  EXPECT_GT(log->poll(1, std::nullopt, visit).staleness.count(), 0) << "by the replica";
  EXPECT_EQ(count, 5U);
  PostgresClient(*pair.replica).run("SELECT pg_wal_replay_pause()");
  writer.set("later", "1");
  count = 0;
  const PollResult result = log->poll(1, std::nullopt, visit);
  EXPECT_EQ(result.staleness.count(), 0) << "by the primary";
  EXPECT_EQ(result.extent.head, 6U);
  EXPECT_EQ(count, 6U);
  PostgresClient(*pair.replica).run("SELECT pg_wal_replay_resume()");
}

}  // namespace
}  // namespace whycache
