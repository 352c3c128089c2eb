// The log in MySQL on servers that die, stall, close connections, or refuse to write.
#include <gtest/gtest.h>

#if WHYCACHE_WITH_MYSQL

#include <string>
#include <thread>
#include <vector>

#include "log/mysql_stories.h"
#include "support/tcp_proxy.h"

namespace whycache {
namespace {

using MysqlLogAway = MysqlTest;

// --- Servers that die, stall, or close connections. ---

TEST_F(MysqlLogAway, a_connection_that_was_closed_is_opened_anew_without_a_word) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 3);
  const auto close_all = [&] {
    MariadbClient root(store.server());
    for (const std::string& id :
         root.rows("SELECT ID FROM information_schema.PROCESSLIST WHERE DB = '" + store.database() + "'"))
      root.run("KILL " + id);
    ASSERT_TRUE(happens_within(milliseconds(5000), [&] {
      return root.run("SELECT count(*) FROM information_schema.PROCESSLIST WHERE DB = '" + store.database() + "'") ==
             "0";
    }));
  };
  close_all();
  EXPECT_EQ(updates_of(*log).size(), 3U);
  EXPECT_EQ(log->append(4, "x"), Appended::yes);
  close_all();
  EXPECT_EQ(log->extent().head, 4U);
  close_all();
  EXPECT_TRUE(rewrite(*log, 4, {"part"}));
}

// The same address may lead to another server now, which has as many updates, but others.
TEST_F(MysqlLogAway, a_new_connection_takes_no_update_before_those_it_follows_were_read) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 5);
  testing::TcpProxy proxy(store.server().port());
  const auto behind_proxy = open_log("mysql://root@127.0.0.1:" + std::to_string(proxy.port()) + '/' + store.database());
  ASSERT_EQ(behind_proxy->append(6, "x"), Appended::yes);

  proxy.cut_all();
  for (int i = 0; i < 2; ++i) {
    expect_error(
        ErrorKind::unavailable, [&] { behind_proxy->append(7, "y"); }, "connection was lost", "nothing was written");
  }
  behind_proxy->extent();
  updates_of(*behind_proxy, 7);
  expect_error(ErrorKind::unavailable, [&] { behind_proxy->append(7, "y"); });
  EXPECT_EQ(log->extent().head, 6U);

  updates_of(*behind_proxy, 6);
  EXPECT_EQ(behind_proxy->append(7, "y"), Appended::yes);
  EXPECT_EQ(behind_proxy->append(8, "z"), Appended::yes);
}

TEST_F(MysqlLogAway, a_statement_that_is_killed_does_nothing) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 3);
  MariadbClient other = store.client();
  other.run("BEGIN; UPDATE whycache_logs SET part_count = 1");
  std::optional<Error> error;
  std::thread writer([&] { error = thrown_error([&] { log->append(4, "x"); }); });
  const std::string waiting = waiting_connection(store);
  ASSERT_NE(waiting, "");
  store.run("KILL QUERY " + waiting);
  writer.join();
  other.run("ROLLBACK");
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::unavailable) << error->what();
  EXPECT_EQ(log->extent().head, 3U);
  EXPECT_EQ(log->append(4, "x"), Appended::yes);
}

TEST_F(MysqlLogAway, a_server_that_does_not_answer_is_given_up_at_the_deadline) {
  MariadbServer server;
  MysqlStore store(server);
  const auto log = store.open("default", milliseconds(1000));
  append_up_to(*log, 3);
  server.pause();
  std::optional<Error> append_error;
  EXPECT_LT(time_of([&] { append_error = thrown_error([&] { log->append(4, "x"); }); }), milliseconds(4000));
  std::optional<Error> read_error;
  EXPECT_LT(time_of([&] { read_error = thrown_error([&] { log->extent(); }); }), milliseconds(6000));
  server.go_on();
  ASSERT_TRUE(append_error && read_error);
  EXPECT_EQ(append_error->kind(), ErrorKind::uncertain) << append_error->what();
  EXPECT_EQ(read_error->kind(), ErrorKind::unavailable) << read_error->what();
  // What was in doubt may be there; whoever looks learns it.
  append_surely(*log, "y");
  const Updates updates = updates_of(*log);
  EXPECT_TRUE(updates.at(4) == "x" || updates.at(4) == "y");
  EXPECT_EQ(std::count_if(updates.begin(), updates.end(), [](const auto& each) { return each.second == "y"; }), 1);
}

TEST_F(MysqlLogAway, a_server_that_became_read_only_is_unavailable_until_it_is_not) {
  MariadbServer server;
  MysqlStore store(server);
  store.open();
  MariadbClient root(server);
  root.run("CREATE USER 'ada'@'%'; GRANT SELECT, INSERT ON " + store.database() + ".* TO 'ada'@'%'");
  MysqlLogOptions options = store.options();
  options.server.user = "ada";
  MysqlLog log(options);
  root.run("SET GLOBAL read_only = 1");
  expect_error(
      ErrorKind::unavailable, [&] { log.append(1, "x"); }, "read-only");
  EXPECT_EQ(log.extent().head, 0U);
  EXPECT_TRUE(updates_of(log).empty());
  root.run("SET GLOBAL read_only = 0");
  EXPECT_EQ(log.append(1, "x"), Appended::yes);
}

TEST_F(MysqlLogAway, a_server_killed_in_mid_load_loses_and_doubles_nothing) {
  MariadbServer server;
  MysqlStore store(server);
  const auto log = store.open();
  constexpr int writers = 3;
  constexpr int appends_each = 400;
  std::vector<Child> children;
  for (int writer = 0; writer < writers; ++writer) {
    children.emplace_back([&, writer] {
      std::unique_ptr<Log> own;
      while (!own) {  // the server may be killed before a child gets to open it
        try {
          own = store.open("default", milliseconds(2000));
        } catch (const Error& error) {
          if (error.kind() != ErrorKind::unavailable) throw;
          std::this_thread::sleep_for(milliseconds(10));
        }
      }
      for (int i = 0; i < appends_each; ++i) append_surely(*own, std::to_string(writer) + ' ' + std::to_string(i));
    });
  }
  for (int round = 0; round < 3; ++round) {
    const UpdateId before = log->extent().head;
    ASSERT_TRUE(happens_within(milliseconds(20'000), [&] { return log->extent().head > before + 100; }));
    server.kill();
    std::this_thread::sleep_for(milliseconds(50));
    server.start();
  }
  for (Child& child : children) EXPECT_EQ(child.wait(), 0);

  // Each writer's updates are there, each once, in its order.
  std::vector<int> next(writers, 0);
  const Updates updates = updates_of(*log);
  EXPECT_EQ(updates.size(), static_cast<std::size_t>(writers * appends_each));
  for (const auto& [id, bytes] : updates) {
    const auto writer = static_cast<std::size_t>(bytes[0] - '0');
    ASSERT_LT(writer, next.size());
    EXPECT_EQ(bytes.substr(2), std::to_string(next[writer]++)) << id;
  }
}

}  // namespace
}  // namespace whycache

#endif
