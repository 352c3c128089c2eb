// How appends to the log in PostgreSQL wake those that wait for them.
#include <gtest/gtest.h>

#include <string>
#include <thread>

#include "log/postgres_test_support.h"

namespace whycache {
namespace {

using PostgresLogWait = PostgresTest;
using std::chrono::seconds;

// Opens the connection that listens.
void begin_to_listen(Log& log) {
  const UpdateId head = log.extent().head;
  ASSERT_TRUE(log.wait(head, seconds(20)));
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

TEST_F(PostgresLogWait, notification_of_other_instance_wakes_nobody) {
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
