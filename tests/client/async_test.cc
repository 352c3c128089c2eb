// Asynchronous writes: appended once and in order, bounded in memory, each with a result.
#include <gtest/gtest.h>

#include <condition_variable>
#include <future>
#include <mutex>
#include <thread>
#include <vector>

#include "client/cache_internal.h"
#include "client/fleet.h"
#include "update/update.h"

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

// Blocks appends until it is opened.
class Gate {
 public:
  void pass() {
    std::unique_lock lock(mutex_);
    ++waiting_;
    changed_.notify_all();
    changed_.wait(lock, [&] { return open_; });
    --waiting_;
  }
  void wait_for_waiter() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [&] { return waiting_ > 0; });
  }
  void open() {
    const std::lock_guard lock(mutex_);
    open_ = true;
    changed_.notify_all();
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  bool open_ = false;
  int waiting_ = 0;
};

UpdateId await_id(std::future<UpdateId>& future) {
  EXPECT_EQ(future.wait_for(seconds(20)), std::future_status::ready);
  return future.get();
}

TEST(Async, async_write_completes_future_with_update_id) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  std::future<UpdateId> set = cache.set_async("a", "1");
  EXPECT_EQ(await_id(set), 1U);
  EXPECT_EQ(cache.get("a"), "1");
  std::future<UpdateId> batch = cache.set_multi_async({{"b", "2"}, {"c", "3"}});
  std::future<UpdateId> erased = cache.erase_async("a");
  await_id(batch);
  await_id(erased);
  EXPECT_EQ(contents(cache), (Contents{{"b", "2"}, {"c", "3"}}));
  std::future<UpdateId> nothing = cache.write_async({});
  EXPECT_EQ(await_id(nothing), cache.applied_id());
}

TEST(Async, async_write_copies_key_and_value) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  std::future<UpdateId> future;
  {
    std::string key = "a temporary key";
    std::string value(1000, 'v');
    future = cache.set_async(key, value);
    key.assign(key.size(), 'x');
    value.assign(value.size(), 'x');
  }
  await_id(future);
  EXPECT_EQ(cache.get("a temporary key"), std::string(1000, 'v'));
}

TEST(Async, queued_async_writes_share_appends_in_order) {
  Fleet fleet;
  auto script = std::make_shared<Script>();
  Gate gate;
  script->before_append = [&](UpdateId id) {
    if (id == 1) gate.pass();
  };
  Cache cache = fleet.open("berlin", script);
  std::vector<std::future<UpdateId>> futures;
  futures.push_back(cache.set_async("first", "1"));
  gate.wait_for_waiter();
  for (int i = 0; i < 1000; ++i) futures.push_back(cache.set_async("n", std::to_string(i)));
  gate.open();
  UpdateId last = 0;
  for (std::future<UpdateId>& future : futures) {
    const UpdateId id = await_id(future);
    EXPECT_GE(id, last);
    last = id;
  }
  EXPECT_EQ(cache.get("n"), "999");
  EXPECT_LE(script->append_count, 5);
}

TEST(Async, sync_and_async_writes_of_thread_keep_order) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 3; ++thread) {
    threads.emplace_back([&, thread] {
      const std::string key = "thread" + std::to_string(thread);
      UpdateId last = 0;
      for (int i = 0; i < 200; ++i) {
        std::future<UpdateId> later = cache.set_async(key, std::to_string(2 * i));
        const UpdateId now = cache.set(key, std::to_string(2 * i + 1));
        EXPECT_LE(await_id(later), now);
        EXPECT_LT(last, now);
        last = now;
        EXPECT_EQ(cache.get(key), std::to_string(2 * i + 1));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
}

TEST(Async, async_write_beyond_queue_limit_throws_limit) {
  Fleet fleet;
  auto script = std::make_shared<Script>();
  Gate gate;
  script->before_append = [&](UpdateId) { gate.pass(); };
  Options options;
  options.queue_bytes_max = 10'000;
  Cache cache = fleet.open("berlin", script, std::move(options));
  std::vector<std::future<UpdateId>> futures;
  for (int i = 0; i < 9; ++i)
    futures.push_back(cache.set_async("key" + std::to_string(i), std::string(1000, 'v')));
  expect_error(
      ErrorKind::limit,
      [&] { static_cast<void>(cache.set_async("one more", std::string(1000, 'v'))); },
      "queue_bytes_max=10000");
  gate.open();
  for (std::future<UpdateId>& future : futures) await_id(future);
  EXPECT_FALSE(cache.contains("one more"));
  // The queue soon has room again.
  for (int tries = 0;; ++tries) {
    try {
      std::future<UpdateId> future = cache.set_async("one more", std::string(1000, 'v'));
      await_id(future);
      break;
    } catch (const Error& error) {
      ASSERT_EQ(error.kind(), ErrorKind::limit);
      ASSERT_LT(tries, 1000);
      std::this_thread::sleep_for(milliseconds(1));
    }
  }
}

TEST(Async, invalid_async_write_throws_before_queueing) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  expect_error(ErrorKind::invalid, [&] { static_cast<void>(cache.set_async("", "1")); });
  expect_error(
      ErrorKind::limit,
      [&] { static_cast<void>(cache.set_async("a", std::string(2U << 20, 'v'))); },
      "update_bytes_max");
  EXPECT_EQ(CacheInternal::log(cache).extent().head, 0U);
}

TEST(Async, async_write_to_unavailable_log_fails_at_deadline) {
  Fleet fleet;
  auto script = std::make_shared<Script>();
  std::atomic<bool> away{true};
  script->before_append = [&](UpdateId) {
    if (away) throw unavailable_error();
  };
  Cache cache = fleet.open("berlin", script);
  std::future<UpdateId> future =
      cache.set_async("a", "1", {.note = {}, .deadline = milliseconds(50)});
  expect_error(ErrorKind::unavailable, [&] { await_id(future); });
  away = false;
  future = cache.set_async("a", "2");
  EXPECT_EQ(await_id(future), 1U);
}

TEST(Async, split_async_batch_failing_midway_reports_written_changes_and_stops) {
  Fleet fleet;
  auto script = std::make_shared<Script>();
  script->before_append = [&](UpdateId id) {
    if (id == 2) throw unavailable_error();
  };
  Options options;
  options.update_bytes_max = 4096;
  Cache cache = fleet.open("berlin", script, std::move(options));
  std::vector<std::string> values;
  std::vector<Item> items;
  std::vector<std::string> keys;
  for (int i = 0; i < 9; ++i) {
    keys.push_back("key" + std::to_string(i));
    values.push_back(incompressible_bytes(1300, static_cast<std::uint64_t>(i)));
  }
  for (int i = 0; i < 9; ++i)
    items.push_back({keys[static_cast<std::size_t>(i)], values[static_cast<std::size_t>(i)]});
  std::future<UpdateId> future =
      cache.set_multi_async(items, {.note = {}, .deadline = milliseconds(50)});
  expect_error(
      ErrorKind::uncertain, [&] { await_id(future); }, "changes_written=3", "of=9", "last_id=1");
  EXPECT_EQ(cache.size(), 3U);
  EXPECT_EQ(CacheInternal::log(cache).extent().head, 1U);
}

TEST(Async, close_fails_queued_async_writes) {
  Fleet fleet;
  auto script = std::make_shared<Script>();
  std::atomic<int> tries{0};
  script->before_append = [&](UpdateId) {
    ++tries;
    throw unavailable_error();
  };
  Cache cache = fleet.open("berlin", script);
  std::vector<std::future<UpdateId>> futures;
  for (int i = 0; i < 10; ++i)
    futures.push_back(cache.set_async("a", std::to_string(i),
                                      {.note = std::to_string(i), .deadline = seconds(60)}));
  while (tries == 0) std::this_thread::sleep_for(milliseconds(1));
  const auto began = std::chrono::steady_clock::now();
  cache.close_shared_state();
  EXPECT_LT(std::chrono::steady_clock::now() - began, seconds(10));
  for (std::future<UpdateId>& future : futures)
    expect_error(
        ErrorKind::unavailable, [&] { await_id(future); }, "closed");
  script->before_append = {};
  std::future<UpdateId> future = cache.set_async("b", "1");
  EXPECT_EQ(await_id(future), 1U) << "the next call opens it again";
}

TEST(Async, cache_destructor_fails_queued_async_writes) {
  Fleet fleet;
  std::future<UpdateId> future;
  {
    auto script = std::make_shared<Script>();
    script->before_append = [](UpdateId) { throw unavailable_error(); };
    Cache cache = fleet.open("berlin", script);
    future = cache.set_async("a", "1");
  }
  expect_error(ErrorKind::unavailable, [&] { await_id(future); });
}

TEST(Async, forked_child_starts_own_async_writer_thread) {
  Fleet fleet("sqlite");
  Cache cache = fleet.open("berlin");
  std::future<UpdateId> before = cache.set_async("parent", "1");
  await_id(before);
  expect_success_in_child([&] {
    std::future<UpdateId> future = cache.set_async("child", "1");
    await_id(future);
  });
  EXPECT_EQ(cache.get("child"), "1");
  std::future<UpdateId> after = cache.set_async("parent", "2");
  await_id(after);
  EXPECT_EQ(contents(cache), (Contents{{"child", "1"}, {"parent", "2"}}));
}

// Notes outcomes and wake-ups in the order in which they come.
class Wakes : public WriteWaker {
 public:
  void wake() noexcept override { note("wake"); }
  void note(const std::string& what) {
    const std::lock_guard lock(mutex_);
    notes_.push_back(what);
    changed_.notify_all();
  }
  std::vector<std::string> wait_for(std::size_t count) {
    std::unique_lock lock(mutex_);
    EXPECT_TRUE(changed_.wait_for(lock, seconds(20), [&] { return notes_.size() >= count; }));
    return notes_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<std::string> notes_;
};

class NotedCompletion : public WriteCompletion {
 public:
  explicit NotedCompletion(std::shared_ptr<Wakes> wakes)
      : WriteCompletion(wakes), wakes_(std::move(wakes)) {}
  void finish(UpdateId id, const std::exception_ptr& failure) noexcept override {
    wakes_->note(failure ? "failure" : std::to_string(id));
  }

 private:
  const std::shared_ptr<Wakes> wakes_;
};

TEST(Async, completions_of_group_are_followed_by_one_wake) {
  Fleet fleet;
  auto script = std::make_shared<Script>();
  Gate gate;
  script->before_append = [&](UpdateId id) {
    if (id == 1) gate.pass();
  };
  Cache cache = fleet.open("berlin", script);
  const auto wakes = std::make_shared<Wakes>();
  const auto write = [&](std::string_view key) {
    const Change change = Change::set(key, "1");
    CacheInternal::write_async(cache, std::span(&change, 1), {},
                               std::make_shared<NotedCompletion>(wakes));
  };
  write("first");
  gate.wait_for_waiter();
  for (const std::string_view key : {"a", "b", "c", "d"}) write(key);
  gate.open();

  EXPECT_EQ(wakes->wait_for(7),
            (std::vector<std::string>{"1", "wake", "2", "2", "2", "2", "wake"}));
}

TEST(Async, completion_takes_failure_of_closed_cache) {
  Fleet fleet;
  auto script = std::make_shared<Script>();
  Gate gate;
  script->before_append = [&](UpdateId) { gate.pass(); };
  Cache cache = fleet.open("berlin", script);
  std::future<UpdateId> first = cache.set_async("first", "1");
  gate.wait_for_waiter();
  const auto wakes = std::make_shared<Wakes>();
  const Change change = Change::set("a", "1");
  CacheInternal::write_async(cache, std::span(&change, 1), {},
                             std::make_shared<NotedCompletion>(wakes));
  std::thread opener([&] {
    std::this_thread::sleep_for(milliseconds(100));
    gate.open();
  });
  cache.close_shared_state();
  opener.join();

  EXPECT_EQ(wakes->wait_for(2), (std::vector<std::string>{"failure", "wake"}));
}

TEST(Async, completion_of_empty_batch_comes_at_once) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  const auto wakes = std::make_shared<Wakes>();
  CacheInternal::write_async(cache, {}, {}, std::make_shared<NotedCompletion>(wakes));
  EXPECT_EQ(wakes->wait_for(2), (std::vector<std::string>{"0", "wake"}));
}

TEST(Async, write_decided_writes_what_was_decided_for_the_newest_state) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  tokyo.set("a", "1");
  std::vector<UpdateId> seen;
  const std::optional<UpdateId> id = CacheInternal::write_decided(
      berlin,
      [&](const View& view) {
        seen.push_back(view.id());
        return view.get("a") == "1" ? std::vector{Change::set("b", "2")} : std::vector<Change>{};
      },
      {});
  EXPECT_EQ(id, 2U);
  EXPECT_EQ(seen.back(), 1U);
  EXPECT_EQ(
      CacheInternal::write_decided(berlin, [](const View&) { return std::vector<Change>(); }, {}),
      std::nullopt);
}

}  // namespace
}  // namespace whycache::testing
