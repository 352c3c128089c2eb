#include "base/file_watch.h"

#include <gtest/gtest.h>
#include <sys/inotify.h>
#include <sys/resource.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stop_token>
#include <string>
#include <thread>
#include <vector>

#include "support/child_process.h"
#include "support/sanitizers.h"
#include "support/temporary_directory.h"

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

std::size_t open_descriptors() {
  return static_cast<std::size_t>(
      std::distance(std::filesystem::directory_iterator("/proc/self/fd"), {}));
}

struct FileWatchTest : ::testing::Test {
  void write(const std::string& name) const { std::ofstream(directory.file(name)) << "bytes"; }

  TemporaryDirectory directory;
  FileWatch watch{{{directory.path(), IN_CREATE}}};
};

TEST_F(FileWatchTest, wait_returns_false_after_its_time) {
  const std::uint64_t seen = watch.begin();
  const auto began = steady_clock::now();
  EXPECT_FALSE(watch.wait(seen, milliseconds(30), {}));
  EXPECT_GE(steady_clock::now() - began, milliseconds(30));
}

TEST_F(FileWatchTest, change_after_begin_ends_a_later_wait) {
  const std::uint64_t seen = watch.begin();
  write("file");
  EXPECT_TRUE(watch.wait(seen, seconds(60), {}));
  EXPECT_FALSE(watch.wait(watch.begin(), milliseconds(10), {})) << "seen already";
}

TEST_F(FileWatchTest, change_wakes_every_waiting_thread) {
  std::vector<std::thread> waiters;
  for (int i = 0; i < 4; ++i) {
    waiters.emplace_back(
        [this, seen = watch.begin()] { EXPECT_TRUE(watch.wait(seen, seconds(60), {})); });
  }
  std::this_thread::sleep_for(milliseconds(50));
  const auto began = steady_clock::now();
  write("file");
  for (std::thread& waiter : waiters) waiter.join();
  EXPECT_LT(steady_clock::now() - began, seconds(30));
}

// The thread that sleeps in the kernel for all leaves; another one takes its place.
TEST_F(FileWatchTest, waiter_is_woken_after_the_first_waiter_has_left) {
  std::thread first([this, seen = watch.begin()] { watch.wait(seen, milliseconds(100), {}); });
  std::this_thread::sleep_for(milliseconds(30));
  std::thread second(
      [this, seen = watch.begin()] { EXPECT_TRUE(watch.wait(seen, seconds(60), {})); });
  first.join();
  const auto began = steady_clock::now();
  write("file");
  second.join();
  EXPECT_LT(steady_clock::now() - began, seconds(30));
}

TEST_F(FileWatchTest, stop_ends_the_wait_of_the_thread_it_is_meant_for) {
  std::stop_source stops[2];
  std::thread waiters[2];
  for (int i = 0; i < 2; ++i) {
    waiters[i] = std::thread([this, seen = watch.begin(), token = stops[i].get_token()] {
      EXPECT_EQ(watch.wait(seen, seconds(60), token), false);
    });
  }
  std::this_thread::sleep_for(milliseconds(50));
  const auto began = steady_clock::now();
  for (int i = 1; i >= 0; --i) {
    stops[i].request_stop();
    waiters[i].join();
  }
  EXPECT_LT(steady_clock::now() - began, seconds(30));
  EXPECT_FALSE(watch.wait(watch.begin(), seconds(60), stops[0].get_token())) << "stopped before";
}

TEST_F(FileWatchTest, file_that_takes_the_place_of_another_is_watched) {
  write("log");
  FileWatch file({{directory.file("log"), IN_MODIFY}});
  std::uint64_t seen = file.begin();
  std::filesystem::rename(directory.file("log"), directory.file("old"));
  EXPECT_TRUE(file.wait(seen, seconds(60), {}));
  seen = file.begin();
  EXPECT_FALSE(file.wait(seen, milliseconds(10), {})) << "there is none now";
  write("log");
  seen = file.begin();
  std::ofstream(directory.file("log"), std::ios::app) << "more";
  EXPECT_TRUE(file.wait(seen, seconds(60), {}));
  seen = file.begin();
  std::ofstream(directory.file("old"), std::ios::app) << "more";
  EXPECT_FALSE(file.wait(seen, milliseconds(50), {})) << "that one is no longer watched";
}

TEST_F(FileWatchTest, idle_waiter_makes_no_context_switches) {
  const std::uint64_t seen = watch.begin();
  std::stop_source stop;
  struct rusage before {};
  struct rusage after {};
  ::getrusage(RUSAGE_THREAD, &before);
  EXPECT_FALSE(watch.wait(seen, milliseconds(500), stop.get_token()));
  ::getrusage(RUSAGE_THREAD, &after);
  EXPECT_LE(after.ru_nvcsw - before.ru_nvcsw, 3);
}

TEST_F(FileWatchTest, child_forked_during_wait_has_no_descriptor_and_can_wait) {
  const std::size_t descriptors = open_descriptors();
  const std::uint64_t seen = watch.begin();
  EXPECT_GT(open_descriptors(), descriptors);
  std::stop_source stop;
  std::thread waiter([&] { watch.wait(seen, seconds(60), stop.get_token()); });
  std::this_thread::sleep_for(milliseconds(30));
  EXPECT_EQ(run_in_child([&]() -> std::string {
              if (open_descriptors() > descriptors) return "it has inherited descriptors";
              const std::uint64_t seen_in_child = watch.begin();
              write("by_child");
              return watch.wait(seen_in_child, seconds(30), {}) ? "" : "was not woken";
            }),
            "");
  waiter.join();  // woken by the child's file
}

TEST_F(FileWatchTest, descriptors_are_closed_with_the_watch) {
  const std::size_t descriptors = open_descriptors();
  for (int i = 0; i < 3; ++i) {
    FileWatch other({{directory.path(), IN_CREATE}});
    other.wait(other.begin(), milliseconds(1), {});
  }
  EXPECT_EQ(open_descriptors(), descriptors);
}

TEST_F(FileWatchTest, missing_descriptors_are_an_error_that_names_the_limit) {
  SKIP_WITHOUT_SPARE_DESCRIPTOR();
  struct rlimit limit {};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &limit), 0);
  EXPECT_EQ(run_in_child([&]() -> std::string {
              FileWatch other({{directory.path(), IN_CREATE}});
              const struct rlimit none = {3, limit.rlim_max};
              ::setrlimit(RLIMIT_NOFILE, &none);
              try {
                other.begin();
                return "no error";
              } catch (const Error& error) {
                const std::string message = error.what();
                const bool names_limit = message.find("max_user_instances") != std::string::npos;
                return error.kind() == ErrorKind::limit && names_limit ? "" : message;
              }
            }),
            "");
}

}  // namespace
}  // namespace whycache::testing
