// The log in MySQL, read from a replica.
#include <gtest/gtest.h>

#if WHYCACHE_WITH_MYSQL

#include <chrono>
#include <cstdio>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "log/chained_updates.h"
#include "log/mysql_test_support.h"
#include "update/update.h"

namespace whycache {
namespace {

using testing::append_chained;
using MysqlLogReplica = MysqlTest;

struct PollOutcome {
  PollResult result;
  std::map<UpdateId, std::string> updates;
};

PollOutcome poll_log(Log& log, UpdateId first,
                     std::optional<std::chrono::nanoseconds> age_max = std::nullopt) {
  PollOutcome seen;
  seen.result = log.poll(first, age_max, [&](UpdateId id, std::string_view bytes) {
    return seen.updates.emplace(id, bytes).second;
  });
  return seen;
}

TEST_F(MysqlLogReplica, follower_reads_from_replica_that_is_up_to_date) {
  ReplicatedPair pair;
  MysqlStore store(pair.primary);
  const auto writer = store.open();
  MysqlLog follower(with_replica(store, pair.replica));
  append_chained(*writer, 5);
  pair.catch_up();
  const std::uint64_t sent = status_variable(pair.replica, "Com_select");
  const PollOutcome all = poll_log(follower, 1);
  EXPECT_EQ(all.updates, updates_of(*writer));
  EXPECT_EQ(all.result.extent.head, 5U);
  EXPECT_GT(all.result.staleness.count(), 0);
  EXPECT_LT(all.result.staleness, std::chrono::seconds(2));
  EXPECT_GT(status_variable(pair.replica, "Com_select"), sent);

  // Updates that the replica lacks come from the primary.
  pair.stop_replication();
  append_chained(*writer, 10);
  EXPECT_EQ(poll_log(follower, 5).updates, updates_of(*writer, 5));
  EXPECT_EQ(poll_log(follower, 5).result.staleness.count(), 0);
  EXPECT_EQ(updates_of(follower), updates_of(*writer));

  // A poll that requires the current head asks the primary, whatever the replica has.
  pair.start_replication();
  pair.catch_up();
  const std::uint64_t sent_then = status_variable(pair.replica, "Com_select");
  EXPECT_EQ(poll_log(follower, 1, std::chrono::nanoseconds(0)).updates, updates_of(*writer));
  EXPECT_EQ(updates_of(follower), updates_of(*writer));
  EXPECT_EQ(status_variable(pair.replica, "Com_select"), sent_then);
  EXPECT_EQ(poll_log(follower, 10).updates.size(), 1U);
  EXPECT_GT(status_variable(pair.replica, "Com_select"), sent_then);
}

TEST_F(MysqlLogReplica, follower_by_procedures_reads_from_replica_that_is_up_to_date) {
  ReplicatedPair pair;
  MysqlStore store(pair.primary);
  const auto writer = store.open();
  store.run(documented_procedures() + "CREATE USER 'follower'@'%'; GRANT EXECUTE ON " +
            store.database() + ".* TO 'follower'@'%'");
  MysqlLogOptions options = with_replica(store, pair.replica);
  options.server.user = options.replica->user = "follower";
  MysqlLog follower(options);
  append_chained(*writer, 5);
  pair.catch_up();
  const PollOutcome all = poll_log(follower, 1);
  EXPECT_EQ(all.updates, updates_of(*writer));
  EXPECT_EQ(all.result.extent.head, 5U);
  EXPECT_GT(status_variable(pair.replica, "Com_call_procedure"), 0U);

  pair.stop_replication();
  append_chained(*writer, 10);
  EXPECT_EQ(poll_log(follower, 5).updates, updates_of(*writer, 5));
}

// A replica that missed a failover or was restored has as many updates as the log, but others.
TEST_F(MysqlLogReplica, replica_with_other_history_is_ignored) {
  ReplicatedPair pair;
  MysqlStore store(pair.primary);
  const auto writer = store.open();
  append_chained(*writer, 5);
  pair.catch_up();
  pair.stop_replication();
  append_chained(*writer, 6);
  {
    MysqlLogOptions options = store.options();
    options.server.port = pair.replica.port();
    MysqlLog stray(options);
    append_chained(stray, 6, "another");
  }
  MysqlLog follower(with_replica(store, pair.replica));
  EXPECT_EQ(poll_log(follower, 5).updates, updates_of(*writer, 5));
}

TEST_F(MysqlLogReplica, fresh_reads_use_primary) {
  ReplicatedPair pair;
  MysqlStore store(pair.primary);
  const TemporaryDirectory directory;
  const std::string url = pair.primary.url(store.database());
  Cache writer(url, options_for(directory, "writer"));
  Cache reader(url + "?replica=127.0.0.1:" + std::to_string(pair.replica.port()),
               options_for(directory, "reader"));
  writer.set("key", "old");
  pair.catch_up();
  reader.update();
  pair.stop_replication();
  const UpdateId id = writer.set("key", "new");
  EXPECT_EQ(reader.update(), id);
  EXPECT_EQ(reader.get_fresh("key", {.staleness_max = std::chrono::nanoseconds(0)}).value, "new");
  writer.set("lock", "mine");
  EXPECT_TRUE(reader.set_if("lock", "mine", "yours"));
}

TEST_F(MysqlLogReplica, lagging_or_foreign_replica_is_ignored) {
  ReplicatedPair pair;
  MysqlStore store(pair.primary);
  const auto writer = store.open();
  append_chained(*writer, 10);
  pair.catch_up();
  pair.stop_replication();
  const std::uint64_t chain = peek_header(updates_of(*writer).at(8))->chain;
  bool given = false;
  ASSERT_TRUE(writer->rewrite(8, chain, [&]() -> std::optional<std::string_view> {
    if (std::exchange(given, true)) return std::nullopt;
    return "part";
  }));
  MysqlLog follower(with_replica(store, pair.replica));
  EXPECT_EQ(poll_log(follower, 9).result.extent.base, 8U);
  EXPECT_EQ(poll_log(follower, 9).updates, updates_of(*writer, 9));
  EXPECT_EQ(parts_of(follower), (std::vector<std::string>{"part"}));

  // The replica has another, longer log.
  MariadbClient replica(pair.replica, store.database());
  replica.run(
      "UPDATE whycache_logs SET uuid = REPEAT('u', 16);"
      "INSERT INTO whycache_updates SELECT 'default', seq, 'wrong' FROM seq_11_to_50");
  EXPECT_EQ(poll_log(follower, 9).updates, updates_of(*writer, 9));
  // The replica has the same log with a longer tail, and then with a missing update.
  std::string digits;
  for (const std::uint8_t byte : writer->extent().uuid) {
    char two[3];
    std::snprintf(two, sizeof two, "%02x", byte);
    digits += two;
  }
  replica.run("UPDATE whycache_logs SET uuid = x'" + digits + "'");
  EXPECT_EQ(poll_log(follower, 9).updates, updates_of(*writer, 9));
  replica.run("DELETE FROM whycache_updates WHERE id = 10");
  EXPECT_EQ(poll_log(follower, 9).updates, updates_of(*writer, 9));
}

TEST_F(MysqlLogReplica, unavailable_replica_is_bypassed) {
  ReplicatedPair pair;
  MysqlStore store(pair.primary);
  MysqlLog log(with_replica(store, pair.replica));
  append_chained(log, 5);
  pair.catch_up();
  EXPECT_EQ(poll_log(log, 1).updates.size(), 5U);
  pair.replica.kill();
  EXPECT_EQ(poll_log(log, 1).updates.size(), 5U);
  append_chained(log, 8);
  EXPECT_LT(measure_duration([&] { EXPECT_EQ(poll_log(log, 1).updates.size(), 8U); }),
            milliseconds(1000));
}

TEST_F(MysqlLogReplica, cache_with_lagging_replica_agrees_with_writer) {
  ReplicatedPair pair;
  MysqlStore store(pair.primary);
  const TemporaryDirectory directory;
  const std::string url = pair.primary.url(store.database());
  Cache writer(url, options_for(directory, "writer"));
  Cache reader(url + "?replica=127.0.0.1:" + std::to_string(pair.replica.port()),
               options_for(directory, "reader"));
  for (int i = 0; i < 100; ++i) {
    const UpdateId id = writer.set("key", std::to_string(i));
    if (i % 10 == 3) pair.stop_replication();
    reader.update();
    EXPECT_EQ(reader.applied_id(), id);
    if (i % 10 == 5) {
      EXPECT_GT(reader.set("own", std::to_string(i)), id);
    }
    if (i % 10 == 7) pair.start_replication();
    if (i == 50) writer.rewrite_history();
  }
  pair.catch_up();
  reader.update();
  writer.update();
  EXPECT_EQ(reader.get("key"), "99");
  EXPECT_EQ(reader.applied_id(), writer.applied_id());
  EXPECT_EQ(reader.counters().rebuilds_diverged, 0U);
}

}  // namespace
}  // namespace whycache

#endif
