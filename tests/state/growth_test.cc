// The file grows while processes read it. Each process asks the kernel for the file's size with
// fstat(2). These tests let the file grow right after that call, when the result is already stale.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <iterator>
#include <utility>

#include "state/test_state.h"
#include "support/child_process.h"

namespace {
thread_local std::function<void()> after_next_fstat;
}

// Replaces the C library's function.
extern "C" int fstat(int descriptor, struct stat* status) noexcept {
  const auto result = static_cast<int>(::syscall(SYS_fstat, descriptor, status));
  if (after_next_fstat) std::exchange(after_next_fstat, nullptr)();
  return result;
}

namespace whycache {
namespace {

using testing::TemporaryDirectory;
using testing::TestState;

class GrowthTest : public ::testing::Test {
 protected:
  ~GrowthTest() override { after_next_fstat = nullptr; }

  // Applies an update that extends the file. No space is reused while a view is pinned.
  void write_beyond_the_end() { writing_.apply({{"key", std::string(200'000, 'b')}}); }
  // Does so after each of the next `times` calls of fstat().
  void write_after_each_fstat(int times) {
    if (times == 0) return;
    after_next_fstat = [this, times] {
      write_beyond_the_end();
      ++written_;
      write_after_each_fstat(times - 1);
    };
  }

  TemporaryDirectory directory_{"/dev/shm"};
  TestState writing_{directory_.file("grown.state")};
  TestState reading_{directory_.file("grown.state")};
  int written_ = 0;
};

TEST_F(GrowthTest, view_reads_its_version_while_the_file_keeps_growing) {
  writing_.apply({{"key", "first"}, {"other", "here"}});
  const View view = reading_.view();
  for (int i = 0; i < 3; ++i) write_beyond_the_end();
  write_after_each_fstat(5);
  EXPECT_EQ(view.get("key"), "first");
  EXPECT_EQ(written_, 5);

  for (int i = 0; i < 3; ++i) write_beyond_the_end();
  write_after_each_fstat(5);
  std::vector<std::optional<std::string>> found(2);
  const std::string_view keys[] = {"key", "other"};
  reading_->get_multi(keys, found);
  EXPECT_EQ(found[0], std::string(200'000, 'b'));
  EXPECT_EQ(found[1], "here");
  EXPECT_GT(written_, 5);
}

TEST_F(GrowthTest, plain_get_succeeds_while_the_file_keeps_growing) {
  writing_.apply({{"key", "first"}});
  const View held = reading_.view();
  for (int i = 0; i < 3; ++i) write_beyond_the_end();
  write_after_each_fstat(40);
  EXPECT_EQ(reading_.get("key"), std::string(200'000, 'b'));
  EXPECT_GT(written_, 1);
}

// Two threads call fstat(), and the one with the smaller result is slower.
TEST_F(GrowthTest, thread_with_stale_file_size_reports_no_truncation) {
  writing_.apply({{"key", "first"}});
  const View held = reading_.view();
  for (int i = 0; i < 3; ++i) write_beyond_the_end();
  after_next_fstat = [this] {
    write_beyond_the_end();
    EXPECT_EQ(reading_.get("key"), std::string(200'000, 'b'));
    ++written_;
  };
  EXPECT_EQ(reading_.get("key"), std::string(200'000, 'b'));
  EXPECT_EQ(written_, 1);
}

// A process that writes immediately after installing a state lets it grow while readers open it.
TEST_F(GrowthTest, file_that_grows_during_open_is_opened) {
  writing_.apply({{"key", "first"}});
  const View held = reading_.view();
  int fstats = 0;
  std::function<void()> grow = [&] {
    for (int i = 0; i < 3; ++i) write_beyond_the_end();
    if (++fstats < 20) after_next_fstat = grow;
  };
  after_next_fstat = grow;
  StateOptions options;
  options.path = directory_.file("grown.state");
  const std::unique_ptr<State> opened = State::open(options);
  after_next_fstat = nullptr;
  EXPECT_TRUE(opened->usable());
  EXPECT_GT(fstats, 1);
  std::string value;
  EXPECT_TRUE(opened->get("key", value));
}

// A copy is verified, then adopted under its name. Another file may get that name meanwhile.
TEST_F(GrowthTest, file_that_is_swapped_while_it_is_adopted_is_not_trusted) {
  const std::string path = directory_.file("adopted.state");
  writing_.apply({{"key", "the correct value"}});
  const auto copy_to = [&](const std::string& to, bool damaged) {
    std::ifstream file(directory_.file("grown.state"), std::ios::binary);
    std::string bytes{std::istreambuf_iterator<char>(file), {}};
    if (damaged) bytes.replace(bytes.find("the correct value"), 17, "a damaged value..");
    std::ofstream(to, std::ios::binary) << bytes;
    std::filesystem::permissions(
        to, std::filesystem::perms::owner_read | std::filesystem::perms::owner_write);
  };
  int swaps = 0;
  for (int number = 1; number <= 30; ++number) {
    std::filesystem::remove(path);
    copy_to(path, false);
    copy_to(directory_.file("damaged"), true);
    int fstats = 0;
    std::function<void()> swap = [&] {
      if (++fstats < number) {
        after_next_fstat = swap;
      } else {
        ++swaps;
        ::rename(directory_.file("damaged").c_str(), path.c_str());
      }
    };
    after_next_fstat = swap;
    StateOptions options;
    options.path = path;
    try {
      const std::unique_ptr<State> opened = State::open(options);
      after_next_fstat = nullptr;
      std::string value;
      if (opened->usable() && opened->get("key", value)) {
        EXPECT_EQ(value, "the correct value") << number;
      }
    } catch (const Error&) {
      after_next_fstat = nullptr;
    }
  }
  EXPECT_GE(swaps, 8);
}

// A child that is forked while another thread opens the lock file must not keep the parent's locks
// after the parent's death.
TEST_F(GrowthTest, child_forked_during_open_holds_no_parent_lock) {
  const testing::SharedWithChildren<std::atomic<pid_t>> grandchild;
  testing::ChildProcess parent([&]() -> std::string {
    after_next_fstat = [&] {
      const pid_t forked = ::fork();
      if (forked == 0) {
        ::alarm(20);
        for (;;) ::pause();
      }
      *grandchild = forked;
    };
    const TestState child_state(directory_.file("grown.state"));
    const std::unique_ptr<StateWriter> writer = child_state->begin_write(TestState::deadline());
    ::raise(SIGKILL);
    return "survived SIGKILL";
  });
  EXPECT_EQ(parent.wait(), "died of signal 9");
  ASSERT_GT(*grandchild, 0);
  EXPECT_NO_THROW(reading_->begin_write(Deadline(std::chrono::seconds(2))));
  ::kill(*grandchild, SIGKILL);
}

}  // namespace
}  // namespace whycache
