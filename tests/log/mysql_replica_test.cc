// The log in MySQL, read from a replica.
#include <gtest/gtest.h>

#if WHYCACHE_WITH_MYSQL

#include <cstdio>
#include <string>
#include <vector>

#include "log/mysql_stories.h"

namespace whycache {
namespace {

using MysqlLogReplica = MysqlTest;

TEST_F(MysqlLogReplica, a_follower_reads_from_it_and_is_later_but_never_wrong) {
  Pair pair;
  MysqlStore store(pair.primary);
  const auto writer = store.open();
  MysqlLog follower(with_replica(store, pair.replica));
  append_up_to(*writer, 5);
  pair.catch_up();
  const std::uint64_t asked = status(pair.primary, "Com_select");
  EXPECT_EQ(updates_of(follower).size(), 5U);
  EXPECT_EQ(status(pair.primary, "Com_select"), asked);

  // What has not come to the replica yet is nothing new yet,
  pair.stop_replicating();
  append_up_to(*writer, 10);
  EXPECT_EQ(updates_of(follower, 5).size(), 1U);
  // but for who knows better: what it was asked for first, or has itself written, is not there.
  EXPECT_EQ(updates_of(follower, 8).size(), 3U);
  EXPECT_EQ(follower.append(11, "own"), Appended::yes);
  EXPECT_EQ(updates_of(follower, 5).size(), 7U);
  EXPECT_EQ(follower.append(11, "taken"), Appended::taken);
  EXPECT_EQ(updates_of(follower, 11).at(11), "own");

  pair.replicate();
  pair.catch_up();
  const std::uint64_t asked_then = status(pair.primary, "Com_select");
  EXPECT_EQ(updates_of(follower, 11).size(), 1U);
  EXPECT_EQ(status(pair.primary, "Com_select"), asked_then);
}

TEST_F(MysqlLogReplica, one_that_lags_behind_a_rewrite_or_is_another_log_does_no_harm) {
  Pair pair;
  MysqlStore store(pair.primary);
  const auto writer = store.open();
  append_up_to(*writer, 10);
  pair.catch_up();
  pair.stop_replicating();
  ASSERT_TRUE(rewrite(*writer, 8, {"part"}));
  MysqlLog follower(with_replica(store, pair.replica));
  EXPECT_EQ(follower.extent().base, 8U);
  EXPECT_EQ(updates_of(follower, 9), updates_of(*writer, 9));
  EXPECT_EQ(parts_of(follower), (std::vector<std::string>{"part"}));

  // Another log on the replica, longer than ours.
  MariadbClient(pair.replica, store.database())
      .run(
          "UPDATE whycache_logs SET uuid = REPEAT('u', 16);"
          "INSERT INTO whycache_updates SELECT 'default', seq, 'wrong' FROM seq_11_to_50");
  EXPECT_EQ(updates_of(follower, 9), updates_of(*writer, 9));
  // And one that lost an update.
  MariadbClient(pair.replica, store.database()).run("UPDATE whycache_logs SET uuid = (SELECT x'" + [&] {
    std::string digits;
    for (const std::uint8_t byte : writer->extent().uuid) {
      char two[3];
      std::snprintf(two, sizeof two, "%02x", byte);
      digits += two;
    }
    return digits;
  }() + "'); DELETE FROM whycache_updates WHERE id = 10");
  EXPECT_EQ(updates_of(follower, 9), updates_of(*writer, 9));
}

TEST_F(MysqlLogReplica, one_that_is_away_is_done_without) {
  Pair pair;
  MysqlStore store(pair.primary);
  MysqlLog log(with_replica(store, pair.replica));
  append_up_to(log, 5);
  pair.catch_up();
  EXPECT_EQ(updates_of(log).size(), 5U);
  pair.replica.kill();
  EXPECT_EQ(updates_of(log).size(), 5U);
  append_up_to(log, 8);
  EXPECT_LT(time_of([&] { EXPECT_EQ(updates_of(log).size(), 8U); }), milliseconds(1000));
}

TEST_F(MysqlLogReplica, machines_that_read_from_it_agree_with_all_others) {
  Pair pair;
  MysqlStore store(pair.primary);
  const TemporaryFolder folder;
  const std::string url = pair.primary.url(store.database());
  Cache writer(url, options_for(folder, "writer"));
  Cache reader(url + "?replica=127.0.0.1:" + std::to_string(pair.replica.port()), options_for(folder, "reader"));
  for (int i = 0; i < 100; ++i) {
    const UpdateId id = writer.set("key", std::to_string(i));
    if (i % 10 == 3) pair.stop_replicating();
    reader.update();
    EXPECT_LE(reader.applied_id(), id);
    if (i % 10 == 5) {
      EXPECT_GT(reader.set("own", std::to_string(i)), id);
    }
    if (i % 10 == 7) pair.replicate();
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
