// The log in MySQL beside foreign transactions: order, locks, deadlocks, rewrites. WHYCACHE_COMMITS
// sets the number of updates in the test of their order.
#include <gtest/gtest.h>

#if WHYCACHE_WITH_MYSQL

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/call_limit.h"
#include "log/mysql_connection.h"
#include "log/mysql_test_support.h"
#include "log/statement_time.h"
#include "support/child_process.h"

namespace whycache {
namespace {

using MysqlLogTransactions = MysqlTest;
using MysqlLogOrderLong = MysqlTest;

// --- Foreign transactions. ---

TEST_F(MysqlLogTransactions, append_waits_for_uncommitted_update) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 3);
  for (const bool commits : {true, false}) {
    const UpdateId head = log->extent().head;
    MariadbClient other = store.client();
    other.run("BEGIN; INSERT INTO whycache_updates VALUES ('default', " + std::to_string(head + 1) +
              ", 'held')");
    std::optional<Appended> at_next_id;
    std::optional<Appended> beyond;
    std::thread same([&] { at_next_id = store.open()->append(head + 1, "mine"); });
    std::thread next([&] { beyond = store.open()->append(head + 2, "beyond"); });
    std::this_thread::sleep_for(milliseconds(150));
    EXPECT_EQ(log->extent().head, head);
    EXPECT_EQ(updates_of(*log).size(), head);
    EXPECT_FALSE(at_next_id);
    EXPECT_FALSE(beyond);

    other.run(commits ? "COMMIT" : "ROLLBACK");
    same.join();
    next.join();
    EXPECT_EQ(at_next_id, commits ? Appended::taken : Appended::yes);
    const Updates updates = updates_of(*log);
    EXPECT_EQ(updates.at(head + 1), commits ? "held" : "mine");
    EXPECT_EQ(updates.size(), log->extent().head);
  }
}

TEST_F(MysqlLogTransactions, rewrite_switch_and_append_wait_for_each_other) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 5);
  // Given a transaction that holds the row of the log, as a switch does, an append waits.
  MariadbClient other = store.client();
  other.run("BEGIN; UPDATE whycache_logs SET base = 5");
  std::optional<Appended> appended;
  std::thread writer([&] { appended = store.open()->append(6, "mine"); });
  std::this_thread::sleep_for(milliseconds(150));
  EXPECT_FALSE(appended);
  other.run("COMMIT");
  writer.join();
  EXPECT_EQ(appended, Appended::yes);

  // Given an append that is not committed yet, the switch waits.
  other.run(
      "SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ; BEGIN; "
      "INSERT INTO whycache_updates SELECT instance, 7, 'held' FROM whycache_logs "
      "WHERE instance = 'default' AND base < 7");
  std::optional<bool> switched;
  std::thread rewriter([&] { switched = rewrite(*store.open(), 6, {"part"}); });
  std::this_thread::sleep_for(milliseconds(150));
  EXPECT_FALSE(switched);
  other.run("COMMIT");
  rewriter.join();
  EXPECT_EQ(switched, true);
  EXPECT_EQ(updates_of(*log), (Updates{{7, "held"}}));
}

TEST_F(MysqlLogTransactions, row_lock_held_beyond_deadline_makes_append_unavailable) {
  MysqlStore store;
  const auto log = store.open("default", milliseconds(1000));
  append_up_to(*log, 3);
  MariadbClient other = store.client();
  other.run("BEGIN; UPDATE whycache_logs SET part_count = 1 WHERE instance = 'default'");
  const milliseconds waited = measure_duration([&] {
    expect_error(
        ErrorKind::unavailable, [&] { log->append(4, "x"); }, "waited_ms_max=1000");
  });
  EXPECT_GE(waited, milliseconds(500));
  EXPECT_LT(waited, milliseconds(4000));
  EXPECT_EQ(updates_of(*log).size(), 3U) << "a read waits for no lock";
  other.run("ROLLBACK");
  EXPECT_EQ(log->append(4, "x"), Appended::yes);
}

TEST_F(MysqlLogTransactions, append_that_waits_in_vain_is_certain_whatever_its_deadline) {
  for (int ms = 2; ms <= 20'000; ++ms) {
    const milliseconds answer_time = milliseconds(ms) - statement_time(milliseconds(ms));
    ASSERT_GE(answer_time, std::max(milliseconds(ms) / 10, milliseconds(std::min(10, ms / 2))));
  }
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 3);
  MariadbClient other = store.client();
  other.run("BEGIN; UPDATE whycache_logs SET part_count = 1 WHERE instance = 'default'");
  // Each deadline is so close to the one before that the server might keep its limit.
  for (const int ms : {1000, 911, 830, 757, 690, 630, 575}) {
    const Deadline deadline{milliseconds(ms)};
    const CallLimit limit(deadline);
    expect_error(
        ErrorKind::unavailable, [&] { log->append(4, "x"); }, "waited_ms_max");
  }
  other.run("ROLLBACK");
  EXPECT_EQ(log->append(4, "x"), Appended::yes);
}

TEST_F(MysqlLogTransactions, deadlocked_append_is_retried) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 5);
  const std::uint64_t before = status_variable(store.server(), "Innodb_deadlocks");
  // Given a transaction that has written more than an append, so that the server rolls back the
  // append. It holds the row of the log, for which the append waits.
  MariadbClient other = store.client();
  other.run("CREATE TABLE heavy (n INT PRIMARY KEY) ENGINE = InnoDB");
  other.run(
      "BEGIN; INSERT INTO heavy SELECT seq FROM seq_1_to_1000; UPDATE whycache_logs SET part_count "
      "= part_count + 1");
  std::optional<Appended> appended;
  std::thread writer([&] { appended = log->append(6, "x"); });
  EXPECT_NE(waiting_connection(store), "");
  // When it needs a row that the append has locked,
  other.run("SELECT id FROM whycache_updates WHERE instance = 'default' AND id = 5 FOR UPDATE");
  other.run("COMMIT");
  writer.join();
  // then the append is rolled back and retried.
  EXPECT_EQ(appended, Appended::yes);
  EXPECT_EQ(status_variable(store.server(), "Innodb_deadlocks"), before + 1);
  EXPECT_EQ(updates_of(*log).size(), 6U);
}

// Appends as the log does, but holds each transaction open for a while, and then commits it or
// rolls it back, until `done`. Returns the number of commits.
int hold_transactions(const MysqlStore& store, const std::atomic<bool>& done,
                      milliseconds pause_max) {
  std::mt19937_64 random(testing::test_seed());
  const auto sleep = [&](milliseconds most) {
    if (most.count() > 0)
      std::this_thread::sleep_for(
          milliseconds(random() % static_cast<std::uint64_t>(most.count())));
  };
  int committed = 0;
  MariadbClient client = store.client();
  client.run("SET SESSION TRANSACTION ISOLATION LEVEL REPEATABLE READ");
  while (!done) {
    sleep(pause_max);
    try {
      client.run(
          "BEGIN; INSERT INTO whycache_updates SELECT l.instance, u.id + 1, 'held' "
          "FROM whycache_logs AS l JOIN whycache_updates AS u ON u.instance = l.instance "
          "WHERE l.instance = 'default' AND l.base < u.id + 1 ORDER BY u.id DESC LIMIT 1");
      const bool held = client.run("SELECT ROW_COUNT()") == "1";
      sleep(milliseconds(20));
      const bool commits = random() % 2 == 0;
      client.run(commits ? "COMMIT" : "ROLLBACK");
      committed += commits && held ? 1 : 0;
    } catch (const std::runtime_error&) {
      client.run("ROLLBACK");
    }
  }
  return committed;
}

// Runs writer processes, a thread that holds transactions open, and two followers. Each follower
// reads on from its last update and never revises what it has read. All followers end with the
// whole log in the same order.
void expect_visible_in_order(std::size_t writers, std::uint64_t appends_each,
                             milliseconds pause_max) {
  SCOPED_TRACE(testing::seed_note());
  MysqlStore store;
  store.open();
  const auto began = steady_clock::now();
  std::vector<Child> children;
  for (std::size_t writer = 0; writer < writers; ++writer) {
    children.emplace_back([&, writer] {
      const auto log = store.open();
      UpdateId next = 1;
      for (std::uint64_t i = 0; i < appends_each;) {
        if (log->append(next, std::to_string(writer) + ' ' + std::to_string(i)) == Appended::yes) {
          ++next;
          ++i;
        } else {
          next = log->extent().head + 1;
        }
      }
    });
  }
  std::atomic<bool> written{false};
  std::atomic<bool> done{false};
  int committed = 0;
  std::thread holder([&] { committed = hold_transactions(store, written, pause_max); });
  std::vector<std::vector<std::string>> seen(2);
  std::vector<std::thread> followers;
  for (std::vector<std::string>& own : seen) {
    followers.emplace_back([&] {
      const auto log = store.open();
      for (bool last = false; !last;) {
        last = done;
        log->read(own.size() + 1, no_end, [&](UpdateId id, std::string_view bytes) {
          EXPECT_EQ(id, own.size() + 1);
          own.emplace_back(bytes);
          return true;
        });
        std::this_thread::sleep_for(milliseconds(4));
      }
    });
  }
  for (Child& child : children) EXPECT_EQ(child.wait(), 0);
  const auto took = std::chrono::duration_cast<milliseconds>(steady_clock::now() - began);
  written = true;
  holder.join();
  done = true;
  for (std::thread& follower : followers) follower.join();

  std::vector<std::string> updates;
  for (const auto& [id, bytes] : updates_of(*store.open())) updates.push_back(bytes);
  EXPECT_EQ(updates.size(), writers * appends_each + static_cast<std::uint64_t>(committed));
  for (const auto& own : seen) EXPECT_TRUE(own == updates);
  std::vector<std::uint64_t> next(writers, 0);
  for (const std::string& bytes : updates) {
    if (bytes == "held") continue;
    ASSERT_EQ(bytes.substr(2), std::to_string(next.at(static_cast<std::size_t>(bytes[0] - '0'))++));
  }
  EXPECT_GT(committed, 0);
  std::printf("updates=%zu writers=%zu held_open=%d seconds=%.1f\n", updates.size(), writers,
              committed, static_cast<double>(took.count()) / 1000);
}

TEST_F(MysqlLogTransactions, ids_become_visible_in_order) {
  expect_visible_in_order(3, 60, milliseconds(0));
}

TEST_F(MysqlLogOrderLong, ids_become_visible_in_order) {
  const std::uint64_t updates = testing::number_from_environment("WHYCACHE_COMMITS", 40'000);
  expect_visible_in_order(8, updates / 8, milliseconds(100));
}

TEST_F(MysqlLogTransactions, append_beyond_next_id_returns_taken) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 5);
  EXPECT_EQ(log->append(7, "beyond"), Appended::taken);
  EXPECT_EQ(log->append(700, "far beyond"), Appended::taken);
  EXPECT_EQ(log->extent().head, 5U);
  expect_error(
      ErrorKind::invalid, [&] { log->append(0, "x"); }, "id=0");
  expect_error(
      ErrorKind::invalid, [&] { log->append(no_end, "x"); }, "id=");
  expect_error(
      ErrorKind::invalid, [&] { log->append(1, ""); }, "empty");
}

TEST_F(MysqlLogTransactions, rewrite_keeps_parts_of_later_base_only) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 10);
  for (const char* base : {"3", "5", "7"}) {
    store.run("INSERT INTO whycache_parts VALUES ('default', " + std::string(base) +
              ", REPEAT('0', 16), 0, 'x'), ('other', " + base + ", REPEAT('0', 16), 0, 'x')");
  }
  const auto parts_left = [&] {
    return store.run(
        "SELECT GROUP_CONCAT(base, ':', number ORDER BY base, number) FROM whycache_parts WHERE "
        "instance = 'default'");
  };
  ASSERT_TRUE(rewrite(*log, 5, {"a", "b"}));
  EXPECT_EQ(parts_left(), "5:0,5:1,7:0");
  ASSERT_TRUE(rewrite(*log, 8, {"c"}));
  EXPECT_EQ(parts_left(), "8:0");
  EXPECT_EQ(store.run("SELECT count(*) FROM whycache_parts WHERE instance = 'other'"), "3");
}

TEST_F(MysqlLogTransactions, rewrite_whose_parts_disappear_does_not_switch) {
  MysqlStore store;
  const auto log = store.open();
  append_up_to(*log, 10);
  int part = 0;
  expect_error(
      ErrorKind::unavailable,
      [&] {
        log->rewrite(5, 1, [&]() -> std::optional<std::string_view> {
          if (++part <= 3) return "part";
          store.run("DELETE FROM whycache_parts WHERE number = 1");
          return std::nullopt;
        });
      },
      "parts of the new base disappeared");
  EXPECT_EQ(log->extent().base, 0U);
  EXPECT_EQ(updates_of(*log).size(), 10U);
  EXPECT_EQ(store.run("SELECT count(*) FROM whycache_parts"), "0");
}

}  // namespace
}  // namespace whycache

#endif
