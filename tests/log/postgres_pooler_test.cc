// The log in PostgreSQL through a pooler that gives each transaction another connection.
#include <gtest/gtest.h>

#include <string>
#include <thread>
#include <vector>

#include "log/postgres_test_support.h"
#include "support/pgbouncer.h"
#include "support/tcp_proxy.h"

namespace whycache {
namespace {

using testing::Pgbouncer;

class PostgresLogPooler : public PostgresTest {
 protected:
  void SetUp() override {
    PostgresTest::SetUp();
    if (!Pgbouncer::is_installed()) GTEST_SKIP() << "NOT TESTED: pgbouncer is not installed";
  }
};

TEST_F(PostgresLogPooler, log_works_with_transactions_on_any_connection) {
  PostgresStore store;
  const Pgbouncer pooler(store.server().port());
  const std::string url = pooler.url(store.database());
  const auto log = open_log(url);
  append_up_to(*log, 3);
  std::vector<std::thread> writers;
  for (int writer = 0; writer < 4; ++writer) {
    writers.emplace_back([&, writer] {
      const auto own = open_log(url);
      for (int i = 0; i < 25; ++i)
        append_until_acknowledged(*own, std::to_string(writer) + ' ' + std::to_string(i));
    });
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(updates_of(*log).size(), 103U);
  EXPECT_TRUE(rewrite(*log, 100, {"a", "b"}));
  EXPECT_EQ(parts_of(*log).size(), 2U);
  EXPECT_EQ(updates_of(*store.open()).size(), 3U);
}

TEST_F(PostgresLogPooler, log_polls_where_nothing_can_listen) {
  PostgresStore store;
  const Pgbouncer pooler(store.server().port());
  const auto log = open_log(pooler.url(store.database()));
  EXPECT_FALSE(log->notifies());
  EXPECT_FALSE(log->wait(0, milliseconds(20)));
  // Its appends notify those who are connected to the server.
  const auto direct = store.open();
  EXPECT_TRUE(direct->notifies());
  ASSERT_TRUE(direct->wait(0, std::chrono::seconds(20)));
  ASSERT_EQ(log->append(1, "x"), Appended::yes);
  EXPECT_TRUE(direct->wait(0, std::chrono::seconds(20)));
}

// The pooler keeps the connection of the client, and opens others to another server.
TEST_F(PostgresLogPooler, append_after_failover_behind_pooler_requires_reading_previous_update) {
  PostgresTestServer first;
  PostgresStore store(first);
  append_up_to(*store.open(), 5);
  auto second = PostgresTestServer::replica_of(first);
  ASSERT_TRUE(becomes_true_within(milliseconds(20'000), [&] {
    return PostgresClient(*second, store.database()).run("SELECT count(*) FROM whycache_updates") ==
           "5";
  }));
  testing::TcpProxy proxy(first.port());
  const Pgbouncer pooler(proxy.port());
  const auto log = open_log(pooler.url(store.database()));
  updates_of(*log);
  ASSERT_EQ(log->append(6, "acknowledged"), Appended::yes);

  second->promote();
  PostgresClient(*second, store.database())
      .run(
          "INSERT INTO whycache_updates VALUES ('default', 6, 'other') ON CONFLICT (instance, id) "
          "DO UPDATE SET bytes = 'other'");
  proxy.point_to(second->port());
  // The pooler may first find its connections closed.
  std::optional<Error> error;
  ASSERT_TRUE(becomes_true_within(milliseconds(20'000), [&] {
    error = thrown_error([&] { EXPECT_NE(log->append(7, "mine"), Appended::yes); });
    return error && error->kind() == ErrorKind::unavailable;
  }));
  EXPECT_EQ(PostgresClient(*second, store.database())
                .run("SELECT count(*) FROM whycache_updates WHERE id = 7"),
            "0");
  ASSERT_TRUE(becomes_true_within(milliseconds(20'000), [&] {
    error = thrown_error([&] { EXPECT_EQ(updates_of(*log).at(6), "other"); });
    return !error;
  }));
  EXPECT_EQ(log->append(7, "mine"), Appended::yes);
}

}  // namespace
}  // namespace whycache
