// Cache::wait() and Cache::notify_fd(): being told of updates that any process has applied.
#include <poll.h>
#include <sys/resource.h>
#include <unistd.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <memory>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include <whycache/cache.h>

#include "client/cache_internal.h"
#include "client/fleet.h"
#include "state/file/applied_wait.h"
#include "state/state.h"
#include "support/sanitizers.h"

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

std::size_t descriptor_count() {
  return static_cast<std::size_t>(
      std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

bool is_readable(int descriptor, milliseconds at_most = milliseconds(0)) {
  pollfd polled = {descriptor, POLLIN, 0};
  return ::poll(&polled, 1, static_cast<int>(at_most.count())) == 1 &&
         (polled.revents & POLLIN) != 0;
}

void drain(int descriptor) {
  std::uint64_t count = 0;
  ASSERT_EQ(::read(descriptor, &count, sizeof count), ssize_t{sizeof count});
}

// The longest that a wait may take which a wake-up ends. Without the wake-up it takes half a
// minute.
constexpr seconds soon{20};

struct WaitTest : ::testing::Test {
  Fleet fleet{"sqlite"};
  Cache cache = fleet.open("berlin");
};

TEST_F(WaitTest, returns_at_once_if_the_update_is_applied) {
  const UpdateId id = cache.set("key", "value");
  EXPECT_EQ(cache.wait(id - 1), id);
  EXPECT_EQ(cache.wait(0), id);
}

TEST_F(WaitTest, returns_the_applied_id_when_its_deadline_passes) {
  const UpdateId id = cache.set("key", "value");
  const auto began = steady_clock::now();
  EXPECT_EQ(cache.wait(id, {.deadline = milliseconds(50)}), id);
  EXPECT_GE(steady_clock::now() - began, milliseconds(50));
  EXPECT_EQ(cache.wait(id, {.deadline = milliseconds(0)}), id);
}

TEST_F(WaitTest, is_woken_by_a_write_of_another_process) {
  UpdateId id = cache.set("key", "0");
  const auto began = steady_clock::now();
  for (int round = 0; round < 5; ++round) {
    TestProcess writer([&] {
      std::this_thread::sleep_for(milliseconds(20));
      cache.set("key", std::to_string(round));
    });
    EXPECT_EQ(cache.wait(id, {.deadline = seconds(60)}), id + 1);
    EXPECT_EQ(cache.get("key"), std::to_string(round));
    EXPECT_EQ(writer.wait(), 0);
    ++id;
  }
  EXPECT_LT(steady_clock::now() - began, soon);
}

TEST_F(WaitTest, is_woken_by_an_update_that_another_thread_applies) {
  const UpdateId id = cache.set("key", "value");
  Cache rome = fleet.open("rome");
  rome.set("key", "of rome");
  std::thread updater([&] {
    std::this_thread::sleep_for(milliseconds(20));
    cache.update();
  });
  const auto began = steady_clock::now();
  EXPECT_EQ(cache.wait(id, {.deadline = seconds(60)}), id + 1);
  EXPECT_LT(steady_clock::now() - began, soon);
  updater.join();
}

// Many waiters in several processes, updates at random times: none is missed.
TEST_F(WaitTest, every_waiter_sees_the_last_update_in_time) {
  constexpr UpdateId updates = 300;
  const UpdateId first = cache.set("key", "0");
  const auto follow = [&] {
    for (UpdateId id = first; id < first + updates;) {
      const UpdateId next = cache.wait(id, {.deadline = seconds(60)});
      EXPECT_GT(next, id);
      if (next <= id) return;
      id = next;
    }
  };
  std::vector<std::unique_ptr<TestProcess>> processes;
  for (int i = 0; i < 3; ++i) processes.push_back(std::make_unique<TestProcess>(follow));
  std::thread thread(follow);
  const auto began = steady_clock::now();
  for (UpdateId i = 0; i < updates; ++i) cache.set("key", std::to_string(i));
  thread.join();
  for (const auto& process : processes) EXPECT_EQ(process->wait(), 0);
  EXPECT_LT(steady_clock::now() - began, soon);
}

TEST_F(WaitTest, forged_wake_ups_do_not_end_it) {
  const UpdateId id = cache.set("key", "value");
  std::atomic<bool> done{false};
  // A process that may only read can wake others, too.
  const std::string path = cache.state_path();
  Cache reader = Cache::attach(path);
  std::thread forger([&] {
    while (!done) CacheInternal::state(reader).wake_waiters();
  });
  EXPECT_EQ(cache.wait(id, {.deadline = milliseconds(200)}), id);
  done = true;
  forger.join();
}

TEST_F(WaitTest, works_in_an_attached_cache_of_a_read_only_file) {
  const UpdateId id = cache.set("key", "value");
  Cache reader = Cache::attach(cache.state_path());
  std::thread writer([&] {
    std::this_thread::sleep_for(milliseconds(20));
    cache.set("key", "2");
  });
  const auto began = steady_clock::now();
  EXPECT_EQ(reader.wait(id, {.deadline = seconds(60)}), id + 1);
  EXPECT_EQ(reader.get("key"), "2");
  EXPECT_LT(steady_clock::now() - began, soon);
  writer.join();
}

TEST_F(WaitTest, idle_waiter_is_never_woken) {
  const UpdateId id = cache.set("key", "value");
  std::stop_source stop;
  struct rusage before {};
  struct rusage after {};
  ::getrusage(RUSAGE_THREAD, &before);
  cache.wait(id, {.deadline = milliseconds(1000), .stop = stop.get_token()});
  ::getrusage(RUSAGE_THREAD, &after);
  EXPECT_LE(after.ru_nvcsw - before.ru_nvcsw, 2);
}

TEST_F(WaitTest, stop_request_ends_it) {
  const UpdateId id = cache.set("key", "value");
  for (const int pause_us : {0, 1, 10, 100, 1000, 20'000}) {
    std::stop_source stop;
    std::thread stopping([&] {
      std::this_thread::sleep_for(std::chrono::microseconds(pause_us));
      stop.request_stop();
    });
    const auto began = steady_clock::now();
    EXPECT_EQ(cache.wait(id, {.deadline = seconds(60), .stop = stop.get_token()}), id);
    EXPECT_LT(steady_clock::now() - began, soon);
    stopping.join();
  }
  std::stop_source stopped;
  stopped.request_stop();
  EXPECT_EQ(cache.wait(id, {.stop = stopped.get_token()}), id);
}

TEST_F(WaitTest, closing_the_cache_ends_it_with_an_error) {
  const UpdateId id = cache.set("key", "value");
  std::thread closer([&] {
    std::this_thread::sleep_for(milliseconds(30));
    cache.close_shared_state();
  });
  const auto began = steady_clock::now();
  expect_error(
      ErrorKind::unavailable, [&] { cache.wait(id); }, "closed");
  EXPECT_LT(steady_clock::now() - began, soon);
  closer.join();
  EXPECT_EQ(cache.wait(0), id) << "it is open again";
}

TEST_F(WaitTest, sees_updates_of_the_file_that_replaces_the_state) {
  const UpdateId id = cache.set("key", "value");
  for (int round = 0; round < 3; ++round) {
    TestProcess replacer([&] {
      std::this_thread::sleep_for(milliseconds(20));
      CacheInternal::rebuild(cache);
      cache.set("key", "in the new file");
    });
    const auto began = steady_clock::now();
    const UpdateId after = id + static_cast<UpdateId>(round);
    EXPECT_EQ(cache.wait(after, {.deadline = seconds(60)}), after + 1);
    EXPECT_LT(steady_clock::now() - began, soon);
    EXPECT_EQ(replacer.wait(), 0);
  }
}

TEST_F(WaitTest, ends_when_the_log_is_restored_to_an_earlier_update) {
  cache.set("key", "old");
  const std::string database = fleet.directory().file("log.db");
  std::filesystem::copy_file(database, database + ".backup");
  const UpdateId id = cache.set("key", "new");
  TestProcess operator_of_log([&] {
    std::this_thread::sleep_for(milliseconds(20));
    std::filesystem::rename(database + ".backup", database);
    cache.update();
  });
  const auto began = steady_clock::now();
  EXPECT_EQ(cache.wait(id, {.deadline = seconds(60)}), id - 1);
  EXPECT_LT(steady_clock::now() - began, soon);
  EXPECT_EQ(operator_of_log.wait(), 0);
}

TEST_F(WaitTest, waits_for_a_state_where_there_is_none) {
  fleet.open("rome").set("key", "value");
  Options options;
  options.state_path = fleet.state_path("new");
  options.open = OpenMode::now;
  Cache empty(fleet.url(), options);
  expect_error(ErrorKind::unavailable, [&] { empty.wait(0, {.deadline = milliseconds(20)}); });
  std::thread builder([&] {
    std::this_thread::sleep_for(milliseconds(20));
    empty.update();
  });
  EXPECT_EQ(empty.wait(0, {.deadline = seconds(60)}), 1U);
  builder.join();
}

TEST_F(WaitTest, works_in_a_forked_child_while_the_parent_waits) {
  SKIP_WITHOUT_THREADS_IN_CHILD();
  const UpdateId id = cache.set("key", "value");
  std::thread waiter([&] { EXPECT_EQ(cache.wait(id, {.deadline = seconds(60)}), id + 1); });
  std::this_thread::sleep_for(milliseconds(30));
  const auto began = steady_clock::now();
  expect_success_in_child([&] {
    std::thread writer([&] {
      std::this_thread::sleep_for(milliseconds(30));
      cache.set("key", "of the child");
    });
    EXPECT_EQ(cache.wait(id, {.deadline = seconds(60)}), id + 1);
    writer.join();
  });
  waiter.join();
  EXPECT_LT(steady_clock::now() - began, soon);
}

// A thread of the parent that sleeps keeps the file mapped; the child does not have the thread.
TEST_F(WaitTest, forked_child_releases_file_that_parent_thread_waits_in) {
  SKIP_WITHOUT_THREADS_IN_CHILD();
  const UpdateId id = cache.set("key", "value");
  std::stop_source stop;
  std::thread waiter([&] { cache.wait(id, {.stop = stop.get_token()}); });
  std::this_thread::sleep_for(milliseconds(30));
  expect_success_in_child([&] {
    CacheInternal::rebuild(cache);
    EXPECT_EQ(cache.get("key"), "value");
    const auto maps_deleted_file = [] {
      std::ifstream maps("/proc/self/maps");
      const std::string text((std::istreambuf_iterator<char>(maps)), {});
      return text.find(".state (deleted)") != std::string::npos;
    };
    const auto until = steady_clock::now() + soon;
    while (maps_deleted_file() && steady_clock::now() < until) {
      cache.update();
      std::this_thread::sleep_for(milliseconds(10));
    }
    EXPECT_FALSE(maps_deleted_file());
  });
  stop.request_stop();
  waiter.join();
}

// --- at_least ---

TEST_F(WaitTest, attached_cache_is_woken_by_awaited_update) {
  const UpdateId id = cache.set("key", "value");
  Cache reader = Cache::attach(cache.state_path());
  std::thread writer([&] {
    std::this_thread::sleep_for(milliseconds(300));
    cache.set("key", "2");
  });
  struct rusage before {};
  struct rusage after {};
  ::getrusage(RUSAGE_THREAD, &before);
  EXPECT_EQ(reader.update({.at_least = id + 1, .deadline = seconds(60)}), id + 1);
  ::getrusage(RUSAGE_THREAD, &after);
  EXPECT_LE(after.ru_nvcsw - before.ru_nvcsw, 5) << "it polled";
  writer.join();
}

// --- notify_fd() ---

TEST_F(WaitTest, descriptor_is_readable_once_an_update_was_applied_by_another_process) {
  SKIP_WITHOUT_THREADS_IN_CHILD();
  cache.set("key", "value");
  const int descriptor = cache.notify_fd();
  EXPECT_FALSE(is_readable(descriptor, milliseconds(50)));
  for (int round = 0; round < 3; ++round) {
    expect_success_in_child([&] { cache.set("key", "2"); });
    EXPECT_TRUE(is_readable(descriptor, soon));
    drain(descriptor);
    EXPECT_FALSE(is_readable(descriptor));
  }
  EXPECT_EQ(cache.notify_fd(), descriptor);
}

TEST_F(WaitTest, descriptor_is_readable_once_after_many_updates) {
  const int descriptor = cache.notify_fd();
  for (int i = 0; i < 100; ++i) cache.set("key", std::to_string(i));
  EXPECT_TRUE(is_readable(descriptor, soon));
  std::uint64_t count = 0;
  ASSERT_EQ(::read(descriptor, &count, sizeof count), ssize_t{sizeof count});
  EXPECT_EQ(cache.get("key"), "99");
}

TEST_F(WaitTest, descriptor_stays_the_same_when_the_cache_is_closed_and_opened_again) {
  const int descriptor = cache.notify_fd();
  cache.close_shared_state();
  EXPECT_TRUE(is_readable(descriptor)) << "the cache is closed";
  drain(descriptor);
  cache.set("key", "value");
  EXPECT_TRUE(is_readable(descriptor, soon));
  EXPECT_EQ(cache.notify_fd(), descriptor);
}

TEST_F(WaitTest, forked_child_has_a_descriptor_of_its_own) {
  const int descriptor = cache.notify_fd();
  const std::size_t descriptors = descriptor_count();
  expect_success_in_child([&] {
    EXPECT_FALSE(is_readable(descriptor)) << "closed";
    EXPECT_LT(descriptor_count(), descriptors);
    const int own = cache.notify_fd();
    cache.set("key", "of the child");
    EXPECT_TRUE(is_readable(own, soon));
  });
  EXPECT_TRUE(is_readable(descriptor, soon)) << "the child read nothing of the parent's";
}

TEST_F(WaitTest, descriptors_and_threads_end_with_the_cache) {
  fleet.open("rome").set("key", "value");
  const std::size_t descriptors = descriptor_count();
  for (int i = 0; i < 10; ++i) {
    Cache rome = fleet.open("rome");
    EXPECT_GE(rome.notify_fd(), 0);
  }
  EXPECT_EQ(descriptor_count(), descriptors);
}

TEST_F(WaitTest, idle_descriptor_costs_no_context_switches) {
  SKIP_IF_OTHER_THREADS_SWITCH();
  const int descriptor = cache.notify_fd();
  EXPECT_FALSE(is_readable(descriptor, milliseconds(50)));
  struct rusage before {};
  struct rusage after {};
  ::getrusage(RUSAGE_SELF, &before);
  std::this_thread::sleep_for(milliseconds(500));
  ::getrusage(RUSAGE_SELF, &after);
  EXPECT_LE(after.ru_nvcsw - before.ru_nvcsw, 3);
  EXPECT_FALSE(is_readable(descriptor));
}

// As notify_fd() waits: the state went back between two calls.
TEST_F(WaitTest, id_below_the_one_that_the_caller_has_seen_ends_it) {
  cache.set("a", "1");
  const State& state = CacheInternal::state(cache);
  const Deadline deadline(milliseconds(60'000));
  EXPECT_EQ(state.wait(100, deadline, 100), 1U);
  EXPECT_FALSE(deadline.passed());
}

}  // namespace
}  // namespace whycache::testing
