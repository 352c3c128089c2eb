// When the log was last polled, as the processes of a machine see it: a time that this process's
// clock cannot have shown, or that was recorded for another file, counts for nothing.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>

#include "base/boot.h"
#include "base/clock.h"
#include "base/file.h"
#include "state/file/poll_record.h"
#include "state/test_state.h"
#include "support/child_process.h"

namespace whycache {
namespace {

using testing::ChildProcess;
using testing::TemporaryDirectory;
using testing::TestState;

constexpr std::int64_t day_ns = std::int64_t{86'400} * 1'000'000'000;

class PollRecordTest : public ::testing::Test {
 protected:
  // Writes a time and its seal into the file, as a process that may write there could.
  void forge(std::int64_t time_ns, std::uint64_t seal) const {
    const FileDescriptor file = open_file(path_, O_RDWR);
    for (const std::size_t member :
         {offsetof(PollRecord, last), offsetof(PollRecord, last_of_store)}) {
      const std::int64_t words[2] = {time_ns, static_cast<std::int64_t>(seal)};
      ASSERT_EQ(::pwrite(file.number(), words, sizeof words,
                         static_cast<off_t>(offsetof(Header, poll_record) + member)),
                static_cast<ssize_t>(sizeof words));
    }
  }
  std::uint64_t right_seal(std::int64_t time_ns) const {
    return poll_time_seal(time_ns, state_->info().state_id, *boot_clock_id());
  }

  TemporaryDirectory directory_;
  std::string path_ = directory_.file("polled.state");
  TestState state_{path_};
};

TEST_F(PollRecordTest, recorded_time_is_seen_by_every_process) {
  EXPECT_EQ(state_->last_poll_time_ns(), std::nullopt);
  const std::int64_t now = boot_time_ns();
  state_->record_poll(now, 7);
  ChildProcess child([&]() -> std::string {
    const TestState same(path_);
    if (same->last_poll_time_ns() != now) return "another time";
    if (same->last_store_poll_time_ns() != now) return "another time of the store";
    if (same->known_head() != 7) return "another head";
    same->record_poll(now + 1, 8, /*by_store=*/false);
    return "";
  });
  EXPECT_EQ(child.wait(), "");
  EXPECT_EQ(state_->last_poll_time_ns(), now + 1);
  EXPECT_EQ(state_->last_store_poll_time_ns(), now);
  EXPECT_EQ(state_->known_head(), 8U);
}

TEST_F(PollRecordTest, child_records_for_its_parent) {
  state_->record_poll(boot_time_ns(), 1);
  const std::int64_t later = boot_time_ns();
  ChildProcess child([&]() -> std::string {
    state_->record_poll(later, 2);
    return "";
  });
  EXPECT_EQ(child.wait(), "");
  EXPECT_EQ(state_->last_poll_time_ns(), later);
}

TEST_F(PollRecordTest, time_yet_to_come_counts_for_nothing_and_is_overwritten) {
  for (const std::int64_t future :
       {boot_time_ns() + day_ns, std::numeric_limits<std::int64_t>::max() / 2,
        std::numeric_limits<std::int64_t>::max()}) {
    forge(future, right_seal(future));
    EXPECT_EQ(state_->last_poll_time_ns(), std::nullopt) << future;
    EXPECT_EQ(state_->last_store_poll_time_ns(), std::nullopt) << future;
    const std::int64_t now = boot_time_ns();
    state_->record_poll(now, 1);
    EXPECT_EQ(state_->last_poll_time_ns(), now);
    EXPECT_EQ(state_->last_store_poll_time_ns(), now);
  }
}

TEST_F(PollRecordTest, time_after_a_stale_look_at_the_clock_counts) {
  const std::int64_t before = boot_time_ns();
  const std::int64_t later = boot_time_ns();
  state_->record_poll(later, 1);
  EXPECT_EQ(state_->last_poll_time_ns(before - 1), later);
}

TEST_F(PollRecordTest, time_without_its_seal_counts_for_nothing) {
  const std::int64_t now = boot_time_ns();
  for (const std::int64_t time : {now, std::int64_t{1}, std::int64_t{0}, std::int64_t{-1},
                                  std::numeric_limits<std::int64_t>::min()}) {
    forge(time, right_seal(time) ^ 1);
    EXPECT_EQ(state_->last_poll_time_ns(), std::nullopt) << time;
  }
  for (const std::int64_t time :
       {std::int64_t{0}, std::int64_t{-1}, std::numeric_limits<std::int64_t>::min()}) {
    forge(time, right_seal(time));
    EXPECT_EQ(state_->last_poll_time_ns(), std::nullopt) << time;
  }
}

TEST_F(PollRecordTest, poll_by_another_clock_is_told_from_none) {
  EXPECT_FALSE(state_->was_polled_by_another_clock());
  const std::int64_t now = boot_time_ns();
  state_->record_poll(now, 0);
  EXPECT_FALSE(state_->was_polled_by_another_clock());
  forge(now, poll_time_seal(now, state_->info().state_id, *boot_clock_id() + 1));
  EXPECT_TRUE(state_->was_polled_by_another_clock());
}

TEST_F(PollRecordTest, lock_file_says_nothing_about_polls) {
  const std::int64_t now = boot_time_ns();
  state_->record_poll(now, 1);
  const FileDescriptor lock_file = open_file(path_ + ".lock", O_RDWR);
  const std::string noise(64, '\x3f');  // where earlier versions kept the times
  ASSERT_EQ(::pwrite(lock_file.number(), noise.data(), noise.size(), 64), 64);
  EXPECT_EQ(state_->last_poll_time_ns(), now);
  EXPECT_EQ(state_->last_store_poll_time_ns(), now);
  EXPECT_EQ(state_->known_head(), 1U);
}

TEST_F(PollRecordTest, adopted_copy_has_no_time) {
  state_->record_poll(boot_time_ns(), 5);
  const std::string copy = directory_.file("copy.state");
  std::filesystem::copy_file(path_, copy);
  const TestState adopted(copy);
  EXPECT_TRUE(adopted->adopted());
  EXPECT_EQ(adopted->last_poll_time_ns(), std::nullopt);
  EXPECT_FALSE(adopted->was_polled_by_another_clock()) << "it was not polled at all";
  EXPECT_EQ(adopted->known_head(), 0U);
}

TEST_F(PollRecordTest, new_state_has_no_time) {
  state_->record_poll(boot_time_ns(), 5);
  ASSERT_TRUE(state_->install(*state_->begin_build(testing::test_uuid, "test:")));
  EXPECT_EQ(state_->last_poll_time_ns(), std::nullopt);
  EXPECT_EQ(state_->known_head(), 0U);
}

TEST_F(PollRecordTest, process_that_may_not_write_records_nothing) {
  if (::geteuid() != 0) GTEST_SKIP() << "NOT TESTED: only root can become another user";
  std::filesystem::permissions(directory_.path(), std::filesystem::perms(0755));
  std::filesystem::permissions(path_, std::filesystem::perms(0644));
  StateOptions options;
  options.mode = 0644;
  ChildProcess child([&]() -> std::string {
    const TestState shared(path_, options);
    if (::setgid(65534) != 0 || ::setuid(65534) != 0) return "cannot become another user";
    shared->record_poll(boot_time_ns(), 1);
    return "";
  });
  EXPECT_EQ(child.wait(), "");
  EXPECT_EQ(state_->last_poll_time_ns(), std::nullopt);
}

TEST_F(PollRecordTest, file_size_limit_does_not_kill_the_process) {
  ChildProcess child([&]() -> std::string {
    const TestState same(path_);
    struct rlimit limit {
      0, 0
    };
    ::setrlimit(RLIMIT_FSIZE, &limit);
    same->record_poll(boot_time_ns(), 1);
    return same->last_poll_time_ns() ? "recorded" : "";
  });
  EXPECT_EQ(child.wait(), "");
}

TEST_F(PollRecordTest, child_in_a_chroot_knows_the_clock_of_its_parent) {
  if (::geteuid() != 0) GTEST_SKIP() << "NOT TESTED: only root can call chroot()";
  const std::string root = directory_.file("empty");
  std::filesystem::create_directory(root);
  const std::int64_t now = boot_time_ns();
  state_->record_poll(now, 1);
  ChildProcess child([&]() -> std::string {
    if (::chroot(root.c_str()) != 0) return "cannot chroot";
    return state_->last_poll_time_ns() == now ? "" : "does not see the time";
  });
  EXPECT_EQ(child.wait(), "");
}

// A container that was checkpointed and restored has a clock of its own.
TEST_F(PollRecordTest, time_of_another_time_namespace_counts_for_nothing) {
  ChildProcess child([&]() -> std::string {
    if (::unshare(CLONE_NEWTIME) != 0) return "NOT TESTED";
    {
      std::ofstream offsets("/proc/self/timens_offsets");
      offsets << "boottime 100000 0\n";
      if (!offsets.flush()) return "NOT TESTED";
    }
    ChildProcess within([&]() -> std::string {  // the first process in the new namespace
      const TestState same(path_);
      const std::int64_t now = boot_time_ns();
      same->record_poll(now, 9);
      return same->last_poll_time_ns() == now ? "" : "does not see its own time";
    });
    return within.wait();
  });
  const std::string result = child.wait();
  if (result.find("NOT TESTED") != std::string::npos)
    GTEST_SKIP() << "NOT TESTED: this process may not create a time namespace";
  EXPECT_EQ(result, "");
  EXPECT_EQ(state_->last_poll_time_ns(), std::nullopt);
  const std::int64_t now = boot_time_ns();
  state_->record_poll(now, 10);
  EXPECT_EQ(state_->last_poll_time_ns(), now);
}

}  // namespace
}  // namespace whycache
