// Opening a cache: what it waits for, and what an object is before and after.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <latch>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "client/cache_internal.h"
#include "client/fleet.h"
#include "client/session.h"
#include "state/state.h"

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;

// A log in memory whose state is found by its name, as that of another log.
class LogOfOneName final : public ForwardingLog {
 public:
  explicit LogOfOneName(std::unique_ptr<Log> log) : ForwardingLog(std::move(log)) {}
  std::string name() const override { return "test://one"; }
};

// A log that a switch makes unavailable.
std::shared_ptr<Script> script_of_log_away(const std::atomic<bool>& away) {
  auto script = std::make_shared<Script>();
  script->before_read = script->before_extent = [&away] {
    if (away) throw Error(ErrorKind::unavailable, "the test's log is away");
  };
  return script;
}

TEST(Open, open_now_without_state_returns_and_first_update_builds) {
  const Fleet fleet;
  fleet.open("tokyo").set("a", "1");
  std::atomic<bool> away{true};
  Options options;
  options.open = OpenMode::now;
  options.deadline = milliseconds(50);

  Cache cache = fleet.open("berlin", script_of_log_away(away), options);

  EXPECT_TRUE(cache.valid());
  EXPECT_FALSE(cache.ready());
  expect_error(ErrorKind::unavailable, [&] { static_cast<void>(cache.get("a")); });
  expect_error(ErrorKind::unavailable, [&] { static_cast<void>(cache.contains("a")); });
  expect_error(ErrorKind::unavailable, [&] { static_cast<void>(cache.get_multi({"a"})); });
  expect_error(ErrorKind::unavailable, [&] { static_cast<void>(cache.view()); });
  expect_error(ErrorKind::unavailable, [&] { static_cast<void>(cache.size()); });
  expect_error(ErrorKind::unavailable, [&] { static_cast<void>(cache.applied_id()); });
  expect_error(
      ErrorKind::unavailable, [&] { cache.update(); }, "the test's log is away");
  expect_error(
      ErrorKind::unavailable, [&] { cache.set("b", "2"); }, "the test's log is away");
  EXPECT_FALSE(cache.ready());

  away = false;
  EXPECT_EQ(cache.update(), 1U);
  EXPECT_TRUE(cache.ready());
  EXPECT_EQ(cache.get("a"), "1");
}

// It asks for the log's uuid, opens the state, and builds it: each within what the others left.
TEST(Open, opening_ends_at_one_deadline) {
  const Fleet fleet;
  auto script = std::make_shared<Script>();
  script->before_extent = [] { std::this_thread::sleep_for(milliseconds(300)); };
  script->before_read = [] {
    while (call_time_left().count() > 0) std::this_thread::sleep_for(milliseconds(1));
    throw Error(ErrorKind::unavailable, "the test's log is away");
  };
  fleet.open("tokyo").set("a", "1");
  Options options;
  options.state_path = fleet.state_directory() + "/";
  options.deadline = milliseconds(1000);
  const auto began = std::chrono::steady_clock::now();
  expect_error(ErrorKind::unavailable, [&] {
    Cache(std::make_unique<ScriptedLog>(std::make_unique<LogOfOneName>(fleet.log()), script),
          options);
  });
  EXPECT_LT(std::chrono::steady_clock::now() - began, milliseconds(1250));
}

TEST(Open, open_now_without_state_lets_first_write_build) {
  const Fleet fleet;
  fleet.open("tokyo").set("a", "1");
  Options options;
  options.open = OpenMode::now;
  Cache cache = fleet.open("berlin", options);
  EXPECT_FALSE(cache.ready());
  EXPECT_EQ(cache.set("b", "2"), 2U);
  EXPECT_EQ(contents(cache), (Contents{{"a", "1"}, {"b", "2"}}));
}

// A process that opened without a state sees the one that another process builds.
TEST(Open, state_built_by_another_process_makes_cache_ready) {
  const Fleet fleet;
  fleet.open("tokyo").set("a", "1");
  std::atomic<bool> away{true};
  Options options;
  options.open = OpenMode::now;
  options.deadline = milliseconds(50);
  Cache cache = fleet.open("berlin", script_of_log_away(away), options);
  expect_error(ErrorKind::unavailable, [&] { static_cast<void>(cache.get("a")); });
  const Cache other = fleet.open("berlin");
  EXPECT_EQ(cache.get("a"), "1") << "a process that only reads finds it";
  EXPECT_TRUE(cache.ready());
}

TEST(Open, open_now_without_state_lets_every_kind_of_write_build) {
  const Fleet fleet;
  fleet.open("tokyo").set("a", "1");
  const auto open_now = [&](const std::string& machine) {
    Options options;
    options.open = OpenMode::now;
    options.guards.erased_keys_max = 100;
    return fleet.open(machine, options);
  };
  open_now("1").transact([](Transaction& transaction) {
    EXPECT_EQ(transaction.get("a"), "1");
    transaction.set("b", "2");
  });
  open_now("2").set("c", "3");
  open_now("3").set_async("d", "4").get();
  EXPECT_EQ(open_now("4").add("e", 5), 5);
  EXPECT_TRUE(open_now("5").set_if("a", "1", "one"));
  open_now("6").erase("d");
  open_now("7").rewrite_history();
  Cache last = open_now("8");
  last.update();
  EXPECT_EQ(contents(last), (Contents{{"a", "one"}, {"b", "2"}, {"c", "3"}, {"e", "5"}}));
}

// As while another process verifies a file that was copied, or is stopped.
TEST(Open, lock_of_another_process_delays_neither_open_now_nor_deadlines) {
  const Fleet fleet;
  fleet.open("tokyo").set("a", "1");
  fleet.open("berlin");
  std::filesystem::remove(fleet.state_path("berlin"));
  const auto holder = State::open({.path = fleet.state_path("berlin")});
  const HeldLock held = holder->lock(StateLock::install, Deadline(milliseconds(1000)));
  const auto began = std::chrono::steady_clock::now();

  Options options;
  options.open = OpenMode::now;
  Cache cache = fleet.open("berlin", options);
  EXPECT_FALSE(cache.ready());
  expect_error(ErrorKind::unavailable, [&] {
    cache.update({.staleness_max = {}, .at_least = 0, .deadline = milliseconds(100)});
  });
  expect_error(ErrorKind::unavailable,
               [&] { cache.set("b", "2", {.note = {}, .deadline = milliseconds(100)}); });

  EXPECT_LT(std::chrono::steady_clock::now() - began, milliseconds(2000));
}

TEST(Open, event_callback_may_read_but_not_wait_for_itself) {
  const Fleet fleet;
  std::atomic<bool> away{false};
  Cache* called = nullptr;
  int events = 0;
  Options options;
  options.on_event = [&](const Event& event) {
    ++events;
    const std::string_view reason = "its own event callback";
    expect_error(
        ErrorKind::invalid, [&] { called->update(); }, reason);
    expect_error(
        ErrorKind::invalid, [&] { called->set("a", "2"); }, reason);
    expect_error(
        ErrorKind::invalid, [&] { called->close_shared_state(); }, reason);
    if (event.kind == Event::Kind::stray_state || event.kind == Event::Kind::rebuilt) {
      expect_error(  // it is being opened again
          ErrorKind::invalid, [&] { static_cast<void>(called->get("a")); }, reason);
    } else {
      EXPECT_EQ(called->get("a"), "1");
    }
  };
  Cache cache = fleet.open("berlin", script_of_log_away(away), options);
  called = &cache;
  cache.set("a", "1");
  away = true;
  expect_error(ErrorKind::unavailable, [&] {
    cache.update({.staleness_max = {}, .at_least = 0, .deadline = milliseconds(100)});
  });
  EXPECT_GE(events, 1);
  away = false;
  EXPECT_EQ(cache.update(), 1U);

  events = 0;
  const std::string path = cache.state_path();
  cache.close_shared_state();
  std::filesystem::remove(path);
  EXPECT_EQ(cache.get("a"), "1");
  EXPECT_GE(events, 1);
}

TEST(Open, event_callbacks_of_two_caches_may_cause_events_of_each_other) {
  const Fleet fleet;
  std::optional<Cache> caches[2];
  std::latch both_report(2);
  std::atomic<int> nested_events = 0;
  for (int i = 0; i < 2; ++i) {
    Options options;
    options.on_event = [&, i](const Event& event) {
      if (event.message != "outer") {
        ++nested_events;
        return;
      }
      both_report.arrive_and_wait();
      CacheInternal::session(*caches[1 - i]).report(Event::Kind::polling, "nested");
    };
    caches[i].emplace(fleet.open(i == 0 ? "berlin" : "paris", options));
  }
  std::vector<std::jthread> threads;
  for (const std::optional<Cache>& cache : caches) {
    threads.emplace_back(
        [&] { CacheInternal::session(*cache).report(Event::Kind::polling, "outer"); });
  }
  threads.clear();  // joins both
  EXPECT_LE(nested_events, 1) << "dropped while the other cache reports";
}

TEST(Open, event_callback_that_reads_while_the_cache_is_destroyed_is_refused) {
  const Fleet fleet;
  std::atomic<bool> away{false};
  std::atomic<bool> is_called{false};
  std::atomic<bool> is_refused{false};
  std::atomic<Cache*> called{nullptr};
  Options options;
  options.follow = true;
  options.on_event = [&](const Event&) {
    is_called = true;
    const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    try {
      while (std::chrono::steady_clock::now() < end) EXPECT_EQ(called.load()->size(), 1U);
    } catch (const Error& error) {
      is_refused = error.kind() == ErrorKind::invalid;
    }
  };
  auto cache =
      std::make_unique<Cache>(fleet.open("berlin", script_of_log_away(away), std::move(options)));
  called = cache.get();
  cache->set("a", "1");
  away = true;
  fleet.open("tokyo").set("b", "1");  // wakes the follower, which otherwise polls after 20 seconds
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!is_called && std::chrono::steady_clock::now() < end)
    std::this_thread::sleep_for(milliseconds(1));
  ASSERT_TRUE(is_called);
  cache.reset();
  EXPECT_TRUE(is_refused);
}

TEST(Open, cache_that_was_moved_from_throws_invalid) {
  const Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  const Cache moved = std::move(cache);
  EXPECT_TRUE(moved.valid());
  // NOLINTBEGIN(bugprone-use-after-move): it is defined
  EXPECT_FALSE(cache.valid());
  expect_error(
      ErrorKind::invalid, [&] { static_cast<void>(cache.get("a")); }, "moved from");
  expect_error(
      ErrorKind::invalid, [&] { static_cast<void>(cache.view()); }, "moved from");
  expect_error(
      ErrorKind::invalid, [&] { cache.set("a", "2"); }, "moved from");
  expect_error(
      ErrorKind::invalid, [&] { cache.update(); }, "moved from");
  expect_error(
      ErrorKind::invalid, [&] { static_cast<void>(cache.ready()); }, "moved from");
  expect_error(
      ErrorKind::invalid, [&] { static_cast<void>(cache.state_path()); }, "moved from");
  expect_error(
      ErrorKind::invalid, [&] { static_cast<void>(cache.counters()); }, "moved from");
  expect_error(
      ErrorKind::invalid, [&] { cache.close_shared_state(); }, "moved from");
  // NOLINTEND(bugprone-use-after-move)
  EXPECT_EQ(moved.get("a"), "1");
}

TEST(Open, wrong_url_is_refused_although_state_can_be_used) {
  const Fleet fleet("sqlite");
  fleet.open("berlin").set("a", "1");
  expect_error(
      ErrorKind::invalid,
      [&] { const Cache cache(fleet.url() + "?no_such=1", fleet.options("berlin")); }, "no_such");
}

}  // namespace
}  // namespace whycache::testing
