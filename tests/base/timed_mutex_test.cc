#include "base/timed_mutex.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <memory>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "support/child_process.h"

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

TEST(TimedMutex, waiter_gives_up_at_its_deadline_or_when_it_is_stopped) {
  TimedMutex mutex;
  mutex.lock();
  EXPECT_FALSE(mutex.try_lock());
  EXPECT_FALSE(mutex.try_lock_until(Deadline(milliseconds(20))));
  std::stop_source stop;
  std::thread stopper([&] {
    std::this_thread::sleep_for(milliseconds(20));
    stop.request_stop();
  });
  EXPECT_FALSE(mutex.try_lock_until(Deadline(seconds(100), stop.get_token())));
  stopper.join();
  mutex.unlock();
  const bool is_locked = mutex.try_lock_until(Deadline(milliseconds(20)));
  EXPECT_TRUE(is_locked);
  if (is_locked) mutex.unlock();
}

TEST(TimedMutex, one_thread_at_a_time_holds_it) {
  TimedMutex mutex;
  int count = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 1'000; ++round) {
        mutex.lock();
        ++count;
        mutex.unlock();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(count, 4'000);
}

TEST(TimedMutex, child_destroys_the_one_that_threads_of_its_parent_wait_for) {
  auto mutex = std::make_unique<TimedMutex>();
  mutex->lock();
  std::atomic<int> waiting{0};
  std::vector<std::thread> waiters;
  for (int i = 0; i < 2; ++i) {
    waiters.emplace_back([&] {
      ++waiting;
      mutex->lock();
      mutex->unlock();
    });
  }
  while (waiting < 2) std::this_thread::yield();
  std::this_thread::sleep_for(milliseconds(100));  // until both sleep
  EXPECT_EQ(run_in_child(
                [&] {
                  mutex.reset();
                  return std::string();
                },
                20),
            "");
  mutex->unlock();
  for (std::thread& waiter : waiters) waiter.join();
}

TEST(TimedMutex, child_uses_and_destroys_one_of_its_own) {
  EXPECT_EQ(run_in_child(
                [] {
                  TimedMutex mutex;
                  mutex.lock();
                  std::thread waiter([&] {
                    mutex.lock();
                    mutex.unlock();
                  });
                  mutex.unlock();
                  waiter.join();
                  return std::string();
                },
                20),
            "");
}

}  // namespace
}  // namespace whycache::testing
