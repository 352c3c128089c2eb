// Changes of the state file by other programs: cp, rsync --inplace, chmod.
#include "state/file/state_change.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <csignal>
#include <fstream>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/file.h"
#include "state/file/lock_file.h"
#include "state/test_state.h"
#include "support/child_process.h"
#include "support/temporary_directory.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

using testing::expect_error;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::TestState;

constexpr int key_count = 200;

// The parameter is the directory: file systems in memory and on a disk change ctime at other times.
class StateChange : public ::testing::TestWithParam<const char*> {
 protected:
  StateChange() {
    TestState state(path_);
    for (int i = 0; i < key_count; ++i) state.apply({{key(i), "before"}});
  }

  static std::string key(int i) { return "key" + std::to_string(i); }
  std::string contents() const {
    std::ifstream file(path_, std::ios::binary);
    return {std::istreambuf_iterator<char>(file), {}};
  }
  // As cp does: to the same inode. The clock of ctime goes on before.
  void put_back(const std::string& bytes) const {
    pass_clock_step();
    std::ofstream(path_, std::ios::binary | std::ios::trunc) << bytes;
    pass_clock_step();
  }
  static void pass_clock_step() { std::this_thread::sleep_for(std::chrono::milliseconds(20)); }
  // A copy taken while a writer was at work: a value that was updated is in it, and others are not.
  std::string torn_copy() const {
    std::string bytes = contents();
    for (std::size_t at = 0; (at = bytes.find("before", at)) != std::string::npos; at += 6) {
      if (at > bytes.size() / 2 || at % 128 < 64) bytes.replace(at, 6, "after!");
    }
    return bytes;
  }
  std::unique_ptr<State> open(bool read_only = false) const {
    StateOptions options;
    options.path = path_;
    options.read_only = read_only;
    return State::open(options);
  }
  bool is_noted() const {
    return has_only_own_changes(
        LockFile(path_ + ".lock", 0600, FileOwner::self_or_root, State::default_deadline()),
        open_file(path_, O_RDONLY).number());
  }
  static std::string value_of(const State& state, const std::string& key) {
    std::string value;
    return state.get(key, value) ? value : "(none)";
  }

  testing::TemporaryDirectory directory_{GetParam()};
  std::string path_ = directory_.file("changed.state");
};

TEST_P(StateChange, own_changes_are_noted) {
  EXPECT_TRUE(is_noted()) << "creation";
  StateOptions options;
  options.bytes_max = std::uint64_t{8} << 20;
  TestState state(path_, options);
  for (int i = 0; i < 30; ++i) {
    state.apply({{key(i), std::string(30'000, 'v')}});
    if (i % 10 == 0) pass_clock_step();
    EXPECT_TRUE(is_noted()) << "growth";
  }
  state->sync(TestState::deadline());
  pass_clock_step();
  state.apply({{key(1), "after the disk was written"}});
  EXPECT_TRUE(is_noted()) << "a write";
  pass_clock_step();
  state->record_poll(boot_time_ns(), 1);
  EXPECT_TRUE(is_noted()) << "a poll";
  EXPECT_THAT(state.check(), IsEmpty());
  EXPECT_TRUE(is_noted()) << "a check";
  pass_clock_step();
  state->install(*state->begin_build(testing::test_uuid, "test:"));
  EXPECT_TRUE(is_noted()) << "an installation";
  pass_clock_step();
  {
    const std::unique_ptr<StateWriter> writer = state->begin_write(TestState::deadline());
    expect_error(ErrorKind::limit, [&] {
      for (;;)
        TestState::apply(*writer,
                         {{std::string(1000, 'k'), std::string(1 << 20, 'v')},
                          {std::to_string(writer->info().applied_id), std::string(1 << 20, 'v')}});
    });
  }
  EXPECT_TRUE(is_noted()) << "an update that failed";
}

// Such a write does not look at the file again: it has kept its mapping.
TEST_P(StateChange, write_that_follows_another_soon_does_not_excuse_a_change_by_others) {
  TestState state(path_);
  for (int i = 0; i < 1000 && !state->has_cached_mapping(); ++i)
    state.apply({{"key", std::to_string(i)}});
  ASSERT_TRUE(state->has_cached_mapping());
  pass_clock_step();
  const FileDescriptor file = open_file(path_, O_RDWR);
  const std::string bytes = contents();
  const std::size_t at = bytes.find("before");
  ASSERT_EQ(::pwrite(file.number(), "after!", 6, static_cast<off_t>(at)), 6);
  ASSERT_FALSE(is_noted());
  pass_clock_step();
  // It has to come within a tenth of a second, or the mapping is not kept.
  state.apply({{"key", "3"}});
  EXPECT_FALSE(is_noted());
}

TEST_P(StateChange, torn_copy_put_back_in_place_is_not_used) {
  put_back(torn_copy());
  const std::unique_ptr<State> opened = open();
  EXPECT_FALSE(opened->usable());
  EXPECT_THAT(opened->unusable_reason(), HasSubstr("another program has changed it"));
  EXPECT_THAT(opened->unusable_reason(), HasSubstr(path_));
  const std::unique_ptr<State> again = open();
  EXPECT_FALSE(again->usable()) << "it is not believed the second time";
  EXPECT_THAT(again->unusable_reason(), HasSubstr("another program has changed it"));
  opened->install(*opened->begin_build(testing::test_uuid, "test:"));
  EXPECT_TRUE(open()->usable());
}

// Index pages that are not of this file make recovery fail before anything is verified.
TEST_P(StateChange, copy_with_pages_of_another_time_is_not_used) {
  std::string bytes = contents();
  for (std::size_t segment = 1; segment < bytes.size() / segment_bytes; ++segment)
    bytes.replace(segment * segment_bytes + 4096, 8192, std::string(8192, '\x5a'));
  put_back(bytes);
  EXPECT_FALSE(open()->usable());
  EXPECT_FALSE(open()->usable());
}

TEST_P(StateChange, whole_copy_put_back_in_place_is_verified_once) {
  const std::string before = contents();
  TestState(path_).apply({{key(1), "newer"}});
  put_back(before);
  EXPECT_FALSE(is_noted());
  const std::unique_ptr<State> opened = open();
  EXPECT_EQ(value_of(*opened, key(1)), "before");
  EXPECT_FALSE(opened->adopted());
  EXPECT_TRUE(is_noted());
}

TEST_P(StateChange, torn_copy_with_a_writers_mark_is_not_used) {
  std::string torn;
  {
    TestState state(path_);
    const std::unique_ptr<StateWriter> writer = state->begin_write(TestState::deadline());
    torn = torn_copy();
  }
  put_back(torn);
  EXPECT_FALSE(open()->usable());
}

TEST_P(StateChange, openers_at_the_same_time_do_not_vouch_for_each_other) {
  put_back(torn_copy());
  std::vector<std::unique_ptr<testing::ChildProcess>> openers;
  for (int i = 0; i < 8; ++i) {
    openers.push_back(std::make_unique<testing::ChildProcess>(
        [&]() -> std::string { return open()->usable() ? "it is believed" : ""; }));
  }
  for (const auto& opener : openers) EXPECT_EQ(opener->wait(), "");
}

TEST_P(StateChange, later_changes_do_not_excuse_an_earlier_one) {
  put_back(torn_copy());
  {
    const std::unique_ptr<State> reader = open(true);  // it trusts what it finds
    const FileDescriptor file = open_file(path_, O_RDWR);
    const LockFile locks(path_ + ".lock", 0600, FileOwner::self_or_root, State::default_deadline());
    const OwnChange change(&locks, file.number());
    ASSERT_EQ(::pwrite(file.number(), "\0", 1, 4000), 1);
  }
  EXPECT_FALSE(is_noted());
  EXPECT_FALSE(open()->usable());
}

TEST_P(StateChange, state_of_a_killed_writer_is_verified_only_without_other_writers) {
  const auto kill_a_writer = [&] {
    testing::ChildProcess child([&]() -> std::string {
      const std::unique_ptr<State> state = open();
      const std::unique_ptr<StateWriter> writer = state->begin_write(TestState::deadline());
      pass_clock_step();
      TestState::apply(*writer, {{key(1), "after"}});
      ::raise(SIGKILL);
      return "not killed";
    });
    EXPECT_EQ(child.wait(), "died of signal 9");
  };
  {
    const TestState other(path_);
    kill_a_writer();
    const bool was_noted = is_noted();
    EXPECT_EQ(value_of(*open(), key(1)), "after");
    EXPECT_EQ(is_noted(), was_noted) << "the process that uses the file has verified it";
  }
  EXPECT_EQ(value_of(*open(true), key(1)), "after") << "readers do not verify";
  EXPECT_EQ(value_of(*open(), key(1)), "after");
  EXPECT_TRUE(is_noted());
  kill_a_writer();
  EXPECT_EQ(value_of(*open(), key(1)), "after");
  EXPECT_TRUE(is_noted());
}

TEST_P(StateChange, new_mode_costs_one_verification) {
  pass_clock_step();
  ASSERT_EQ(::chmod(path_.c_str(), 0640), 0);
  EXPECT_FALSE(is_noted());
  StateOptions options;
  options.path = path_;
  options.keeps_mode = true;
  EXPECT_TRUE(State::open(options)->usable());
  EXPECT_TRUE(is_noted());
  struct stat status;
  ASSERT_EQ(::stat(path_.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0640U);
}

// Pollers do not hold the writer lock.
TEST_P(StateChange, last_change_is_noted_however_writers_and_pollers_interleave) {
  std::atomic<bool> stop{false};
  const auto run = [&](auto action) {
    return std::thread([&stop, this, action] {
      TestState state(path_);
      for (int i = 0; !stop; ++i) action(state, i);
    });
  };
  std::thread writer = run([](TestState& state, int i) {
    state.apply({{key(i % key_count), std::string(static_cast<std::size_t>(i % 5000), 'v')}});
  });
  std::thread poller = run([](TestState& state, int i) {
    state->record_poll(boot_time_ns(), static_cast<UpdateId>(i));
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(500));
  stop = true;
  writer.join();
  poller.join();
  EXPECT_TRUE(is_noted());
}

INSTANTIATE_TEST_SUITE_P(Directories, StateChange, ::testing::Values("/dev/shm", "/tmp"),
                         [](const auto& instance) {
                           return std::string(instance.index == 0 ? "memory" : "disk");
                         });

}  // namespace
}  // namespace whycache
