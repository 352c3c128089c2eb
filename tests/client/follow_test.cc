// Following the log: update(), its bounds, and a log that is slow, unavailable or damaged.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <thread>
#include <vector>

#include "client/cache_internal.h"
#include "client/fleet.h"
#include "update/update.h"

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;

constexpr milliseconds follow_deadline{60};

UpdateOptions update_within(milliseconds deadline) {
  return {.staleness_max = {}, .at_least = 0, .deadline = deadline};
}
UpdateOptions update_with_staleness(std::chrono::nanoseconds staleness) {
  return {.staleness_max = staleness, .at_least = 0, .deadline = {}};
}

std::vector<std::string> rows_of(Log& log) {
  std::vector<std::string> rows;
  log.read(1, ~UpdateId{0}, [&](UpdateId, std::string_view bytes) {
    rows.emplace_back(bytes);
    return true;
  });
  return rows;
}

TEST(Follow, update_within_staleness_max_skips_log_read) {
  Fleet fleet;
  Cache writer = fleet.open("berlin");
  auto script = std::make_shared<Script>();
  Cache counted = fleet.open("tokyo", script);
  Cache other = fleet.open("tokyo");
  writer.set("a", "1");
  other.update();
  const int reads = script->read_count;

  EXPECT_EQ(counted.update(update_with_staleness(std::chrono::hours(1))), 1U);
  EXPECT_EQ(script->read_count, reads);
  EXPECT_LT(counted.staleness(), std::chrono::hours(1));

  std::this_thread::sleep_for(milliseconds(2));
  writer.set("a", "2");
  EXPECT_EQ(counted.update(update_with_staleness(milliseconds(1))), 2U);
  EXPECT_EQ(script->read_count, reads + 1);
}

TEST(Follow, update_larger_than_page_is_followed) {
  Fleet fleet;
  Options options;
  options.update_bytes_max = 32U << 20;
  Cache berlin = fleet.open("berlin", options);
  Cache tokyo = fleet.open("tokyo");
  const std::string large = incompressible_bytes(12'000'000, 1);

  berlin.set("large", large);
  EXPECT_EQ(tokyo.update(), 1U);
  EXPECT_EQ(tokyo.update(), 1U);
  berlin.set("after", "it");
  EXPECT_EQ(tokyo.update(), 2U);
  EXPECT_TRUE(tokyo.get("large") == large);
}

TEST(Follow, update_below_at_least_reads_log_despite_staleness_max) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  tokyo.update();
  berlin.set("a", "1");

  EXPECT_EQ(tokyo.update({.staleness_max = std::chrono::hours(1), .at_least = 1, .deadline = {}}),
            1U);
}

TEST(Follow, update_waits_for_future_at_least_id) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  std::thread later([&] {
    std::this_thread::sleep_for(milliseconds(30));
    berlin.set("a", "1");
  });

  EXPECT_EQ(tokyo.update({.staleness_max = {}, .at_least = 1, .deadline = {}}), 1U);

  EXPECT_EQ(tokyo.get("a"), "1");
  later.join();
}

TEST(Follow, update_waiting_for_at_least_fails_at_deadline) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  const auto began = std::chrono::steady_clock::now();

  expect_error(
      ErrorKind::unavailable,
      [&] { cache.update({.staleness_max = {}, .at_least = 7, .deadline = follow_deadline}); },
      "at_least=7", "applied_id=0");

  const auto took = std::chrono::steady_clock::now() - began;
  EXPECT_GE(took, follow_deadline);
  EXPECT_LT(took, follow_deadline + std::chrono::seconds(2));
}

TEST(Follow, concurrent_updates_share_log_reads) {
  Fleet fleet;
  auto script = std::make_shared<Script>();
  std::atomic<bool> hold{false};
  std::atomic<int> waiting{0};
  script->before_read = [&] {
    while (hold) std::this_thread::yield();
  };
  std::vector<Cache> caches;
  for (int i = 0; i < 2; ++i) caches.push_back(fleet.open("berlin", script));
  for (Cache& cache : caches) cache.update();
  script->read_count = 0;
  hold = true;

  std::vector<std::thread> threads;
  for (int i = 0; i < 16; ++i) {
    threads.emplace_back([&, i] {
      ++waiting;
      caches[static_cast<std::size_t>(i % 2)].update();
    });
  }
  while (waiting < 16) std::this_thread::yield();
  std::this_thread::sleep_for(milliseconds(20));
  hold = false;
  for (std::thread& thread : threads) thread.join();

  // The first update() reads before most of the others are called; one more read serves all of
  // them.
  EXPECT_LE(script->read_count, 4);
}

TEST(Follow, update_applies_everything_in_log_at_call) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  std::atomic<bool> end{false};
  std::thread other([&] {
    while (!end) tokyo.update();
  });

  for (int i = 0; i < 300; ++i) {
    const UpdateId id = berlin.set("a", std::to_string(i));
    ASSERT_GE(tokyo.update(), id);
    ASSERT_EQ(tokyo.get("a"), std::to_string(i));
  }

  end = true;
  other.join();
}

TEST(Follow, update_reads_long_log_in_pages) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  for (int i = 0; i < 40; ++i) {
    berlin.set("key" + std::to_string(i),
               incompressible_bytes(700'000, static_cast<std::uint64_t>(i)));
  }

  EXPECT_EQ(tokyo.update(), 40U);

  EXPECT_EQ(tokyo.digest(), berlin.digest());
}

TEST(Follow, update_stopped_at_deadline_between_pages_resumes_later) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  auto script = std::make_shared<Script>();
  Cache tokyo = fleet.open("tokyo", script);
  for (int i = 0; i < 30; ++i) {
    berlin.set("key" + std::to_string(i),
               incompressible_bytes(1'000'000, static_cast<std::uint64_t>(i)));
  }
  script->before_read = [] { std::this_thread::sleep_for(follow_deadline); };

  expect_error(
      ErrorKind::unavailable, [&] { tokyo.update(update_within(follow_deadline)); }, "head=30");
  const UpdateId applied = tokyo.applied_id();
  EXPECT_GT(applied, 0U);
  EXPECT_LT(applied, 30U);
  EXPECT_EQ(tokyo.update(), 30U);
}

TEST(Follow, update_retries_unavailable_log) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  auto script = std::make_shared<Script>();
  Events events;
  Options options;
  options.on_event = events.listener();
  Cache tokyo = fleet.open("tokyo", script, options);
  berlin.set("a", "1");
  std::atomic<int> failures{3};
  script->before_read = [&] {
    if (failures-- > 0) throw unavailable_error();
  };

  EXPECT_EQ(tokyo.update(), 1U);

  EXPECT_EQ(tokyo.counters().log_retries, 3U);
  EXPECT_EQ(events.count(Event::Kind::retried), 1) << "once for all attempts of an outage";
  EXPECT_EQ(events.count(Event::Kind::reconnected), 1);
  EXPECT_THAT(events.messages(Event::Kind::retried), HasSubstr("the test's log is away"));
}

TEST(Follow, outage_of_many_calls_is_reported_once_and_when_it_ends) {
  Fleet fleet;
  auto script = std::make_shared<Script>();
  Events events;
  Options options;
  options.on_event = events.listener();
  Cache cache = fleet.open("berlin", script, options);
  cache.set("a", "1");
  std::atomic<bool> away{true};
  script->before_read = [&] {
    if (away) throw unavailable_error();
  };
  for (int call = 0; call < 5; ++call)
    expect_error(ErrorKind::unavailable, [&] { cache.update(update_within(milliseconds(20))); });
  EXPECT_GT(cache.counters().log_retries, 4U);
  EXPECT_EQ(events.count(Event::Kind::retried), 1);
  EXPECT_EQ(events.count(Event::Kind::reconnected), 0);

  away = false;
  cache.update();
  cache.update();
  EXPECT_EQ(events.count(Event::Kind::reconnected), 1);
  EXPECT_THAT(events.messages(Event::Kind::reconnected), HasSubstr("log answers again"));
}

// Otherwise a machine whose disk is full would look as if it had all that there is.
TEST(Follow, head_that_cannot_be_applied_is_known) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  Options options;
  options.state_bytes_max = 4U << 20;
  Cache tokyo = fleet.open("tokyo", options);
  for (int i = 0; i < 10; ++i)
    berlin.set("k" + std::to_string(i), incompressible_bytes(700'000, static_cast<unsigned>(i)));
  expect_error(ErrorKind::limit, [&] { tokyo.update(); });
  const Stats stats = tokyo.stats();
  EXPECT_EQ(stats.known_head, 10U);
  EXPECT_LT(stats.applied_id, 10U);
  EXPECT_EQ(stats.lag, 10U - stats.applied_id);
}

TEST(Follow, update_fails_at_deadline_while_reads_continue) {
  Fleet fleet;
  auto script = std::make_shared<Script>();
  Cache cache = fleet.open("berlin", script);
  cache.set("a", "1");
  script->before_read = [] { throw unavailable_error(); };

  expect_error(
      ErrorKind::unavailable, [&] { cache.update(update_within(follow_deadline)); },
      "the test's log is away", "deadline_ms=60", fleet.url());

  EXPECT_EQ(cache.get("a"), "1");
  // An attempt is not begun in the last few milliseconds.
  EXPECT_GT(cache.staleness(), follow_deadline - milliseconds(10));
}

TEST(Follow, update_waits_for_follow_lock_until_deadline) {
  Fleet fleet;
  auto script = std::make_shared<Script>();
  std::atomic<bool> hold{false};
  std::atomic<bool> held{false};
  Cache blocked = fleet.open("berlin", script);
  Cache waiter = fleet.open("berlin");
  script->before_read = [&] {
    held = true;
    while (hold) std::this_thread::sleep_for(milliseconds(1));
  };
  hold = true;
  std::thread slow([&] { blocked.update(); });
  while (!held) std::this_thread::yield();

  expect_error(
      ErrorKind::unavailable, [&] { waiter.update(update_within(follow_deadline)); },
      "log did not answer in time", fleet.url(), "was reading it");
  EXPECT_EQ(waiter.get("a"), std::nullopt) << "reads continue";

  hold = false;
  slow.join();
}

TEST(Follow, foreign_exception_from_log_becomes_unavailable) {
  Fleet fleet;
  auto script = std::make_shared<Script>();
  Cache cache = fleet.open("berlin", script);
  script->before_read = [] { throw std::runtime_error("no such host"); };
  expect_error(
      ErrorKind::unavailable, [&] { cache.update(update_within(follow_deadline)); },
      "no such host");
}

TEST(Follow, cache_with_state_opens_without_asking_unavailable_log) {
  Fleet fleet;
  fleet.open("berlin").set("a", "1");
  auto script = std::make_shared<Script>();
  std::atomic<bool> away{true};
  const auto fail = [&] {
    if (away) throw unavailable_error();
  };
  script->before_read = script->before_extent = fail;
  Events events;
  Options options;
  options.deadline = follow_deadline;
  options.on_event = events.listener();

  Cache cache = fleet.open("berlin", script, options);

  EXPECT_EQ(cache.get("a"), "1");
  EXPECT_EQ(events.messages(Event::Kind::retried), "") << "the log was not asked";
  expect_error(ErrorKind::unavailable, [&] { cache.update(); });
  expect_error(ErrorKind::unavailable, [&] { cache.set("a", "2"); });
  expect_error(
      ErrorKind::unavailable, [&] { fleet.open("tokyo", script, options); },
      "the test's log is away");
  away = false;
  EXPECT_EQ(cache.set("a", "2"), 2U);
}

TEST(Follow, cache_with_other_log_rejects_fresh_shared_state) {
  Fleet ours;
  Fleet theirs;
  Cache right = ours.open("berlin");
  right.set("a", "1");
  auto script = std::make_shared<Script>();
  script->before_extent = [] { throw unavailable_error(); };
  Options options = ours.options("berlin");
  Cache wrong(std::make_unique<ScriptedLog>(theirs.log(), script), options);

  right.update();
  expect_error(
      ErrorKind::corrupt, [&] { wrong.update(update_with_staleness(std::chrono::hours(1))); },
      "another log");
  right.update();
  expect_error(
      ErrorKind::corrupt, [&] { wrong.set("b", "2"); }, "another log");

  EXPECT_EQ(theirs.log()->extent().head, 0U);
}

// --- A damaged log ---

class FollowDamagedLog : public ::testing::Test {
 protected:
  FollowDamagedLog() {
    for (int i = 1; i <= 5; ++i) berlin.set("key", std::to_string(i));
  }

  // Tokyo has applied update 2, and then reads a log whose update 4 is replaced by show(row).
  void expect_damage_reported(std::function<std::optional<std::string>(std::string_view)> show,
                              const std::string& message) {
    {
      auto until_2 = std::make_shared<Script>();
      until_2->transform_row = [](UpdateId id, std::string_view row) {
        return id <= 2 ? std::optional<std::string>(row) : std::nullopt;
      };
      until_2->transform_extent = [](Extent& extent) { extent.head = 2; };
      Cache tokyo = fleet.open("tokyo", until_2);
      ASSERT_EQ(tokyo.applied_id(), 2U);
    }
    auto script = std::make_shared<Script>();
    std::atomic<bool> damaged{true};
    script->transform_row = [&](UpdateId id, std::string_view row) {
      return id == 4 && damaged ? show(row) : std::optional<std::string>(row);
    };
    Cache tokyo = fleet.open("tokyo", script);

    expect_error(
        ErrorKind::corrupt, [&] { tokyo.update(); }, message, "id=4", "rewrite history");

    EXPECT_EQ(tokyo.applied_id(), 3U) << "earlier updates are applied";
    EXPECT_EQ(tokyo.get("key"), "3");
    expect_error(
        ErrorKind::corrupt, [&] { tokyo.update(); }, "id=4");
    damaged = false;
    EXPECT_EQ(tokyo.update(), 5U) << "repaired";
    EXPECT_EQ(tokyo.digest(), berlin.digest());
  }

  Fleet fleet;
  Cache berlin = fleet.open("berlin");
};

TEST_F(FollowDamagedLog, missing_update_throws_corrupt) {
  expect_damage_reported([](std::string_view) { return std::nullopt; }, "missing: next_found=5");
}

TEST_F(FollowDamagedLog, changed_byte_throws_corrupt) {
  expect_damage_reported(
      [](std::string_view row) {
        std::string changed(row);
        changed.back() = static_cast<char>(changed.back() ^ 1);
        return changed;
      },
      "does not follow the one before it");
}

TEST_F(FollowDamagedLog, truncated_update_throws_corrupt) {
  expect_damage_reported(
      [](std::string_view row) { return std::string(row.substr(0, row.size() / 2)); }, "4");
}

TEST_F(FollowDamagedLog, empty_update_throws_corrupt) {
  expect_damage_reported([](std::string_view) { return std::string(); }, "cut short");
}

TEST_F(FollowDamagedLog, update_with_other_id_throws_corrupt) {
  const std::vector<std::string> rows = rows_of(CacheInternal::log(berlin));
  expect_damage_reported([&](std::string_view) { return rows[4]; }, "another id");
}

TEST_F(FollowDamagedLog, unknown_version_throws_corrupt) {
  expect_damage_reported(
      [](std::string_view row) {
        std::string changed(row);
        changed.front() = 99;
        return changed;
      },
      "version");
}

// The update continues the chain but cannot be decoded: its writer was at fault. No part of it is
// applied.
TEST_F(FollowDamagedLog, truncated_body_with_valid_chain_throws_corrupt) {
  const std::vector<std::string> rows = rows_of(CacheInternal::log(berlin));
  const std::uint64_t chain = peek_header(rows[2])->chain;
  Draft draft(Authorship{});
  ASSERT_TRUE(draft.add(Change::set("key", "an update that will be truncated"), 1 << 20));
  std::string truncated(draft.seal(4, chain));
  expect_damage_reported(
      [&](std::string_view) { return truncated.substr(0, truncated.size() - 3); }, "4");
}

TEST_F(FollowDamagedLog, head_beyond_last_update_throws_corrupt) {
  auto script = std::make_shared<Script>();
  script->transform_row = [](UpdateId id, std::string_view row) {
    return id <= 3 ? std::optional<std::string>(row) : std::nullopt;
  };

  expect_error(
      ErrorKind::corrupt, [&] { fleet.open("tokyo", script); }, "last_id=3", "head=5");

  script->transform_extent = [](Extent& extent) { extent.head = 3; };
  Cache tokyo = fleet.open("tokyo", script);
  script->transform_extent = nullptr;
  expect_error(
      ErrorKind::corrupt, [&] { tokyo.update(); }, "last_id=3", "head=5");
}

}  // namespace
}  // namespace whycache::testing
