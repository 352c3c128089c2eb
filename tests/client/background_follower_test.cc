// Options::follow: a thread keeps the state fresh, in one process of a machine at a time.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <iterator>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <whycache/cache.h>

#include "client/cache_internal.h"
#include "client/fleet.h"
#include "log/forwarding_log.h"
#include "state/file/state_lock.h"
#include "state/state.h"
#include "support/sanitizers.h"

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;
using ::testing::HasSubstr;

constexpr seconds patience{20};

template <typename IsTrue>
bool becomes_true(const IsTrue& is_true, seconds at_most = patience) {
  const auto until = steady_clock::now() + at_most;
  while (!is_true()) {
    if (steady_clock::now() > until) return false;
    std::this_thread::sleep_for(milliseconds(1));
  }
  return true;
}

// Counts the calls that a store answers, as those of a database would be. Does not notify.
class PolledLog final : public ForwardingLog {
 public:
  PolledLog(std::unique_ptr<Log> target, std::shared_ptr<std::atomic<int>> reads)
      : ForwardingLog(std::move(target)), reads_(std::move(reads)) {}
  Extent extent() override {
    ++*reads_;
    return target().extent();
  }
  Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) override {
    ++*reads_;
    return target().read(first, last, visit);
  }
  bool wait(UpdateId after, std::chrono::nanoseconds at_most) override {
    return Log::wait(after, at_most);
  }
  bool notifies() const noexcept override { return false; }

 private:
  const std::shared_ptr<std::atomic<int>> reads_;
};

// Wakes its waiters as `script` says, and never because of an update.
class LyingLog final : public ForwardingLog {
 public:
  struct LyingScript {
    std::atomic<bool> wakes_always{false};
    std::atomic<bool> throws{false};
    std::atomic<int> wait_count{0};
    std::atomic<int> read_count{0};
  };
  LyingLog(std::unique_ptr<Log> target, std::shared_ptr<LyingScript> script)
      : ForwardingLog(std::move(target)), script_(std::move(script)) {}
  Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) override {
    ++script_->read_count;
    return target().read(first, last, visit);
  }
  bool wait(UpdateId after, std::chrono::nanoseconds at_most) override {
    ++script_->wait_count;
    if (script_->throws) {
      notifies_ = false;
      throw Error(ErrorKind::limit, "no more watches");
    }
    if (script_->wakes_always) return true;
    return Log::wait(after, at_most);
  }
  bool notifies() const noexcept override { return notifies_; }

 private:
  const std::shared_ptr<LyingScript> script_;
  std::atomic<bool> notifies_{true};
};

Options following(FollowPace pace = {}) {
  Options options;
  options.follow = true;
  options.follow_pace = pace;
  return options;
}

struct BackgroundFollowerTest : ::testing::TestWithParam<const char*> {
  Fleet fleet{GetParam()};
  Cache writer = fleet.open("writer");
};

TEST_P(BackgroundFollowerTest, updates_of_another_machine_become_visible_by_themselves) {
  writer.set("key", "0");
  Cache reader = fleet.open("reader", following());
  for (int i = 1; i <= 20; ++i) {
    writer.set("key", std::to_string(i));
    const auto began = steady_clock::now();
    EXPECT_TRUE(becomes_true([&] { return reader.get("key") == std::to_string(i); }));
    EXPECT_LT(steady_clock::now() - began, patience);
  }
}

TEST_P(BackgroundFollowerTest, follows_again_after_closing_and_reopening) {
  writer.set("key", "1");
  Cache reader = fleet.open("reader", following());
  EXPECT_EQ(reader.get("key"), "1");
  reader.close_shared_state();
  EXPECT_EQ(reader.get("key"), "1");
  writer.set("key", "2");
  EXPECT_TRUE(becomes_true([&] { return reader.get("key") == "2"; }));
}

TEST_P(BackgroundFollowerTest, several_caches_of_a_machine_follow_together) {
  writer.set("key", "1");
  std::vector<Cache> readers;
  for (int i = 0; i < 4; ++i) readers.push_back(fleet.open("reader", following()));
  writer.set("key", "2");
  EXPECT_TRUE(becomes_true([&] { return readers.back().get("key") == "2"; }));
  // The one that polls ends.
  readers.erase(readers.begin());
  writer.set("key", "3");
  EXPECT_TRUE(becomes_true([&] { return readers.back().get("key") == "3"; }));
}

TEST_P(BackgroundFollowerTest, closing_ends_the_thread_soon) {
  writer.set("key", "1");
  const auto began = steady_clock::now();
  for (int i = 0; i < 5; ++i) fleet.open("reader", following({.interval_min = seconds(3600)}));
  EXPECT_LT(steady_clock::now() - began, patience);
}

TEST_P(BackgroundFollowerTest, builds_the_state_that_is_missing_when_the_cache_opens) {
  writer.set("key", "value");
  Options options = following();
  options.open = OpenMode::now;
  Cache reader = fleet.open("reader", options);
  EXPECT_TRUE(becomes_true([&] { return reader.ready(); }));
  EXPECT_EQ(reader.get("key"), "value");
}

INSTANTIATE_TEST_SUITE_P(Logs, BackgroundFollowerTest,
                         ::testing::Values("memory", "file", "sqlite"));

TEST(BackgroundFollower, is_off_by_default) {
  Fleet fleet("sqlite");
  Cache writer = fleet.open("writer");
  const UpdateId id = writer.set("key", "1");
  Cache reader = fleet.open("reader");
  writer.set("key", "2");
  EXPECT_EQ(reader.wait(id, {.deadline = milliseconds(200)}), id);
}

TEST(BackgroundFollower, bounded_update_does_not_ask_the_log_while_another_process_follows) {
  Fleet fleet("sqlite");
  fleet.open("writer").set("key", "1");
  const auto reads = std::make_shared<std::atomic<int>>(0);
  Options options = following({.interval_min = milliseconds(20), .interval_max = milliseconds(20)});
  options.state_path = fleet.state_path("reader");
  Cache follower(fleet.url(), options);
  // Its thread may have to try twice, since this takes the lock as well.
  ASSERT_TRUE(becomes_true(
      [&] { return !CacheInternal::state(follower).try_lock(StateLock::follower).has_value(); }));
  Cache reader(std::make_unique<PolledLog>(fleet.log(), reads), options);
  // Each process asks once.
  EXPECT_TRUE(becomes_true([&] {
    return CacheInternal::applied_id_if_fresh(reader, {.staleness_max = seconds(10)}).has_value();
  }));
  const int reads_before = *reads;
  for (int i = 0; i < 200; ++i) {
    reader.update({.staleness_max = seconds(10)});
    std::this_thread::sleep_for(milliseconds(1));
  }
  EXPECT_EQ(*reads, reads_before) << "it stands by";
}

TEST(BackgroundFollower, log_that_does_not_notify_is_polled_seldom_while_idle) {
  Fleet fleet("sqlite");
  fleet.open("writer").set("key", "1");
  const auto reads = std::make_shared<std::atomic<int>>(0);
  Options options = following();
  options.state_path = fleet.state_path("reader");
  Cache reader(std::make_unique<PolledLog>(fleet.log(), reads), options);
  std::this_thread::sleep_for(milliseconds(2500));
  EXPECT_LE(*reads, 30);
  EXPECT_GE(*reads, 5);
}

// kill -9 leaves nothing to clean up: the kernel drops the lock.
TEST(BackgroundFollower, another_process_takes_over_within_a_second_of_a_kill) {
  Fleet fleet("sqlite");
  Cache writer = fleet.open("writer");
  UpdateId id = writer.set("key", "0");
  const auto follow_forever = [&] {
    Cache reader = fleet.open("reader", following());
    for (;;) ::pause();
  };
  auto first = std::make_unique<TestProcess>(follow_forever);
  Cache watcher = fleet.open("reader");
  ++id;
  writer.set("key", "1");
  ASSERT_EQ(watcher.wait(id - 1, {.deadline = patience}), id) << "the first one follows";
  for (int round = 0; round < 3; ++round) {
    auto second = std::make_unique<TestProcess>(follow_forever);
    std::this_thread::sleep_for(milliseconds(300));
    first->kill_and_wait();
    const auto killed_at = steady_clock::now();
    ++id;
    writer.set("key", std::to_string(id));
    EXPECT_EQ(watcher.wait(id - 1, {.deadline = patience}), id);
    // A second, and what a busy machine adds.
    EXPECT_LT(steady_clock::now() - killed_at, seconds(5));
    first = std::move(second);
  }
}

TEST(BackgroundFollower, forked_child_follows_once_it_uses_the_log_and_outlives_its_parent) {
  SKIP_WITHOUT_THREADS_IN_CHILD();
  Fleet fleet("sqlite");
  Cache writer = fleet.open("writer");
  writer.set("key", "1");
  auto reader = std::make_unique<Cache>(fleet.open("reader", following()));
  expect_success_in_child([&] {
    Cache of_child = fleet.open("writer");
    EXPECT_EQ(reader->get("key"), "1");
    reader->update();
    of_child.set("key", "2");
    EXPECT_TRUE(becomes_true([&] { return reader->get("key") == "2"; }));
    reader.reset();
  });
  writer.set("key", "3");
  EXPECT_TRUE(becomes_true([&] { return reader->get("key") == "3"; }));
}

TEST(BackgroundFollower, outage_of_the_log_is_reported_once_and_following_continues) {
  Fleet fleet("sqlite");
  Cache writer = fleet.open("writer");
  writer.set("key", "1");
  Events events;
  Options options = following();
  options.deadline = milliseconds(200);
  options.on_event = events.listener();
  const auto script = std::make_shared<Script>();
  std::atomic<bool> is_down{false};
  script->before_read = script->before_extent = [&] {
    if (is_down) throw unavailable_error();
  };
  Cache reader = fleet.open("reader", script, options);
  EXPECT_TRUE(becomes_true([&] { return reader.staleness() < seconds(10); }));
  is_down = true;
  EXPECT_TRUE(becomes_true([&] { return events.count(Event::Kind::retried) == 1; }));
  std::this_thread::sleep_for(milliseconds(500));
  is_down = false;
  writer.set("key", "2");
  EXPECT_TRUE(becomes_true([&] { return reader.get("key") == "2"; }));
  EXPECT_TRUE(becomes_true([&] { return events.count(Event::Kind::reconnected) == 1; }));
  EXPECT_EQ(events.count(Event::Kind::retried), 1);
  EXPECT_EQ(events.count(Event::Kind::not_following), 0);
}

TEST(BackgroundFollower, other_problems_are_reported_when_they_begin_and_end) {
  Fleet fleet("sqlite");
  Cache writer = fleet.open("writer");
  writer.set("key", "1");
  Events events;
  Options options = following();
  options.on_event = events.listener();
  Cache reader = fleet.open("reader", options);
  const std::string lock_file = reader.state_path() + ".lock";
  EXPECT_TRUE(becomes_true([&] { return reader.staleness() < seconds(10); }));
  // Other processes would not see the locks of this one.
  std::filesystem::rename(lock_file, lock_file + ".away");
  writer.set("key", "2");
  EXPECT_TRUE(becomes_true([&] { return events.count(Event::Kind::not_following) == 1; }));
  std::filesystem::rename(lock_file + ".away", lock_file);
  EXPECT_TRUE(becomes_true([&] { return reader.get("key") == "2"; }));
  EXPECT_TRUE(becomes_true([&] { return events.count(Event::Kind::following) == 1; }));
  EXPECT_EQ(events.count(Event::Kind::not_following), 1);
}

TEST(BackgroundFollower, lost_notifications_cost_time_and_nothing_else) {
  Fleet fleet("sqlite");
  Cache writer = fleet.open("writer");
  writer.set("key", "0");
  const auto script = std::make_shared<LyingLog::LyingScript>();
  Options options = following({.interval_max_notified = milliseconds(50)});
  options.state_path = fleet.state_path("reader");
  Cache reader(std::make_unique<LyingLog>(fleet.log(), script), options);
  for (int i = 0; i < 10; ++i) {
    writer.set("key", std::to_string(i));
    EXPECT_TRUE(becomes_true([&] { return reader.get("key") == std::to_string(i); }));
  }
}

TEST(BackgroundFollower, flood_of_forged_notifications_causes_few_polls) {
  Fleet fleet("sqlite");
  Cache writer = fleet.open("writer");
  writer.set("key", "0");
  const auto script = std::make_shared<LyingLog::LyingScript>();
  script->wakes_always = true;
  Options options = following();
  options.state_path = fleet.state_path("reader");
  Cache reader(std::make_unique<LyingLog>(fleet.log(), script), options);
  EXPECT_TRUE(becomes_true([&] { return script->read_count > 5; }));
  const int before = script->read_count;
  std::this_thread::sleep_for(milliseconds(1000));
  EXPECT_LE(script->read_count - before, 40);
  writer.set("key", "1");
  EXPECT_TRUE(becomes_true([&] { return reader.get("key") == "1"; }));
}

TEST(BackgroundFollower, log_that_cannot_notify_is_polled_and_that_is_reported_once) {
  Fleet fleet("sqlite");
  Cache writer = fleet.open("writer");
  writer.set("key", "0");
  const auto script = std::make_shared<LyingLog::LyingScript>();
  script->throws = true;
  Events events;
  Options options = following();
  options.on_event = events.listener();
  options.state_path = fleet.state_path("reader");
  Cache reader(std::make_unique<LyingLog>(fleet.log(), script), options);
  EXPECT_TRUE(becomes_true([&] { return events.count(Event::Kind::polling) == 1; }));
  EXPECT_THAT(events.messages(Event::Kind::polling), HasSubstr("no more watches"));
  for (int i = 1; i < 5; ++i) {
    writer.set("key", std::to_string(i));
    EXPECT_TRUE(becomes_true([&] { return reader.get("key") == std::to_string(i); }));
  }
  EXPECT_EQ(events.count(Event::Kind::polling), 1);
}

// The replaced file has another hard link, so that even root refuses it.
TEST(BackgroundFollower, state_that_becomes_unusable_during_a_wait_is_not_reported_as_polling) {
  Fleet fleet("sqlite");
  Cache deleter = fleet.open("berlin");
  deleter.set("key", "0");
  fleet.open("tokyo").update();
  std::filesystem::create_hard_link(fleet.state_path("tokyo"), fleet.state_path("tokyo") + ".link");
  Events events;
  Options options;
  options.on_event = events.listener();
  options.state_path = fleet.state_path("berlin");
  Cache reader(std::make_unique<PolledLog>(fleet.log(), std::make_shared<std::atomic<int>>(0)),
               options);
  reader.update();
  std::thread waiting([&] {
    expect_error(ErrorKind::unavailable, [&] {
      reader.update({.staleness_max = {}, .at_least = 99, .deadline = milliseconds(2'000)});
    });
  });
  std::this_thread::sleep_for(milliseconds(300));
  deleter.delete_shared_state();
  std::filesystem::rename(fleet.state_path("tokyo"), fleet.state_path("berlin"));
  waiting.join();
  EXPECT_EQ(events.count(Event::Kind::polling), 0) << events.messages(Event::Kind::polling);
}

// A log that notifies, while nothing happens: no thread of the process runs.
TEST(BackgroundFollower, idle_follower_makes_no_context_switches) {
  SKIP_IF_OTHER_THREADS_SWITCH();
  Fleet fleet;
  Cache reader = fleet.open("reader", following());
  reader.set("key", "1");
  // The quietest of several seconds: on a busy machine the first may still belong to the start.
  long fewest = std::numeric_limits<long>::max();
  for (int second = 0; second < 10 && fewest > 3; ++second) {
    struct rusage before {};
    struct rusage after {};
    ::getrusage(RUSAGE_SELF, &before);
    std::this_thread::sleep_for(milliseconds(1000));
    ::getrusage(RUSAGE_SELF, &after);
    fewest = std::min(fewest, after.ru_nvcsw - before.ru_nvcsw);
  }
  EXPECT_LE(fewest, 3);
}

TEST(BackgroundFollower, intervals_that_are_not_positive_are_refused) {
  Fleet fleet;
  expect_error(
      ErrorKind::invalid,
      [&] { fleet.open("reader", following({.interval_min = milliseconds(0)})); }, "follow_pace");
}

}  // namespace
}  // namespace whycache::testing
