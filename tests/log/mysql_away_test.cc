// The log in MySQL on servers that die, stall, close connections, or refuse to write.
#include <gtest/gtest.h>

#if WHYCACHE_WITH_MYSQL

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "log/full_disk.h"
#include "log/mysql_test_support.h"
#include "support/tcp_proxy.h"
#include "update/update.h"

namespace whycache {
namespace {

using MysqlLogAway = MysqlTest;

// --- Servers that die, stall, or close connections. ---

TEST_F(MysqlLogAway, closed_connection_is_reopened_transparently) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 3);
  const auto close_all = [&] {
    MariadbClient root(store.server());
    for (const std::string& id : root.rows(
             "SELECT ID FROM information_schema.PROCESSLIST WHERE DB = '" + store.database() + "'"))
      root.run("KILL " + id);
    ASSERT_TRUE(becomes_true_within(milliseconds(5000), [&] {
      return root.run("SELECT count(*) FROM information_schema.PROCESSLIST WHERE DB = '" +
                      store.database() + "'") == "0";
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

// The address may now lead to another server, with as many updates but different ones.
TEST_F(MysqlLogAway, append_over_new_connection_requires_reading_previous_update) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 5);
  testing::TcpProxy proxy(store.server().port());
  const auto behind_proxy =
      open_log("mysql://root@127.0.0.1:" + std::to_string(proxy.port()) + '/' + store.database());
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

// Another thread may have read the new update of the log, but this writer continues the lost one.
TEST_F(MysqlLogAway, append_that_continues_another_update_is_refused) {
  MysqlStore store;
  const auto log = store.open();
  const auto update = [](UpdateId id, std::uint64_t previous_chain, const std::string& value) {
    Draft draft(Authorship{});
    draft.add(Change::set("key", value), 1 << 20);
    return std::string(draft.seal(id, previous_chain));
  };
  const std::string first = update(1, chain_start(log->extent().uuid), "1");
  const std::string lost = update(2, peek_header(first)->chain, "lost");
  const std::string other = update(2, peek_header(first)->chain, "other");
  ASSERT_EQ(log->append(1, first), Appended::yes);
  ASSERT_EQ(log->append(2, lost), Appended::yes);

  log->release_idle_connections();
  store.run("DELETE FROM whycache_updates WHERE id = 2");
  ASSERT_EQ(store.open()->append(2, other), Appended::yes);
  ASSERT_EQ(updates_of(*log).at(2), other);

  expect_error(
      ErrorKind::unavailable, [&] { log->append(3, update(3, peek_header(lost)->chain, "3")); },
      "another update");
  EXPECT_EQ(log->append(3, update(3, peek_header(other)->chain, "3")), Appended::yes);
}

TEST_F(MysqlLogAway, killed_statement_writes_nothing) {
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

TEST_F(MysqlLogAway, unresponsive_server_times_out_at_deadline) {
  MariadbServer server;
  MysqlStore store(server);
  const auto log = store.open("default", milliseconds(1000));
  append_up_to(*log, 3);
  server.pause();
  std::optional<Error> append_error;
  EXPECT_LT(measure_duration([&] { append_error = thrown_error([&] { log->append(4, "x"); }); }),
            milliseconds(4000));
  std::optional<Error> read_error;
  EXPECT_LT(measure_duration([&] { read_error = thrown_error([&] { log->extent(); }); }),
            milliseconds(6000));
  server.resume();
  ASSERT_TRUE(append_error && read_error);
  EXPECT_EQ(append_error->kind(), ErrorKind::uncertain) << append_error->what();
  EXPECT_EQ(read_error->kind(), ErrorKind::unavailable) << read_error->what();
  // The uncertain update may be in the log; the next read tells.
  append_until_acknowledged(*log, "y");
  const Updates updates = updates_of(*log);
  EXPECT_TRUE(updates.at(4) == "x" || updates.at(4) == "y");
  EXPECT_EQ(std::count_if(updates.begin(), updates.end(),
                          [](const auto& each) { return each.second == "y"; }),
            1);
}

// A user without the privilege to bypass read_only.
class DatabaseUser {
 public:
  explicit DatabaseUser(const MysqlStore& store) : root_(store.server()) {
    root_.run("CREATE USER 'ada'@'%'; GRANT SELECT, INSERT ON " + store.database() +
              ".* TO 'ada'@'%'");
  }
  void make_read_only(bool yes) {
    root_.run(std::string("SET GLOBAL read_only = ") + (yes ? "1" : "0"));
  }

 private:
  MariadbClient root_;
};

TEST_F(MysqlLogAway, read_only_server_is_unavailable_for_appends) {
  MariadbServer server;
  MysqlStore store(server);
  store.open();
  DatabaseUser user(store);
  MysqlLogOptions options = store.options();
  options.server.user = "ada";
  MysqlLog log(options);
  user.make_read_only(true);
  expect_error(
      ErrorKind::unavailable, [&] { log.append(1, "x"); }, "read-only");
  EXPECT_EQ(log.extent().head, 0U);
  EXPECT_TRUE(updates_of(log).empty());
  user.make_read_only(false);
  EXPECT_EQ(log.append(1, "x"), Appended::yes);
}

TEST_F(MysqlLogAway, caches_keep_reading_while_server_refuses_writes) {
  MariadbServer server;
  MysqlStore store(server);
  const TemporaryDirectory directory;
  Cache other(server.url(store.database()), options_for(directory, "other"));
  DatabaseUser user(store);
  Cache writer(server.url(store.database(), "ada"), options_for(directory, "writer"));
  ASSERT_EQ(writer.set("key", "before"), 1U);
  for (int round = 0; round < 3; ++round) {
    user.make_read_only(true);
    const UpdateId head = writer.applied_id();
    expect_error(
        ErrorKind::unavailable,
        [&] { writer.set("key", "refused", {.note = {}, .deadline = milliseconds(100)}); },
        "the server is read-only", "the url must name the primary");
    EXPECT_EQ(writer.update(), head);
    EXPECT_EQ(other.update(), head);
    EXPECT_NE(other.get("key"), "refused");

    // A write with a longer deadline succeeds.
    std::optional<UpdateId> id;
    std::thread waiting([&] { id = writer.set("key", "round " + std::to_string(round)); });
    std::this_thread::sleep_for(milliseconds(50));
    user.make_read_only(false);
    waiting.join();
    EXPECT_EQ(id, head + 1);
    EXPECT_EQ(other.update(), head + 1);
    EXPECT_EQ(other.get("key"), "round " + std::to_string(round));
  }
  EXPECT_EQ(other.digest(), writer.digest());
}

TEST_F(MysqlLogAway, full_disk_throws_limit_and_leaves_log_consistent) {
  const TemporaryDirectory directory;
  const bool ran_as_root = run_as_root([&] {
    std::filesystem::create_directory(directory.file("disk"));
    mount_small_disk(directory.file("disk"), "120m");
    MariadbServer server({}, "", directory.file("disk"));
    MysqlStore store(server);
    write_on_full_disk(server.url(store.database()), directory, directory.file("disk/filler"),
                       std::size_t{6} << 20);
  });
  if (!ran_as_root) GTEST_SKIP() << "NOT TESTED: needs root";
}

TEST_F(MysqlLogAway, killed_server_loses_and_duplicates_no_acknowledged_update) {
  MariadbServer server;
  MysqlStore store(server);
  const auto log = store.open();
  constexpr int writers = 3;
  constexpr int appends_each = 400;
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
                                    [&] { return log->extent().head > before + 100; }));
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

}  // namespace
}  // namespace whycache

#endif
