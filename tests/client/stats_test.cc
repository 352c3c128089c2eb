// Stats and inspection of a cache.
#include <gtest/gtest.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <optional>

#include "client/cache_internal.h"
#include "client/fleet.h"
#include "state/state.h"
#include "support/child_process.h"

namespace whycache::testing {
namespace {

TEST(Stats, stats_of_current_machine_show_no_lag) {
  const Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set_multi({{"a", "1"}, {"b", "22"}});
  cache.update();
  const Stats stats = cache.stats();
  EXPECT_EQ(stats.applied_id, 1U);
  EXPECT_EQ(stats.known_head, 1U);
  EXPECT_EQ(stats.lag, 0U);
  EXPECT_LT(stats.staleness, std::chrono::minutes(1));
  EXPECT_TRUE(stats.log_is_up);
  EXPECT_EQ(stats.log_error, "");
  EXPECT_FALSE(stats.log_down_since);
  EXPECT_EQ(stats.item_count, 2U);
  EXPECT_EQ(stats.item_bytes, 5U);
  EXPECT_GT(stats.file_bytes, stats.item_bytes);
  EXPECT_FALSE(stats.oldest_pinned_id);
  EXPECT_EQ(stats.counters.updates_written, 1U);
}

TEST(Stats, machine_counters_are_those_of_all_processes_and_survive_rebuilds) {
  const Fleet fleet("file");
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  const auto write_in_child = [&] {
    return run_in_child([&]() -> std::string {
      Cache own = fleet.open("berlin");
      own.set("a", "2");
      cache.set("a", "3");  // the parent's object has counted one, too
      return "";
    });
  };
  EXPECT_EQ(write_in_child(), "");
  EXPECT_EQ(write_in_child(), "");
  const auto expect_counters = [&](std::uint64_t written, std::uint64_t rebuilds) {
    const Counters machine = cache.stats().machine_counters;
    EXPECT_EQ(machine.updates_written, written);
    EXPECT_EQ(machine.updates_applied, written);
    EXPECT_EQ(machine.rebuilds_replaced + machine.rebuilds_diverged + machine.rebuilds_damaged,
              rebuilds);
    EXPECT_EQ(cache.inspect().machine_counters.updates_written, written);
  };
  expect_counters(5, 0);
  EXPECT_EQ(cache.counters().updates_written, 1U);

  CacheInternal::rebuild(cache);
  expect_counters(5, 0);
  cache.set("a", "4");
  expect_counters(6, 0);

  Cache other = fleet.open("paris");
  EXPECT_EQ(other.stats().machine_counters.updates_written, 0U);
}

TEST(Stats, stats_name_the_oldest_view_and_its_process) {
  const Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  const View old = cache.view();
  cache.set("a", "2");
  const View newer = cache.view();
  const Stats stats = cache.stats();
  EXPECT_EQ(stats.oldest_pinned_id, 1U);
  EXPECT_EQ(stats.oldest_pinned_process_id, static_cast<std::uint64_t>(::getpid()));
  EXPECT_NE(stats.oldest_pinned_process_name, "");
}

// A log that does not answer while `away` is set.
std::shared_ptr<Script> log_that_goes(const std::atomic<bool>& away) {
  auto script = std::make_shared<Script>();
  script->before_read = script->before_extent = [&away] {
    if (away) throw Error(ErrorKind::unavailable, "the test's log is away");
  };
  return script;
}

TEST(Stats, stats_tell_since_when_log_is_down_and_why) {
  const Fleet fleet;
  std::atomic<bool> away{false};
  const std::shared_ptr<Script> script = log_that_goes(away);
  Cache cache = fleet.open("berlin", script);
  const auto began = std::chrono::system_clock::now();
  away = true;
  for (int i = 0; i < 2; ++i) {
    expect_error(ErrorKind::unavailable, [&] {
      cache.update({.staleness_max = {}, .at_least = 0, .deadline = std::chrono::milliseconds(20)});
    });
  }
  const Stats down = cache.stats();
  EXPECT_FALSE(down.log_is_up);
  EXPECT_NE(down.log_error.find("the test's log is away"), std::string::npos);
  ASSERT_TRUE(down.log_down_since);
  EXPECT_GE(*down.log_down_since, began);
  EXPECT_LE(*down.log_down_since, std::chrono::system_clock::now());
  away = false;
  cache.update();
  EXPECT_TRUE(cache.stats().log_is_up);
}

TEST(Stats, log_is_up_again_once_another_process_has_asked_it) {
  using std::chrono::hours;
  using std::chrono::milliseconds;
  const Fleet fleet;
  std::atomic<bool> away{false};
  const std::shared_ptr<Script> script = log_that_goes(away);
  Cache cache = fleet.open("berlin", script);
  Cache same_machine = fleet.open("berlin");
  const auto fail = [&] {
    away = true;
    expect_error(ErrorKind::unavailable, [&] {
      cache.update({.staleness_max = {}, .at_least = 0, .deadline = milliseconds(20)});
    });
    away = false;
    return cache.stats().log_down_since;
  };
  cache.update();
  const auto first_failure = fail();
  ASSERT_TRUE(first_failure);

  same_machine.update();
  const int reads = script->read_count;
  cache.update({.staleness_max = hours(1)});  // within the bound: it does not ask the log
  EXPECT_EQ(script->read_count, reads);
  EXPECT_TRUE(cache.stats().log_is_up);

  const auto second_failure = fail();
  ASSERT_TRUE(second_failure);
  EXPECT_GT(*second_failure, *first_failure) << "the log was up between the failures";
}

// As while another process asks a log that hangs.
TEST(Stats, log_is_down_if_another_process_waits_for_it_all_the_time) {
  const Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.update();
  {
    const auto other = State::open({.path = fleet.state_path("berlin")});
    const HeldLock asking =
        other->lock(StateLock::follow, Deadline(std::chrono::milliseconds(1000)));
    expect_error(ErrorKind::unavailable, [&] {
      cache.update({.staleness_max = {}, .at_least = 0, .deadline = std::chrono::milliseconds(20)});
    });
    const Stats stats = cache.stats();
    EXPECT_FALSE(stats.log_is_up);
    EXPECT_NE(stats.log_error.find("was reading it"), std::string::npos) << stats.log_error;
  }
  cache.update();
  EXPECT_TRUE(cache.stats().log_is_up);
}

TEST(Stats, pinned_bytes_are_what_an_old_view_keeps_from_being_reused) {
  const Fleet fleet;
  Cache cache = fleet.open("berlin");
  const auto overwrite = [&](int times) {
    for (int i = 0; i < times; ++i) cache.set("logo", incompressible_bytes(100'000, 1));
  };
  overwrite(1);
  EXPECT_EQ(cache.stats().pinned_bytes, 0U);
  std::optional<View> held = cache.view();
  EXPECT_EQ(cache.stats().pinned_bytes, 0U) << "nothing was overwritten yet";
  overwrite(100);
  const Stats stats = cache.stats();
  EXPECT_GT(stats.pinned_bytes, 90U * 100'000);
  EXPECT_LT(stats.pinned_bytes, stats.file_bytes);
  held.reset();
  EXPECT_EQ(cache.stats().pinned_bytes, 0U);
}

TEST(Stats, inspection_shows_what_the_state_holds) {
  const Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  const View view = cache.view();  // a process is known once it took a view
  const StateInspection inspection = cache.inspect();
  EXPECT_EQ(inspection.info.applied_id, 1U);
  EXPECT_EQ(inspection.info.item_count, 1U);
  EXPECT_EQ(inspection.info.digest, cache.digest());
  EXPECT_FALSE(inspection.segments_by_kind.empty());
  EXPECT_EQ(inspection.processes.size(), 1U);
}

}  // namespace
}  // namespace whycache::testing
