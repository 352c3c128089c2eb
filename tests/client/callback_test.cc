// Code of the application that runs within a call of the cache, and calls the cache itself.
// open_test.cc has the same for Options::on_event.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <thread>

#include "client/fleet.h"

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;

// Expects that a cache can be read, and that it refuses what would wait for the callback to return.
void expect_reads_only(Cache& cache, std::string_view reason) {
  EXPECT_EQ(cache.get("a"), "1");
  EXPECT_EQ(cache.view().size(), 1U);
  const auto refuses = [&](const auto& call) { expect_error(ErrorKind::invalid, call, reason); };
  refuses([&] { cache.set("b", "2"); });
  refuses([&] { static_cast<void>(cache.set_async("b", "2")); });
  refuses([&] { cache.transact([](Transaction& transaction) { transaction.set("b", "2"); }); });
  refuses([&] { cache.update(); });
  refuses([&] { cache.rewrite_history(); });
  refuses([&] { cache.close_shared_state(); });
  refuses([&] { static_cast<void>(cache.notify_fd()); });
  refuses(
      [&] { static_cast<void>(cache.changes(cache.applied_id() + 1'000).next(milliseconds(0))); });
  refuses([&] { static_cast<void>(cache.changes(cache.applied_id()).next()); });
}

TEST(Callback, validator_reads_the_cache_and_is_refused_what_needs_the_log) {
  const Fleet fleet;
  Cache* called = nullptr;
  int calls = 0;
  Options options;
  options.guards.validate = [&](const Change&) -> std::optional<std::string> {
    if (called == nullptr) return std::nullopt;
    ++calls;
    expect_reads_only(*called, "its own validator");
    return "seen";
  };
  Cache cache = fleet.open("berlin", options);
  cache.set("a", "1");
  called = &cache;

  const auto is_validated = [&](const auto& write) {
    calls = 0;
    expect_error(ErrorKind::refused, write, "seen");
    EXPECT_EQ(calls, 1);
  };
  is_validated([&] { cache.set("c", "3"); });
  is_validated([&] { cache.set_async("c", "3").get(); });
  is_validated(
      [&] { cache.transact([](Transaction& transaction) { transaction.set("c", "3"); }); });
  is_validated([&] { static_cast<void>(cache.set_if("c", std::nullopt, "3")); });

  called = nullptr;
  EXPECT_EQ(cache.set("c", "3"), 2U);
}

TEST(Callback, keep_reads_the_cache_and_is_refused_what_needs_the_log) {
  const Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  int calls = 0;

  cache.rewrite_history({.keep = [&](std::string_view, std::string_view) {
    ++calls;
    expect_reads_only(cache, "`keep`");
    return true;
  }});
  EXPECT_EQ(calls, 1);

  EXPECT_EQ(cache.set("c", "3"), 2U);
}

TEST(Callback, log_that_calls_its_cache_is_refused_what_needs_the_log) {
  const Fleet fleet;
  Cache* called = nullptr;
  std::atomic<int> calls{0};
  const auto call = [&] {
    if (called == nullptr) return;
    ++calls;
    expect_reads_only(*called, "its own log");
  };
  auto script = std::make_shared<Script>();
  script->before_append = [&](UpdateId) { call(); };
  script->before_read = script->before_rewrite = script->before_extent = call;
  Cache cache = fleet.open("berlin", script);
  cache.set("a", "1");
  called = &cache;

  const auto is_called = [&](const auto& use) {
    calls = 0;
    use();
    EXPECT_GE(calls, 1);
  };
  is_called([&] { cache.update(); });
  is_called([&] { cache.rewrite_history(); });
  // A thread of the cache appends this: closing there would have to wait for that thread's end.
  is_called([&] { cache.set_async("a", "1").get(); });
}

TEST(Callback, log_that_throws_no_std_exception_has_failed) {
  const Fleet fleet;
  std::atomic<bool> throws{false};
  const auto fail = [&] {
    if (throws) throw 42;
  };
  auto script = std::make_shared<Script>();
  script->before_append = script->after_append = [&](UpdateId) { fail(); };
  script->before_read = script->before_extent = fail;
  Options options;
  options.deadline = milliseconds(50);
  Cache cache = fleet.open("berlin", script, options);
  cache.set("a", "1");
  throws = true;

  const std::string_view reason = "threw no std::exception";
  expect_error(
      ErrorKind::uncertain, [&] { cache.set("b", "2"); }, reason);
  expect_error(
      ErrorKind::uncertain, [&] { cache.set_async("b", "2").get(); }, reason);
  expect_error(
      ErrorKind::unavailable, [&] { cache.update(); }, reason);
  EXPECT_FALSE(cache.stats().log_is_up);

  throws = false;
  const UpdateId id = cache.set("b", "2");
  EXPECT_EQ(cache.applied_id(), id);
}

TEST(Callback, follower_survives_a_log_that_throws_no_std_exception) {
  const Fleet fleet;
  std::atomic<int> throws{0};
  auto script = std::make_shared<Script>();
  script->before_read = script->before_extent = [&] {
    if (throws > 0) {
      --throws;
      throw 42;
    }
  };
  Options options;
  options.follow = true;
  options.follow_pace.interval_max = milliseconds(5);
  options.follow_pace.interval_max_notified = milliseconds(5);
  const Cache berlin = fleet.open("berlin", script, options);
  throws = 3;

  const UpdateId id = fleet.open("tokyo").set("a", "1");

  EXPECT_GE(berlin.wait(id - 1, {.deadline = std::chrono::seconds(60)}), id);
}

}  // namespace
}  // namespace whycache::testing
