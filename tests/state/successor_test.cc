// Processes that cannot simply open the file that replaces theirs: each read sees the new file, or
// throws.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "state/file/layout.h"
#include "state/test_state.h"
#include "support/child_process.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

using testing::ChildProcess;
using testing::TemporaryDirectory;
using testing::TestState;

class SuccessorTest : public ::testing::Test {
 protected:
  void SetUp() override {
    std::filesystem::permissions(directory_.path(), std::filesystem::perms(0755));
    TestState(path_).apply({{"k", "old"}});
  }

  // Replaces the state, in a process of its own, by one in which "k" has the value.
  std::string replace(const std::string& value) const {
    ChildProcess replacer([&]() -> std::string {
      TestState state(path_);
      if (!state->install(*state->begin_build(testing::test_uuid, "test:"))) return "not installed";
      state.apply({{"k", value}});
      return "";
    });
    return replacer.wait();
  }

  // Runs `prepare` in a child that has opened the state, replaces the state, and returns what the
  // child then reads: a value, or "threw: ...".
  std::string value_after_replacement(const std::function<void()>& prepare, bool as_view) const {
    EXPECT_EQ(replace("old"), "");
    const testing::SharedWithChildren<std::atomic<int>> step;
    ChildProcess reader([&]() -> std::string {
      const TestState state(path_);
      if (state.get("k") != "old") return "the old value cannot be read";
      prepare();
      *step = 1;
      testing::wait_for_step(step, 2);
      try {
        if (as_view) {
          const View view = state.view();
          return "read " + std::string(view.get("k").value_or("nothing"));
        }
        return "read " + state.get("k").value_or("nothing");
      } catch (const Error& error) {
        return "threw " + std::string(to_string(error.kind())) + ": " + error.what();
      }
    });
    testing::wait_for_step(step, 1);
    EXPECT_EQ(replace("new"), "");
    *step = 2;
    return reader.wait();
  }

  TemporaryDirectory directory_;
  std::string path_ = directory_.file("replaced.state");
};

void use_up_descriptors() {
  struct rlimit limit {
    64, 64
  };
  ::setrlimit(RLIMIT_NOFILE, &limit);
  while (::open("/dev/null", O_RDONLY | O_CLOEXEC) >= 0) {
  }
}

TEST_F(SuccessorTest, process_without_descriptors_reads_the_new_file) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "NOT TESTED: the check of virtual table pointers needs descriptors";
#endif
  for (const bool as_view : {false, true})
    EXPECT_EQ(value_after_replacement(use_up_descriptors, as_view), "read new");
}

TEST_F(SuccessorTest, process_whose_spare_descriptor_is_in_use_throws) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "NOT TESTED: the check of virtual table pointers needs descriptors";
#endif
  const testing::SharedWithChildren<std::atomic<int>> step;
  ChildProcess reader([&]() -> std::string {
    const TestState state(path_);
    const View first = state.view();  // keeps the first file, and its descriptor, open
    use_up_descriptors();
    *step = 1;
    testing::wait_for_step(step, 2);
    if (state.get("k") != "second") return "the second value cannot be read";
    *step = 3;
    testing::wait_for_step(step, 4);
    for (int i = 0; i < 3; ++i) {
      try {
        return "read " + state.get("k").value_or("nothing");
      } catch (const Error& error) {
        if (error.kind() != ErrorKind::unavailable) return "threw another error";
        if (error.system_error() != EMFILE) return std::string("threw ") + error.what();
      }
      ::usleep(i * 8000);
    }
    ::close(63);
    ::usleep(20'000);
    return state.get("k") == "third" ? "" : "the third value is not read with a descriptor";
  });
  testing::wait_for_step(step, 1);
  EXPECT_EQ(replace("second"), "");
  *step = 2;
  testing::wait_for_step(step, 3);
  EXPECT_EQ(replace("third"), "");
  *step = 4;
  EXPECT_EQ(reader.wait(), "");
}

TEST_F(SuccessorTest, process_that_lost_its_rights_throws) {
  if (::geteuid() != 0) GTEST_SKIP() << "NOT TESTED: only root can become another user";
  for (const bool as_view : {false, true}) {
    const std::string result = value_after_replacement(
        [] {
          if (::setgid(65534) != 0 || ::setuid(65534) != 0) ::_exit(99);
        },
        as_view);
    EXPECT_NE(result.find("threw unavailable: state was replaced"), std::string::npos) << result;
    EXPECT_NE(result.find("Permission denied"), std::string::npos) << result;
  }
}

TEST_F(SuccessorTest, process_that_cannot_search_the_directory_any_more_throws) {
  if (::geteuid() != 0) GTEST_SKIP() << "NOT TESTED: only root can become another user";
  std::filesystem::create_directory(directory_.file("private"));
  std::filesystem::permissions(directory_.file("private"), std::filesystem::perms(0700));
  path_ = directory_.file("private/replaced.state");
  TestState(path_).apply({{"k", "old"}});
  const std::string result = value_after_replacement(
      [] {
        if (::setgid(65534) != 0 || ::setuid(65534) != 0) ::_exit(99);
      },
      false);
  EXPECT_NE(result.find("threw unavailable: state was replaced"), std::string::npos) << result;
}

TEST_F(SuccessorTest, process_in_a_chroot_throws) {
  if (::geteuid() != 0) GTEST_SKIP() << "NOT TESTED: only root can call chroot()";
  const std::string root = directory_.file("empty");
  std::filesystem::create_directory(root);
  for (const bool as_view : {false, true}) {
    const std::string result = value_after_replacement(
        [&] {
          if (::chroot(root.c_str()) != 0 || ::chdir("/") != 0) ::_exit(99);
        },
        as_view);
    EXPECT_NE(result.find("threw unavailable: state was replaced"), std::string::npos) << result;
    EXPECT_NE(result.find("changed its root directory"), std::string::npos) << result;
  }
}

// A prefork server opens the state in its master.
TEST_F(SuccessorTest, forked_child_without_descriptors_reads_the_new_file) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "NOT TESTED: the check of virtual table pointers needs descriptors";
#endif
  const testing::SharedWithChildren<std::atomic<int>> step;
  const TestState of_master(path_);
  ASSERT_EQ(of_master.get("k"), "old");
  ChildProcess reader([&]() -> std::string {
    use_up_descriptors();
    *step = 1;
    testing::wait_for_step(step, 2);
    return of_master.get("k") == "new" ? "" : "does not read the new file";
  });
  testing::wait_for_step(step, 1);
  EXPECT_EQ(replace("new"), "");
  *step = 2;
  EXPECT_EQ(reader.wait(), "");
}

TEST_F(SuccessorTest, file_that_is_no_state_does_not_delay_the_switch_to_one) {
  const TestState state(path_);
  state->remove(TestState::deadline());
  std::ofstream(path_) << "no state";
  EXPECT_EQ(state.get("k"), "old");
  std::filesystem::remove(path_);
  EXPECT_EQ(replace("new"), "");
  EXPECT_EQ(state.get("k"), "new");
}

TEST_F(SuccessorTest, state_of_another_format_is_an_error) {
  const TestState state(path_);
  const std::string copy = directory_.file("newer.state");
  std::filesystem::copy_file(path_, copy);
  {
    std::fstream file(copy, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(offsetof(HeaderFixed, format_major));
    file.put(99);
  }
  state->remove(TestState::deadline());
  std::filesystem::rename(copy, path_);
  testing::expect_error(
      ErrorKind::unavailable, [&] { state.get("k"); }, "state was replaced", "99");
}

// --- Successors of another log ---

class OtherLogSuccessorTest : public SuccessorTest {
 protected:
  static constexpr Uuid other_uuid{9, 9, 9};

  // Puts a state of another log in place, in a process of its own. Returns what failed.
  std::string replace_by_other_log() const {
    ChildProcess replacer([&]() -> std::string {
      TestState state(path_);
      if (!state->install(*state->begin_build(other_uuid, "test:"))) return "not installed";
      state.apply({{"k", "other"}});
      return "";
    });
    return replacer.wait();
  }
};

TEST_F(OtherLogSuccessorTest, every_read_throws_and_names_both_logs) {
  const TestState state(path_);
  ASSERT_EQ(replace_by_other_log(), "");
  const auto expect_refused = [&](const std::function<void()>& read) {
    testing::expect_error(ErrorKind::unavailable, read, "another log", path_.c_str(),
                          to_string(testing::test_uuid).c_str(), to_string(other_uuid).c_str(),
                          "update()");
  };
  for (int i = 0; i < 3; ++i) {
    expect_refused([&] { state.get("k"); });
    expect_refused([&] { state->contains("absent"); });
    expect_refused([&] { state->get_multi({}, {}); });
    expect_refused([&] { state.view(); });
    expect_refused([&] { state->applied_id(); });
    expect_refused([&] { state->info(); });
    ::usleep(6000);  // beyond the time for which a failed search is remembered
  }
  EXPECT_FALSE(state->usable());
  EXPECT_EQ(state->last_poll_time_ns(), std::nullopt);
}

TEST_F(OtherLogSuccessorTest, view_from_before_stays_readable) {
  const TestState state(path_);
  const View before = state.view();
  ASSERT_EQ(replace_by_other_log(), "");
  EXPECT_EQ(before.get("k"), "old");
}

TEST_F(OtherLogSuccessorTest, switch_if_replaced_returns_other_log_and_does_not_switch) {
  const TestState state(path_);
  EXPECT_FALSE(state->switch_if_replaced());
  ASSERT_EQ(replace_by_other_log(), "");
  for (int i = 0; i < 2; ++i) {
    const std::optional<LogIdentity> other = state->switch_if_replaced();
    ASSERT_TRUE(other);
    EXPECT_EQ(other->uuid, other_uuid);
    EXPECT_EQ(other->name, "test:");
  }
  testing::expect_error(
      ErrorKind::unavailable, [&] { state.get("k"); }, "another log");
  testing::expect_error(
      ErrorKind::unavailable, [&] { state->begin_write(TestState::deadline()); }, "another log");
}

TEST_F(OtherLogSuccessorTest, expected_log_is_switched_to_at_once) {
  const TestState state(path_);
  ASSERT_EQ(replace_by_other_log(), "");
  testing::expect_error(
      ErrorKind::unavailable, [&] { state.get("k"); }, "another log");
  state->expect_log(other_uuid);
  EXPECT_EQ(state.get("k"), "other");
  EXPECT_FALSE(state->switch_if_replaced());
  EXPECT_TRUE(state->usable());
}

// As with mv of a copy: nothing marks the old file.
TEST_F(OtherLogSuccessorTest, state_of_other_log_moved_to_the_path_is_not_read) {
  const TestState state(path_);
  const std::string elsewhere = directory_.file("elsewhere.state");
  {
    const std::unique_ptr<State> other = State::open({.path = elsewhere});
    other->install(*other->begin_build(other_uuid, "other:"));
  }
  ASSERT_EQ(::rename(elsewhere.c_str(), path_.c_str()), 0);
  EXPECT_EQ(state.get("k"), "old") << "nothing was noticed yet";
  ASSERT_TRUE(state->switch_if_replaced());
  testing::expect_error(
      ErrorKind::unavailable, [&] { state.get("k"); }, "another log");
}

TEST_F(OtherLogSuccessorTest, process_without_state_does_not_read_state_of_another_log) {
  std::filesystem::remove(path_);
  const std::unique_ptr<State> state = State::open({.path = path_});
  state->expect_log(testing::test_uuid);
  ASSERT_EQ(replace_by_other_log(), "");
  EXPECT_FALSE(state->usable());
  EXPECT_THROW(state->pin(), Error);
  state->expect_log(other_uuid);
  EXPECT_TRUE(state->usable());
}

TEST_F(OtherLogSuccessorTest, install_does_not_replace_it_unless_told_to) {
  const TestState state(path_);
  ASSERT_EQ(replace_by_other_log(), "");
  const auto install = [&](const std::optional<Uuid>& other_log) {
    return state->install(*state->begin_build(testing::test_uuid, "test:"), InstallPolicy::always,
                          {}, TestState::deadline(), other_log);
  };
  EXPECT_FALSE(install(std::nullopt));
  EXPECT_FALSE(install(Uuid{1}));
  EXPECT_EQ(TestState(path_).get("k"), "other");
  EXPECT_TRUE(install(other_uuid));
  EXPECT_EQ(state.get("k"), std::nullopt);
}

TEST_F(SuccessorTest, process_whose_host_closed_all_descriptors_does_not_read_the_old_file) {
  const std::string result = value_after_replacement(
      [&] {
        ::close_range(3, ~0U, 0);
        for (int i = 0; i < 20; ++i) ::open("/dev/null", O_RDONLY | O_CLOEXEC);
      },
      false);
  EXPECT_TRUE(result == "read new" || result.starts_with("threw unavailable")) << result;
}

TEST_F(SuccessorTest, removed_state_without_successor_is_read_on) {
  const TestState state(path_);
  ChildProcess remover([&]() -> std::string {
    const TestState same(path_);
    same->remove(TestState::deadline());
    return "";
  });
  ASSERT_EQ(remover.wait(), "");
  EXPECT_EQ(state.get("k"), "old");
}

}  // namespace
}  // namespace whycache
