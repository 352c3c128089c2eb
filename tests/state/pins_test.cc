// Pins: locks of the kernel on the state file, under everything that applications do to their
// descriptors.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "base/file.h"
#include "base/process_lock.h"
#include "state/file/use_locks.h"
#include "state/test_state.h"
#include "support/child_process.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

using testing::ChildProcess;
using testing::SharedWithChildren;
using testing::TemporaryDirectory;
using testing::TestState;

class PinsTest : public ::testing::Test {
 protected:
  // Applies enough updates to reuse all space that may be reused.
  void churn() {
    for (int i = 0; i < 200; ++i)
      state_.apply({{"churn" + std::to_string(i % 50), std::string(20'000, 'c')}});
  }
  static void wait_for(const std::atomic<int>& step, int wanted) {
    for (int i = 0; i < 10'000 && step != wanted; ++i) ::usleep(1000);
  }
  bool is_held(UpdateId id) const {
    const FileDescriptor file = open_file(path_, O_RDONLY);
    return find_oldest_pinned_id(file.number(), id + 1) <= id;
  }
  // Whether nothing is held soon: a process may keep a lock for some milliseconds.
  bool is_released() const {
    const FileDescriptor file = open_file(path_, O_RDONLY);
    for (int i = 0; i < 2000; ++i) {
      if (!find_oldest_pin(file.number())) return true;
      ::usleep(1000);
    }
    return false;
  }

  TemporaryDirectory directory_{"/dev/shm"};
  std::string path_ = directory_.file("a.state");
  TestState state_{path_};
};

void close_all_descriptors() {
  for (int number = 3; number < 1024; ++number) ::close(number);
}

TEST_F(PinsTest, view_survives_application_that_closes_all_descriptors) {
  state_.apply({{"a", "1"}, {"churn1", "old"}});
  const SharedWithChildren<std::atomic<int>> step;
  ChildProcess child([&]() -> std::string {
    const TestState state(path_);
    std::optional<View> view(state.view());
    close_all_descriptors();
    *step = 1;
    wait_for(*step, 2);
    if (view->get("churn1") != "old" || view->get("a") != "1") return "view moved";
    const View another = state.view();
    if (another.get("churn1") != std::string(20'000, 'c')) return "another view";
    view.reset();
    *step = 3;
    wait_for(*step, 4);
    return another.get("churn1") == std::string(20'000, 'c') ? "" : "another view moved";
  });
  wait_for(*step, 1);
  EXPECT_TRUE(is_held(1));
  churn();
  const UpdateId middle = state_->applied_id();
  *step = 2;
  wait_for(*step, 3);
  EXPECT_FALSE(is_held(1));
  EXPECT_TRUE(is_held(middle));
  churn();
  *step = 4;
  EXPECT_EQ(child.wait(), "");
  EXPECT_TRUE(is_released());
}

TEST_F(PinsTest, descriptors_that_the_application_reused_stay_open) {
  state_.apply({{"a", "1"}});
  ChildProcess child([&]() -> std::string {
    std::vector<int> own;
    {
      TestState state(path_);
      std::optional<View> view(state.view());
      close_all_descriptors();
      for (int i = 0; i < 40; ++i) own.push_back(::open("/dev/null", O_RDONLY));
      view.reset();
      const View again = state.view();
      if (again.get("a") != "1") return "another view";
    }
    for (const int number : own) {
      struct stat status;
      if (::fstat(number, &status) != 0) return "a descriptor of the application was closed";
      if (!S_ISCHR(status.st_mode)) return "a descriptor of the application is another file";
    }
    return "";
  });
  EXPECT_EQ(child.wait(), "");
  EXPECT_TRUE(is_released());
}

TEST_F(PinsTest, views_in_quick_succession_release_their_lock_soon) {
  state_.apply({{"a", "1"}});
  for (int i = 0; i < 1000; ++i) {
    const View view = state_.view();
    ASSERT_EQ(view.get("a"), "1");
  }
  EXPECT_TRUE(is_released());
  state_.apply({{"a", "2"}});
  const View view = state_.view();
  EXPECT_EQ(view.get("a"), "2");
}

// A writer reuses space that only the lock of past views of its own process still holds.
TEST_F(PinsTest, writer_reuses_what_only_the_lock_of_past_views_holds) {
  const auto overwrite = [&] {
    for (int i = 0; i < 60; ++i)
      state_.apply({{"a", std::string(100'000, static_cast<char>('a' + i % 26))}});
  };
  overwrite();
  const std::uint64_t file_bytes = state_->inspect().file_bytes;
  for (int round = 0; round < 20; ++round) {
    for (int i = 0; i < 100; ++i) state_.view();  // in quick succession
    overwrite();
    ASSERT_LE(state_->inspect().file_bytes, 2 * file_bytes) << round;
  }
}

TEST_F(PinsTest, child_forked_beside_views_in_other_threads_has_its_own) {
  state_.apply({{"a", "1"}});
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&] {
      while (!stop) {
        const View view = state_.view();
        if (view.size() == 0) std::abort();
      }
    });
  }
  for (int round = 0; round < 20; ++round) {
    ChildProcess child([&]() -> std::string {
      const View view = state_.view();
      for (int i = 0; i < 100; ++i) state_.view();
      state_.apply({{"a", "child"}});
      return view.id() < state_->applied_id() && view.get("a").has_value() ? "" : "view";
    });
    ASSERT_EQ(child.wait(), "");
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_TRUE(is_released());
}

// What a process with read access can do at worst: hold space.
TEST_F(PinsTest, forged_pins_stop_neither_writers_nor_readers) {
  state_.apply({{"a", "1"}});
  const FileDescriptor file = open_file(path_, O_RDONLY);
  for (const std::uint64_t byte : {std::uint64_t{0}, std::uint64_t{1} << 60, std::uint64_t{1} << 61,
                                   (std::uint64_t{1} << 62) - 1, std::uint64_t{4096}})
    ASSERT_TRUE(try_lock_byte_shared(file.number(), byte));
  EXPECT_TRUE(testing::thrown_error([&] { try_lock_byte(file.number(), 1); }))
      << "an exclusive lock needs write access";
  churn();
  EXPECT_EQ(TestState(path_).get("a"), "1");
  EXPECT_EQ(state_.check(), std::vector<std::string>{});
  EXPECT_EQ(state_->inspect().processes.size(), 3U);
}

TEST_F(PinsTest, file_in_use_is_not_adopted) {
  state_.apply({{"a", "1"}});
  const FileDescriptor file = open_file(path_, O_RDWR);
  const Deadline at_once(std::chrono::milliseconds(0));
  EXPECT_EQ(exclude_users(file.number(), at_once), Exclusion::in_use) << "by this process";
  EXPECT_FALSE(is_in_use_by_others(file.number()));
  ChildProcess child([&]() -> std::string {
    const FileDescriptor own = open_file(path_, O_RDWR);
    return is_in_use_by_others(own.number()) ? "" : "the parent is not seen";
  });
  EXPECT_EQ(child.wait(), "");
}

}  // namespace
}  // namespace whycache
