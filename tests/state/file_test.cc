// Files and the system around them: what is at the path, permissions, exhausted space, and files
// that are removed, replaced or copied.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <thread>

#include "base/clock.h"
#include "base/file.h"
#include "base/hash.h"
#include "base/process_lock.h"
#include "state/file/layout.h"
#include "state/file/lock_file.h"
#include "state/file/state_file.h"
#include "state/file/use_locks.h"
#include "state/test_state.h"
#include "support/child_process.h"
#include "support/mappings.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

namespace fs = std::filesystem;
using ::testing::AllOf;
using testing::expect_error;
using ::testing::HasSubstr;
using testing::mappings_of;
using ::testing::Not;
using testing::run_in_child;
using ::testing::StartsWith;
using testing::TemporaryDirectory;
using testing::TestState;
using testing::thrown_error;
using Contents = std::map<std::string, std::string>;

constexpr uid_t other_user_id = 65534;

StateOptions options_at(const std::string& path,
                        std::uint64_t bytes_max = std::uint64_t{64} << 20) {
  StateOptions options;
  options.path = path;
  options.bytes_max = bytes_max;
  return options;
}

std::string file_contents(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(file), {}};
}

void write_file(const std::string& path, std::string_view bytes, mode_t mode = 0600) {
  const FileDescriptor file = open_file(path, O_WRONLY | O_CREAT | O_TRUNC, mode);
  write_all(file.number(), bytes, path);
}

std::uint64_t inode_of(const std::string& path) {
  struct stat status;
  return ::stat(path.c_str(), &status) == 0 ? status.st_ino : 0;
}

std::string describe(const std::optional<Error>& error) {
  return error ? std::string(to_string(error->kind())) + ": " + error->what()
               : "nothing was thrown";
}

class FileTest : public ::testing::Test {
 protected:
  std::string path(const std::string& name = "a.state") const { return directory_.file(name); }
  TemporaryDirectory directory_;
};

// --- What is at the path ---

TEST_F(FileTest, file_that_is_no_state_is_rejected_and_unchanged) {
  { TestState state(path("whole.state")); }
  const std::string whole = file_contents(path("whole.state"));
  const auto with = [&](std::size_t offset, std::string_view bytes, bool fix_checksum) {
    std::string copy = whole;
    copy.replace(offset, bytes.size(), bytes);
    if (fix_checksum) {
      const std::uint64_t checksum = hash64({copy.data(), offsetof(HeaderFixed, checksum)});
      std::memcpy(copy.data() + offsetof(HeaderFixed, checksum), &checksum, sizeof checksum);
    }
    return copy;
  };
  const std::string zeros(sizeof(HeaderFixed), '\0');
  const std::pair<const char*, std::string> files[] = {
      {"too short", whole.substr(0, 100)},
      {"magic", "SQLite format 3" + std::string(5000, '\0')},
      {"magic", std::string(500'000, '\0') + "x"},
      {"magic", zeros + std::string(500'000, 'x')},
      {"magic", with(4096, "\x05", false).replace(0, zeros.size(), zeros)},
      {"byte order",
       with(offsetof(HeaderFixed, byte_order), std::string("\x01\x02\x03\x04", 4), true)},
      {"format", with(offsetof(HeaderFixed, format_major), std::string("\x63\x00", 2), true)},
      {"sizes",
       with(offsetof(HeaderFixed, segment_size), std::string("\x00\x00\x08\x00", 4), true)},
      {"damaged", with(offsetof(HeaderFixed, hash_seed), "X", false)},
  };
  for (const auto& [reason, bytes] : files) {
    write_file(path(), bytes);
    expect_error(
        ErrorKind::corrupt, [&] { State::open(options_at(path())); }, reason, path());
    EXPECT_EQ(file_contents(path()), bytes) << reason;
  }
}

// The library was updated. The state is rebuilt from the log, and processes that still have the old
// file mapped learn that it was replaced.
TEST_F(FileTest, state_of_older_format_is_replaced) {
  { TestState(path()).apply({{"a", "1"}}); }
  std::string bytes = file_contents(path());
  const std::uint16_t older = state_format_major - 1;
  std::memcpy(bytes.data() + offsetof(HeaderFixed, format_major), &older, sizeof older);
  const std::uint64_t checksum = hash64({bytes.data(), offsetof(HeaderFixed, checksum)});
  std::memcpy(bytes.data() + offsetof(HeaderFixed, checksum), &checksum, sizeof checksum);
  write_file(path(), bytes);
  const FileDescriptor mapped_by_others = open_file(path(), O_RDONLY);

  const std::unique_ptr<State> state = State::open(options_at(path()));
  EXPECT_FALSE(state->usable());
  EXPECT_THAT(state->unusable_reason(), HasSubstr("older format: found=3 known=4"));
  EXPECT_EQ(file_contents(path()), bytes);
  state->install(*state->begin_build(testing::test_uuid, "test:"));
  EXPECT_TRUE(state->usable());
  std::uint64_t generation = 0;
  ASSERT_EQ(::pread(mapped_by_others.number(), &generation, sizeof generation,
                    offsetof(Header, reclaim_generation)),
            static_cast<ssize_t>(sizeof generation));
  EXPECT_NE(generation & superseded_bit, 0U);
}

// A read of this file fails with EIO: nothing is mapped at address 0.
TEST_F(FileTest, file_that_cannot_be_read_is_told_from_file_without_magic) {
  const FileDescriptor unreadable = open_file("/proc/self/mem", O_RDONLY);
  EXPECT_FALSE(bears_state_magic(unreadable.number()));
  EXPECT_EQ(errno, EIO);
  write_file(path(), "something else");
  EXPECT_FALSE(bears_state_magic(open_file(path(), O_RDONLY).number()));
  EXPECT_EQ(errno, 0);
}

// Anybody who follows the advice of a message must not lose a file that is not whycache's.
TEST_F(FileTest, message_advises_deleting_only_file_with_magic) {
  const auto message_for = [&](const std::string& bytes) {
    write_file(path(), bytes);
    const auto error = thrown_error([&] { State::open(options_at(path())); });
    return error ? std::string(error->what()) : std::string();
  };
  for (const std::string& foreign : {std::string("\0notes", 6), std::string("notes"),
                                     "SQLite format 3" + std::string(500'000, '\0')}) {
    const std::string message = message_for(foreign);
    EXPECT_THAT(message, HasSubstr("not a whycache state: path=" + path()));
    EXPECT_THAT(message, HasSubstr("state_path, or WHYCACHE_STATE, must name another file"));
    EXPECT_THAT(message, Not(HasSubstr("delete")));
    EXPECT_FALSE(fs::exists(path() + ".lock"));
  }
  { TestState state(path("whole.state")); }
  std::string damaged = file_contents(path("whole.state"));
  damaged[offsetof(HeaderFixed, hash_seed)] ^= 1;
  EXPECT_THAT(message_for(damaged), HasSubstr("delete it, it is rebuilt from the log"));
  EXPECT_THAT(message_for(damaged.substr(0, 100)), HasSubstr("delete it"));
}

// A power cut can leave such files.
TEST_F(FileTest, file_that_holds_nothing_is_unusable_and_replaced) {
  { TestState(path("whole.state")).apply({{"a", "1"}}); }
  const std::string whole = file_contents(path("whole.state"));
  const auto without_first = [&](std::size_t bytes) {
    return std::string(bytes, '\0') + whole.substr(bytes);
  };
  for (const std::string& bytes :
       {std::string(), std::string(1, '\0'), std::string(5'000'000, '\0'), without_first(512),
        without_first(4096)}) {
    write_file(path(), bytes);
    const std::unique_ptr<State> state = State::open(options_at(path()));
    EXPECT_FALSE(state->usable());
    EXPECT_THAT(state->unusable_reason(), HasSubstr("it is empty, or its header was lost"));
    EXPECT_EQ(file_contents(path()), bytes);

    state->install(*state->begin_build(testing::test_uuid, "test:"));

    EXPECT_TRUE(state->usable());
    ::unlink(path().c_str());
  }
}

TEST_F(FileTest, hole_before_the_first_byte_is_not_taken_for_the_whole_file) {
  write_file(path(), "");
  ASSERT_EQ(::truncate(path().c_str(), 100'000'000), 0);
  EXPECT_FALSE(State::open(options_at(path()))->usable());
  const FileDescriptor file = open_file(path(), O_RDWR);
  ASSERT_EQ(::pwrite(file.number(), "x", 1, 90'000'000), 1);
  expect_error(
      ErrorKind::corrupt, [&] { State::open(options_at(path())); }, "not a whycache state");
}

TEST_F(FileTest, refused_file_gets_no_lock_file_beside_it) {
  ASSERT_EQ(::mkdir(path("directory").c_str(), 0700), 0);
  write_file(path("linked"), "x");
  ASSERT_EQ(::link(path("linked").c_str(), path("second").c_str()), 0);
  for (const char* name : {"directory", "linked"}) {
    EXPECT_TRUE(thrown_error([&] { State::open(options_at(path(name))); })) << name;
    EXPECT_FALSE(fs::exists(path(name) + ".lock")) << name;
  }
}

TEST_F(FileTest, message_about_foreign_lock_file_does_not_advise_deleting_it) {
  const std::string lock = path() + ".lock";
  for (const std::string& content : {"dependencies:" + std::string(5000, 'x'), std::string("short"),
                                     std::string(lock_file_magic, sizeof lock_file_magic),
                                     std::string(4096, '\0') + "beyond the first page"}) {
    write_file(lock, content);
    const auto error = thrown_error([&] { State::open(options_at(path())); });
    ASSERT_TRUE(error) << content;
    EXPECT_THAT(error->what(), Not(HasSubstr("delete"))) << content;
    EXPECT_EQ(file_contents(lock), content);
  }
}

// A new file whose name has reached the disk before its content.
TEST_F(FileTest, lock_file_that_a_power_cut_emptied_is_replaced) {
  const std::string lock = path() + ".lock";
  for (const std::string& content :
       {std::string(), std::string(4096, '\0'), std::string(100'000, '\0')}) {
    write_file(lock, content);
    TestState state(path());
    state.apply({{"a", "1"}});
    EXPECT_EQ(file_contents(lock).substr(0, 8), std::string(lock_file_magic, 8));
  }
}

TEST_F(FileTest, lock_file_of_an_earlier_version_is_replaced_unless_it_is_held) {
  const std::string lock = path() + ".lock";
  write_file(lock, "whylock1" + std::string(135'160, '\0'));
  const FileDescriptor earlier = open_file(lock, O_RDWR);
  ASSERT_TRUE(try_lock_byte(earlier.number(), static_cast<std::uint64_t>(StateLock::writer)));
  expect_error(
      ErrorKind::unavailable,
      [&] { State::open(options_at(path()), Deadline(std::chrono::milliseconds(20))); },
      "earlier version", lock);
  unlock_byte(earlier.number(), static_cast<std::uint64_t>(StateLock::writer));
  TestState(path()).apply({{"a", "1"}});
  EXPECT_EQ(file_contents(lock).substr(0, 8), std::string(lock_file_magic, 8));
}

TEST_F(FileTest, opening_waits_for_lock_file_held_by_earlier_version) {
  const std::string lock = path() + ".lock";
  for (const bool waits_for_others : {true, false}) {
    write_file(lock, "whylock1" + std::string(135'160, '\0'));
    const FileDescriptor earlier = open_file(lock, O_RDWR);
    ASSERT_TRUE(try_lock_byte(earlier.number(), static_cast<std::uint64_t>(StateLock::append)));
    std::thread holder([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(30));
      unlock_byte(earlier.number(), static_cast<std::uint64_t>(StateLock::append));
    });
    StateOptions options = options_at(path());
    options.waits_for_others = waits_for_others;
    // As opening with OpenMode::now, which has no time to wait for a lock.
    const Deadline deadline(std::chrono::milliseconds(waits_for_others ? 5000 : 0));
    EXPECT_FALSE(State::open(options, deadline)->usable());
    holder.join();
    EXPECT_EQ(file_contents(lock).substr(0, 8), std::string(lock_file_magic, 8));
  }
}

TEST_F(FileTest, only_writers_of_the_state_may_open_the_lock_file) {
  for (const auto& [state_mode, lock_mode] :
       {std::pair(0600U, 0600U), std::pair(0640U, 0600U), std::pair(0644U, 0600U),
        std::pair(0660U, 0660U), std::pair(0664U, 0660U), std::pair(0666U, 0666U)}) {
    StateOptions options;
    options.mode = state_mode;
    const std::string file = path(std::to_string(state_mode) + ".state");
    const TestState state(file, options);
    struct stat status;
    ASSERT_EQ(::stat((file + ".lock").c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777, lock_mode) << std::oct << state_mode;
    ASSERT_EQ(::stat(file.c_str(), &status), 0);
    EXPECT_EQ(status.st_mode & 0777, state_mode);
  }
  // One that was made wider, by an earlier version for example.
  const std::string lock = path("384.state") + ".lock";
  ASSERT_EQ(::chmod(lock.c_str(), 0666), 0);
  const TestState state(path("384.state"));
  struct stat status;
  ASSERT_EQ(::stat(lock.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600U);
}

TEST_F(FileTest, newer_minor_format_is_accepted) {
  { TestState(path()).apply({{"a", "1"}}); }
  std::string bytes = file_contents(path());
  bytes[offsetof(HeaderFixed, format_minor)] = 7;
  const std::uint64_t checksum = hash64({bytes.data(), offsetof(HeaderFixed, checksum)});
  std::memcpy(bytes.data() + offsetof(HeaderFixed, checksum), &checksum, sizeof checksum);
  const FileDescriptor file = open_file(path(), O_RDWR);
  ASSERT_EQ(::pwrite(file.number(), bytes.data(), 4096, 0), 4096);

  EXPECT_EQ(TestState(path()).get("a"), "1");
}

TEST_F(FileTest, path_to_a_non_regular_file_is_rejected) {
  ASSERT_EQ(::mkdir(path("directory").c_str(), 0700), 0);
  ASSERT_EQ(::mkfifo(path("pipe").c_str(), 0600), 0);
  { TestState(path()).apply({{"a", "1"}}); }
  ASSERT_EQ(::symlink(path().c_str(), path("link").c_str()), 0);
  ASSERT_EQ(::symlink("/dev/zero", path("device").c_str()), 0);

  for (const char* name : {"directory", "pipe"}) {
    const auto open_state = [&]() -> std::string {
      return describe(thrown_error([&] { State::open(options_at(path(name))); }));
    };
    EXPECT_EQ(run_in_child(open_state, 10).substr(0, 7), "corrupt") << name;
  }
  expect_error(
      ErrorKind::invalid, [&] { State::open(options_at(path("link"))); }, "symbolic link");
  expect_error(
      ErrorKind::invalid, [&] { State::open(options_at(path("device"))); }, "symbolic link");
  expect_error(ErrorKind::invalid, [&] { State::open(options_at("")); });
  expect_error(
      ErrorKind::invalid, [&] { State::open(options_at(path("absent/a.state"))); }, "absent");
  expect_error(
      ErrorKind::invalid, [&] { State::open(options_at(path() + "/a.state")); }, "ot a directory");
}

TEST_F(FileTest, invalid_lock_file_is_rejected) {
  { TestState(path()).apply({{"a", "1"}}); }
  const std::string lock = path() + ".lock";
  const std::string whole = file_contents(lock);
  for (const std::string& bytes : {whole.substr(0, 100), std::string(100'000, 'x')}) {
    write_file(lock, bytes);
    expect_error(
        ErrorKind::corrupt, [&] { State::open(options_at(path())); }, "lock file", lock);
  }
  ::unlink(lock.c_str());
  ASSERT_EQ(::symlink(path("elsewhere").c_str(), lock.c_str()), 0);
  expect_error(
      ErrorKind::invalid, [&] { State::open(options_at(path())); }, "symbolic link");
  ::unlink(lock.c_str());
  EXPECT_EQ(TestState(path()).get("a"), "1");
}

TEST_F(FileTest, file_with_a_second_hard_link_is_rejected) {
  // The lock file belongs to the name: two names would mean two writers.
  { TestState(path()).apply({{"a", "1"}}); }
  ASSERT_EQ(::link(path().c_str(), path("second.state").c_str()), 0);

  expect_error(
      ErrorKind::invalid, [&] { State::open(options_at(path("second.state"))); }, "second name");
  expect_error(
      ErrorKind::invalid, [&] { State::open(options_at(path())); }, "second name");

  ::unlink(path("second.state").c_str());
  EXPECT_EQ(TestState(path()).get("a"), "1");
}

// The library's files get no number that a later open() of the application's standard streams, or
// what it prints, could hit.
TEST_F(FileTest, state_survives_what_a_process_without_standard_streams_prints) {
  EXPECT_EQ(run_in_child([&]() -> std::string {
              for (int number = 0; number <= STDERR_FILENO; ++number) ::close(number);
              TestState state(path());
              state.apply({{"a", "1"}});
              for (int number = 0; number <= STDERR_FILENO; ++number) {
                if (::write(number, "printed", 7) >= 0) return "written to a file of the state";
              }
              return "";
            }),
            "");
  EXPECT_EQ(TestState(path()).get("a"), "1");
}

// Whatever cannot be opened any more, the message names the limit.
TEST_F(FileTest, exhausted_descriptors_are_named_as_the_cause) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "NOT TESTED: the check of virtual table pointers needs descriptors";
#endif
  ASSERT_EQ(run_in_child([&]() -> std::string {
              TestState(path()).apply({{"a", "1"}});
              return "";
            }),
            "");
  bool was_opened = false;
  int failures = 0;
  for (rlim_t spare = 0; !was_opened; ++spare) {
    ASSERT_LT(spare, 50U);
    const std::string outcome = run_in_child([&]() -> std::string {
      const FileDescriptor next = open_file("/dev/null", O_RDONLY);
      const rlim_t limit = static_cast<rlim_t>(next.number()) + 1 + spare;
      const struct rlimit descriptors = {limit, limit};
      ::setrlimit(RLIMIT_NOFILE, &descriptors);
      const std::optional<Error> error = thrown_error([&] { State::open(options_at(path())); });
      if (!error) return "opened";
      return error->system_error() == EMFILE && error->kind() == ErrorKind::limit ? ""
                                                                                  : describe(error);
    });
    was_opened = outcome == "opened";
    if (!was_opened) {
      EXPECT_EQ(outcome, "") << spare;
      ++failures;
    }
  }
  EXPECT_GE(failures, 3);
}

TEST_F(FileTest, lock_file_of_a_killed_creator_is_removed_by_the_next_builder) {
  const std::string left = path() + ".lock" + new_lock_file_suffix + "0123";
  write_file(left, "");
  const TestState state(path());
  EXPECT_FALSE(fs::exists(left));
  for (const auto& entry : fs::directory_iterator(directory_.path()))
    EXPECT_THAT(entry.path().filename(), ::testing::AnyOf("a.state", "a.state.lock"));
}

TEST_F(FileTest, empty_key_without_data_is_absent) {
  TestState state(path());
  state.apply({{"a", ""}});
  const std::string_view no_data;
  std::string value;
  EXPECT_FALSE(state->get(no_data, value));
  EXPECT_FALSE(state->contains(no_data));
  const View view = state.view();
  EXPECT_EQ(view.get(no_data), std::nullopt);
  EXPECT_EQ(view.get("a"), "");
}

TEST_F(FileTest, relative_path_survives_a_change_of_working_directory) {
  EXPECT_EQ(run_in_child([&]() -> std::string {
              if (::chdir(directory_.path().c_str()) != 0) return "cannot change directory";
              TestState state("relative.state");
              state.apply({{"a", "1"}});
              if (::chdir("/") != 0) return "cannot change directory";
              state.apply({{"b", "2"}});
              state->switch_if_replaced();
              return state->usable() && state.get("b") == "2" &&
                             state->path() == path("relative.state")
                         ? ""
                         : "lost: " + state->path();
            }),
            "");
}

// --- Permissions ---

class OwnerTest : public FileTest {
 protected:
  void SetUp() override {
    if (::geteuid() != 0) GTEST_SKIP() << "NOT TESTED: needs root";
  }
  // Runs `body` in a child with another user id.
  template <typename Body>
  static std::string run_as_other_user(const Body& body) {
    return run_in_child([&]() -> std::string {
      if (::setgid(other_user_id) != 0 || ::setuid(other_user_id) != 0)
        return "cannot change the user";
      return body();
    });
  }
};

TEST_F(OwnerTest, directory_writable_for_others_is_rejected_unless_sticky) {
  ASSERT_EQ(::chmod(directory_.path().c_str(), 0777), 0);
  expect_error(
      ErrorKind::invalid, [&] { State::open(options_at(path())); }, "writable for others");
  ASSERT_EQ(::chmod(directory_.path().c_str(), 01777), 0);
  EXPECT_FALSE(State::open(options_at(path()))->usable());
}

TEST_F(OwnerTest, state_or_lock_file_of_another_user_is_rejected) {
  ASSERT_EQ(::chmod(directory_.path().c_str(), 01777), 0);
  { TestState(path()).apply({{"a", "1"}}); }
  // No permission.
  EXPECT_EQ(run_as_other_user([&] {
              return describe(thrown_error([&] { State::open(options_at(path())); }));
            }).substr(0, 7),
            "invalid");
  // A trap: another user's file, writable for all, at the path that root opens.
  ASSERT_EQ(run_as_other_user([&]() -> std::string {
              StateOptions options = options_at(path("trap.state"));
              options.mode = 0666;
              TestState(options.path, options).apply({{"a", "forged"}});
              return "";
            }),
            "");
  expect_error(
      ErrorKind::invalid, [&] { State::open(options_at(path("trap.state"))); }, "another user");
  // A lock file of another user is rejected too: its owner could truncate it while it is mapped.
  ASSERT_EQ(::unlink(path("trap.state").c_str()), 0);
  expect_error(
      ErrorKind::invalid, [&] { State::open(options_at(path("trap.state"))); }, "another user");
}

// A stranger can create a state for a log that it may read, with contents of its own.
TEST_F(OwnerTest, file_of_other_user_in_sticky_directory_is_rejected) {
  ASSERT_EQ(::chmod(directory_.path().c_str(), 01777), 0);
  StateOptions options = options_at(path());
  options.mode = 0644;
  ASSERT_EQ(run_as_other_user([&]() -> std::string {
              TestState(path(), options).apply({{"a", "forged"}});
              return "";
            }),
            "");
  expect_error(
      ErrorKind::invalid, [&] { State::open(options); }, "state file belongs to another user",
      path());
  ASSERT_EQ(::unlink(path().c_str()), 0);
  expect_error(
      ErrorKind::invalid, [&] { State::open(options); }, "lock file belongs to another user");
}

TEST_F(OwnerTest, shared_state_of_the_directory_owner_is_accepted) {
  ASSERT_EQ(::chmod(directory_.path().c_str(), 0755), 0);
  ASSERT_EQ(::chown(directory_.path().c_str(), other_user_id, other_user_id), 0);
  StateOptions options = options_at(path());
  options.mode = 0644;
  ASSERT_EQ(run_as_other_user([&]() -> std::string {
              TestState(path(), options).apply({{"a", "1"}});
              return "";
            }),
            "");
  EXPECT_EQ(TestState(path(), options).get("a"), "1");
}

// A file may appear after the path was found free.
TEST_F(OwnerTest, install_does_not_replace_the_state_of_a_stranger) {
  ASSERT_EQ(::chmod(directory_.path().c_str(), 01777), 0);
  const std::unique_ptr<State> state = State::open(options_at(path()));
  const std::unique_ptr<StateBuilder> builder = state->begin_build(testing::test_uuid, "test:");
  { TestState forged(path("forged.state")); }
  ASSERT_EQ(::chown(path("forged.state").c_str(), other_user_id, other_user_id), 0);
  ASSERT_EQ(::rename(path("forged.state").c_str(), path().c_str()), 0);
  expect_error(
      ErrorKind::invalid, [&] { state->install(*builder); }, "belongs to another user");
}

mode_t mode_of(const std::string& path) {
  struct stat status;
  return ::stat(path.c_str(), &status) == 0 ? status.st_mode & 0777 : 0;
}

TEST_F(FileTest, stricter_mode_is_enforced_when_the_state_is_opened) {
  StateOptions options = options_at(path());
  options.mode = 0664;
  { TestState(path(), options).apply({{"a", "1"}}); }
  ASSERT_EQ(mode_of(path()), 0664U);
  ASSERT_EQ(mode_of(path() + ".lock"), 0660U);
  options.mode = 0640;
  EXPECT_EQ(TestState(path(), options).get("a"), "1");
  EXPECT_EQ(mode_of(path()), 0640U);
  EXPECT_EQ(mode_of(path() + ".lock"), 0600U);
  options.mode = 0664;  // a wider one changes nothing
  EXPECT_EQ(TestState(path(), options).get("a"), "1");
  EXPECT_EQ(mode_of(path()), 0640U);
}

TEST_F(FileTest, mode_of_a_file_that_is_no_state_is_unchanged) {
  write_file(path(), "notes", 0600);
  ASSERT_EQ(::chmod(path().c_str(), 0644), 0);
  EXPECT_TRUE(thrown_error([&] { State::open(options_at(path())); }));
  EXPECT_EQ(mode_of(path()), 0644U);
}

TEST_F(OwnerTest, mode_stricter_than_that_of_owner_is_an_error) {
  ASSERT_EQ(::chmod(directory_.path().c_str(), 0755), 0);
  StateOptions options = options_at(path());
  options.mode = 0666;
  { TestState(path(), options).apply({{"a", "1"}}); }
  EXPECT_EQ(run_as_other_user([&]() -> std::string {
              if (TestState(path(), options).get("a") != "1") return "not readable";
              options.mode = 0640;
              const auto error = thrown_error([&] { State::open(options); });
              return error && error->kind() == ErrorKind::invalid &&
                             std::string(error->what()).find("mode=0666 state_mode=0640") !=
                                 std::string::npos
                         ? ""
                         : describe(error);
            }),
            "");
  EXPECT_EQ(mode_of(path()), 0666U);
}

TEST_F(OwnerTest, rebuilt_state_keeps_mode_owner_and_group_unless_mode_is_given) {
  ASSERT_EQ(::chmod(directory_.path().c_str(), 0755), 0);
  ASSERT_EQ(::chown(directory_.path().c_str(), other_user_id, other_user_id), 0);
  StateOptions options = options_at(path());
  options.mode = 0640;
  { TestState created(path(), options); }
  ASSERT_EQ(::chown(path().c_str(), other_user_id, 500), 0);
  const auto rebuild = [&] {
    const TestState state(path(), options);
    ASSERT_TRUE(state->install(*state->begin_build(testing::test_uuid, "test:")));
  };
  rebuild();
  struct stat status;
  ASSERT_EQ(::stat(path().c_str(), &status), 0);
  EXPECT_EQ(status.st_uid, other_user_id);
  EXPECT_EQ(status.st_gid, 500U);
  EXPECT_EQ(status.st_mode & 0777, 0640U);

  ASSERT_EQ(::chown(path().c_str(), 0, 500), 0);
  ASSERT_EQ(::chown(directory_.path().c_str(), 0, 0), 0);
  options.mode = 0600;
  options.keeps_mode = true;
  rebuild();
  EXPECT_EQ(mode_of(path()), 0640U);
  options.keeps_mode = false;
  rebuild();
  EXPECT_EQ(mode_of(path()), 0600U);
}

TEST_F(OwnerTest, unwritable_directory_gives_error_invalid) {
  EXPECT_EQ(run_as_other_user([&] {
              return describe(thrown_error([&] { State::open(options_at("/usr/lib/a.state")); }));
            }).substr(0, 7),
            "invalid");
  ASSERT_EQ(run_in_child([&]() -> std::string {
              if (::unshare(CLONE_NEWNS) != 0) return "";
              ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
              if (::mount("none", directory_.path().c_str(), "tmpfs", MS_RDONLY, "") != 0)
                return "cannot mount";
              const std::optional<Error> error =
                  thrown_error([&] { State::open(options_at(path())); });
              return error && error->kind() == ErrorKind::invalid ? "" : describe(error);
            }),
            "");
}

// --- Exhausted space ---

// Runs a test body with a small file system, in a mount namespace of its own.
class FullDiskTest : public OwnerTest {
 protected:
  template <typename Body>
  std::string run_with_small_disk(const char* size, const Body& body) const {
    return run_in_child([&]() -> std::string {
      if (::unshare(CLONE_NEWNS) != 0) return "cannot unshare";
      ::mount(nullptr, "/", nullptr, MS_REC | MS_PRIVATE, nullptr);
      if (::mount("none", directory_.path().c_str(), "tmpfs", 0,
                  (std::string("mode=0700,size=") + size).c_str()) != 0)
        return "cannot mount";
      return body();
    });
  }
};

TEST_F(FullDiskTest, full_disk_gives_error_and_state_stays_usable) {
  const auto fill_disk = [&]() -> std::string {
    TestState state(path());
    state.apply({{"a", "1"}});
    write_file(path("filler"), std::string(3 << 20, 'x'));
    const View before = state.view();
    int failures = 0;
    UpdateId id = 1;
    for (int i = 0; failures < 3; ++i) {
      if (i > 1000) return "the disk never became full";
      const std::optional<Error> error = thrown_error([&] {
        id = state.apply({{"filling" + std::to_string(i), std::string(50'000, 'f')}});
      });
      if (!error) continue;
      ++failures;
      if (error->kind() != ErrorKind::limit) return describe(error);
      if (state->applied_id() != id) return "applied id moved";
      if (state.get("a") != "1") return "not readable";
      if (const auto faults = state.check(); !faults.empty()) return faults.front();
    }
    if (before.get("a") != "1") return "view not readable";
    ::unlink(path("filler").c_str());
    state.apply({{"filling", std::string(50'000, 'f')}, {"a", "2"}});
    if (state.get("a") != "2" || before.get("a") != "1") return "not applied";
    if (const auto faults = state.check(); !faults.empty()) return faults.front();
    return "";
  };
  EXPECT_EQ(run_with_small_disk("6m", fill_disk), "");
}

// A writer that lives takes its unfinished update back. That is no death to report.
TEST_F(FullDiskTest, update_without_room_is_no_dead_writer) {
  EXPECT_EQ(
      run_with_small_disk("3m",
                          [&]() -> std::string {
                            TestState state(path());
                            state.apply({{"a", "1"}});
                            for (int i = 0; i < 3; ++i) {
                              const auto error = thrown_error([&] {
                                state.apply({{"a", "2"}, {"large", std::string(5'000'000, 'x')}});
                              });
                              if (!error || error->kind() != ErrorKind::limit)
                                return describe(error);
                              if (state->begin_write(TestState::deadline())->recovered())
                                return "a writer is said to have died";
                            }
                            state.apply({{"a", "3"}});
                            if (const auto faults = state.check(); !faults.empty())
                              return faults.front();
                            return state.get("a") == "3" ? "" : "not applied";
                          }),
      "");
}

TEST_F(FullDiskTest, first_state_on_a_full_disk_gives_error_limit) {
  const auto create_state = [&]() -> std::string {
    const std::optional<Error> error = thrown_error([&] { TestState state(path()); });
    if (!error || error->kind() != ErrorKind::limit) return describe(error);
    for (const auto& entry : std::filesystem::directory_iterator(directory_.path())) {
      if (entry.path().filename() != "a.state.lock") return "left behind: " + entry.path().string();
    }
    return "";
  };
  for (const char* size : {"4k", "64k", "200k", "600k", "1m"})
    EXPECT_EQ(run_with_small_disk(size, create_state), "") << size;
}

TEST_F(FullDiskTest, sparse_copy_is_allocated_before_use) {
  TemporaryDirectory other("/dev/shm");
  {
    TestState state(other.file("a.state"));
    state.apply({{"a", "1"}});
  }
  const std::string bytes = file_contents(other.file("a.state"));
  // Writes the copy as `cp --sparse=always` does.
  const auto sparse_copy = [&] {
    const FileDescriptor file = open_file(path(), O_RDWR | O_CREAT | O_EXCL, 0600);
    if (::ftruncate(file.number(), static_cast<off_t>(bytes.size())) != 0)
      throw std::runtime_error("cannot create a hole");
    for (std::size_t offset = 0; offset < bytes.size(); offset += 4096) {
      if (bytes.find_first_not_of('\0', offset) >= offset + 4096) continue;
      if (::pwrite(file.number(), bytes.data() + offset, 4096, static_cast<off_t>(offset)) != 4096)
        throw std::runtime_error("cannot write");
    }
  };
  const auto open_without_space = [&]() -> std::string {
    sparse_copy();
    const std::optional<Error> error = thrown_error([&] { State::open(options_at(path())); });
    return error && error->kind() == ErrorKind::limit ? "" : describe(error);
  };
  const auto write_without_further_space = [&]() -> std::string {
    sparse_copy();
    TestState state(path());
    if (!state->adopted() || state.get("a") != "1") return "not adopted";
    state.apply({{"a", "1"}});
    struct statvfs disk;
    ::statvfs(directory_.path().c_str(), &disk);
    write_file(path("filler"), std::string(disk.f_bavail * disk.f_bsize, 'x'));
    for (int i = 0; i < 100; ++i) state.apply({{"a", std::to_string(i)}});
    return state.get("a") == "99" ? "" : "not applied";
  };
  EXPECT_EQ(run_with_small_disk("1m", open_without_space), "");
  EXPECT_EQ(run_with_small_disk("3m", write_without_further_space), "");
}

TEST_F(FileTest, file_size_limit_gives_error_and_no_signal) {
  for (const rlim_t limit : {10'000UL, 200'000UL, 300'000UL, 1'000'000UL, 3'000'000UL}) {
    EXPECT_EQ(run_in_child([&]() -> std::string {
                const struct rlimit file_limit = {limit, limit};
                ::setrlimit(RLIMIT_FSIZE, &file_limit);
                const std::string limited_path = path("limited" + std::to_string(limit));
                const std::optional<Error> error = thrown_error([&] {
                  TestState state(limited_path);
                  for (int i = 0; i < 1000; ++i)
                    state.apply({{"filling" + std::to_string(i), std::string(50'000, 'f')}});
                });
                if (!error || error->kind() != ErrorKind::limit) return describe(error);
                if (limit < 2'000'000) return "";
                TestState state(limited_path);
                return state.get("filling0") == std::string(50'000, 'f') && state.check().empty()
                           ? ""
                           : "not readable";
              }),
              "")
        << limit;
  }
}

// Where address space is limited, a state may grow until its two mappings, those of readers and of
// the writer, fill it.
TEST_F(FileTest, more_address_space_means_more_state) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers need more address space than the limit";
#endif
  std::uintmax_t bytes_before = 0;
  for (const std::uint64_t spare_mib : {64, 90, 128, 150}) {
    const std::string limited_path = path("limited" + std::to_string(spare_mib));
    EXPECT_EQ(run_in_child([&]() -> std::string {
                std::ifstream pages("/proc/self/statm");
                std::uint64_t used = 0;
                pages >> used;
                const rlim_t limit = used * 4096 + (spare_mib << 20);
                const struct rlimit address_limit = {limit, limit};
                ::setrlimit(RLIMIT_AS, &address_limit);
                TestState state(limited_path);
                const std::optional<Error> error = thrown_error([&] {
                  for (int i = 0; i < 2000; ++i) {
                    state.apply({{"key" + std::to_string(i), std::string(100'000, 'v')}});
                    state->switch_if_replaced();
                    if (state.get("key0") != std::string(100'000, 'v'))
                      throw std::runtime_error("not readable");
                  }
                });
                return error && error->kind() == ErrorKind::limit && error->system_error() == ENOMEM
                           ? ""
                           : describe(error);
              }),
              "")
        << spare_mib;
    const std::uintmax_t bytes = fs::file_size(limited_path);
    EXPECT_GT(bytes, bytes_before) << spare_mib;
    EXPECT_GE(bytes, (spare_mib << 20) / 3) << spare_mib;
    bytes_before = bytes;
  }
}

TEST_F(FileTest, opening_leaves_most_of_limited_address_space_to_the_application) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers need more address space than the limit";
#endif
  EXPECT_EQ(run_in_child([&]() -> std::string {
              std::ifstream pages("/proc/self/statm");
              std::uint64_t used = 0;
              pages >> used;
              const rlim_t limit = used * 4096 + (200UL << 20);
              const struct rlimit address_limit = {limit, limit};
              ::setrlimit(RLIMIT_AS, &address_limit);
              const TestState state(path(), options_at(path(), std::uint64_t{64} << 30));
              void* const half =
                  ::mmap(nullptr, 100UL << 20, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
              return half == MAP_FAILED ? "not even half is left" : "";
            }),
            "");
}

// Such a process may lock only so much: mmap() fails with EAGAIN.
TEST_F(OwnerTest, process_that_locks_its_memory_gets_what_it_may_lock) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers need more memory than the limit";
#endif
  ASSERT_EQ(::chmod(directory_.path().c_str(), 01777), 0);
  EXPECT_EQ(run_in_child([&]() -> std::string {
              const rlim_t limit = 48UL << 20;
              const struct rlimit locked = {limit, limit};
              ::setrlimit(RLIMIT_MEMLOCK, &locked);
              if (::setgid(other_user_id) != 0 || ::setuid(other_user_id) != 0 ||
                  ::mlockall(MCL_FUTURE) != 0)
                return "cannot lock memory";
              TestState state(path());
              for (int i = 0; i < 50; ++i)
                state.apply({{"key" + std::to_string(i), std::string(50'000, 'v')}});
              return state.get("key49") == std::string(50'000, 'v') ? "" : "not readable";
            }),
            "");
}

TEST_F(FileTest, full_state_names_the_limit_that_it_reached) {
  const auto error_within = [&](const std::string& name, std::uint64_t bytes_max, int resource,
                                rlim_t limit) {
    return run_in_child([&, resource]() -> std::string {
      TestState state(path(name), options_at(path(name), bytes_max));
      const struct rlimit limits = {limit, limit};
      if (limit != 0) ::setrlimit(static_cast<__rlimit_resource>(resource), &limits);
      const auto error = thrown_error([&] {
        for (int i = 0; i < 1000; ++i)
          state.apply({{"key" + std::to_string(i), std::string(50'000, 'v')}});
      });
      return std::to_string(error ? error->system_error() : 0) + " " + describe(error);
    });
  };
  const std::string too_large = std::to_string(EFBIG) + " limit: ";
  EXPECT_THAT(error_within("a", 4 << 20, RLIMIT_FSIZE, 0),
              AllOf(StartsWith(too_large), HasSubstr("raise Options::state_bytes_max")));
  EXPECT_THAT(error_within("b", 1 << 30, RLIMIT_FSIZE, 4 << 20),
              AllOf(StartsWith(too_large), HasSubstr("ulimit -f")));
}

TEST_F(FileTest, state_at_its_maximum_size_stays_readable) {
  TestState state(path(), options_at(path(), 4 << 20));
  UpdateId id = 0;
  std::optional<Error> error;
  for (int i = 0; !error; ++i) {
    ASSERT_LT(i, 1000);
    error = thrown_error([&] {
      id = state.apply({{"key" + std::to_string(i), std::string(40'000, 'v')}});
    });
  }
  EXPECT_EQ(error->kind(), ErrorKind::limit);
  EXPECT_NE(std::string(error->what()).find("state_bytes_max"), std::string::npos) << error->what();
  EXPECT_EQ(state->applied_id(), id);
  EXPECT_EQ(state.get("key0"), std::string(40'000, 'v'));
  EXPECT_EQ(state.check(), std::vector<std::string>{});

  // An update that is too large fails on each attempt. Then the log has a smaller one in its place.
  for (int i = 0; i < 5; ++i) {
    expect_error(ErrorKind::limit, [&] {
      state.apply({{"large", std::string(5'000'000, 'l')}, {"key1", "x"}});
    });
    EXPECT_EQ(state.get("key1"), std::string(40'000, 'v'));
  }
  state.apply({{"small", "1"}});
  for (int i = 0; i < 40; ++i) state.apply({{"key" + std::to_string(i), std::nullopt}});
  for (int i = 0; i < 40; ++i) state.apply({{"key" + std::to_string(i), std::string(10'000, 'w')}});
  EXPECT_EQ(state.get("key7"), std::string(10'000, 'w'));
  EXPECT_EQ(state.check(), std::vector<std::string>{});
}

// The space that a failed update took is available to the next one.
TEST_F(FileTest, failed_update_returns_its_space) {
  TestState state(path(), options_at(path(), 6 << 20));
  state.apply({{"a", "1"}});
  for (int i = 0; i < 10; ++i) {
    std::vector<testing::TestChange> much;
    for (int k = 0; k < 200; ++k)
      much.push_back({"much" + std::to_string(k), std::string(40'000, 'm')});
    expect_error(ErrorKind::limit, [&] { state.apply(much); });
    EXPECT_EQ(state.contents(), (Contents{{"a", "1"}}));
  }
  std::vector<testing::TestChange> enough;
  for (int k = 0; k < 80; ++k)
    enough.push_back({"enough" + std::to_string(k), std::string(40'000, 'e')});
  state.apply(enough);
  EXPECT_EQ(state->info().item_count, 81U);
  EXPECT_EQ(state.check(), std::vector<std::string>{});
}

TEST_F(FileTest, reader_with_little_address_space_gets_limit_not_corrupt) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers need more address space than the limit";
#endif
  TestState state(path());
  state.apply({{"a", "1"}});
  const std::string fault = run_in_child([&]() -> std::string {
    std::ifstream pages("/proc/self/statm");
    std::uint64_t used = 0;
    pages >> used;
    // The child inherits the parent's mapping. Allow a few MiB more.
    const rlim_t limit = used * 4096 + (24UL << 20);
    const struct rlimit address_limit = {limit, limit};
    ::setrlimit(RLIMIT_AS, &address_limit);
    const TestState child_state(path());
    if (child_state.get("a") != "1") return "not readable";
    const ::pid_t writer = ::fork();
    if (writer == 0) ::_exit(0);
    for (int i = 0; i < 100; ++i) {
      const std::optional<Error> error = thrown_error([&] {
        state.apply({{"filling" + std::to_string(i), std::string(900'000, 'f')},
                     {"b" + std::to_string(i), "2"}});
      });
      if (error && error->kind() != ErrorKind::limit) return "apply: " + describe(error);
      const std::optional<Error> reading = thrown_error([&] {
        std::string value;
        child_state->get("b" + std::to_string(i), value);
        child_state->get("a", value);
      });
      if (reading && reading->kind() != ErrorKind::limit) return "get: " + describe(reading);
    }
    return "";
  });
  EXPECT_EQ(fault, "");
}

// Two states of one file with different maximum sizes. The one with the smaller maximum maps the
// file again when the file has outgrown its mapping.
TEST_F(FileTest, reader_follows_a_file_that_outgrew_its_mapping) {
  TestState large(path());
  large.apply({{"a", "1"}});
  const TestState small(path(), options_at(path(), 2 << 20));
  ASSERT_EQ(small.get("a"), "1");
  const View before = small.view();
  for (int i = 0; i < 100; ++i) {
    large.apply(
        {{"filling" + std::to_string(i), std::string(100'000, 'f')}, {"last", std::to_string(i)}});
    ASSERT_EQ(small.get("last"), std::to_string(i));
    const View view = small.view();
    ASSERT_EQ(view.get("filling" + std::to_string(i)), std::string(100'000, 'f'));
  }
  EXPECT_EQ(before.id(), 1U);
}

TEST_F(FileTest, pin_of_file_that_outgrew_its_mapping_may_wait) {
  TestState large(path());
  large.apply({{"a", "1"}});
  const TestState small(path(), options_at(path(), 2 << 20));
  ASSERT_FALSE(small->may_wait_for_file());
  for (int i = 0; i < 100; ++i)
    large.apply({{"filling" + std::to_string(i), std::string(100'000, 'f')}});

  EXPECT_TRUE(small->may_wait_for_file());
  small.view();
  EXPECT_FALSE(small->may_wait_for_file());
}

TEST_F(FileTest, plain_reads_see_growth_beside_old_views) {
  TestState state(path());
  const TestState other(path());
  state.apply({{"a", "1"}});
  const View first = other.view();
  for (int i = 0; i < 100; ++i) {
    state.apply(
        {{"filling" + std::to_string(i), std::string(100'000, 'f')}, {"last", std::to_string(i)}});
    ASSERT_EQ(other.get("last"), std::to_string(i));
  }
}

// --- Removed, replaced, copied ---

TEST_F(FileTest, removed_or_replaced_lock_file_stops_writing) {
  TestState state(path());
  state.apply({{"a", "1"}});
  const std::string lock = path() + ".lock";

  ASSERT_EQ(::rename(lock.c_str(), path("away").c_str()), 0);
  expect_error(
      ErrorKind::corrupt,
      [&] {
        state.apply({{"a", "2"}});
      },
      "lock file was removed or replaced");
  EXPECT_EQ(state.get("a"), "1");

  TestState(path()).apply({{"a", "2"}});
  expect_error(
      ErrorKind::corrupt,
      [&] {
        state.apply({{"a", "3"}});
      },
      "lock file was removed or replaced");
  EXPECT_EQ(state.get("a"), "2");

  ASSERT_EQ(::rename(path("away").c_str(), lock.c_str()), 0);
  state.apply({{"a", "3"}});
  EXPECT_EQ(state.get("a"), "3");
}

TEST_F(FileTest, removed_state_stays_readable_and_can_be_rebuilt) {
  const TestState state(path());
  TestState(path()).apply({{"a", "1"}});
  const View before = state.view();
  ::unlink(path().c_str());

  EXPECT_EQ(state.get("a"), "1");
  expect_error(ErrorKind::corrupt, [&] { state->begin_write(TestState::deadline()); });
  state->switch_if_replaced();
  EXPECT_FALSE(state->usable());
  EXPECT_EQ(state.get("a"), "1");

  state->install(*state->begin_build(testing::test_uuid, "test:"));

  EXPECT_TRUE(state->usable());
  EXPECT_EQ(state.get("a"), std::nullopt);
  EXPECT_EQ(before.get("a"), "1");
}

TEST_F(FileTest, info_describes_a_new_file_once_installed) {
  const TestState asked_for_info(path());
  const TestState asked_for_id(path());
  TestState(path()).apply({{"a", "1"}});
  ASSERT_EQ(asked_for_id->applied_id(), 1U);
  ASSERT_EQ(asked_for_info->info().item_count, 1U);

  const TestState installer(path());
  const std::unique_ptr<StateBuilder> builder = installer->begin_build(testing::test_uuid, "test:");
  builder->finish_load(5, 7);
  ASSERT_TRUE(installer->install(*builder));

  EXPECT_EQ(asked_for_id->applied_id(), 5U);
  EXPECT_EQ(asked_for_info->info().item_count, 0U);
}

// An installer sets the superseded bit of the old file first. It may die before it renames the new
// file into place.
TEST_F(FileTest, superseded_bit_of_a_dead_installer_is_cleared) {
  TestState state(path());
  state.apply({{"a", "1"}});
  const auto is_superseded = [&] {
    std::uint64_t generation = 0;
    const FileDescriptor file = open_file(path(), O_RDONLY);
    EXPECT_EQ(::pread(file.number(), &generation, sizeof generation,
                      offsetof(Header, reclaim_generation)),
              8);
    return (generation & superseded_bit) != 0;
  };
  set_superseded_bit(open_file(path(), O_RDWR), path(), true);
  ASSERT_TRUE(is_superseded());
  EXPECT_TRUE(state->usable());
  EXPECT_EQ(state.get("a"), "1");
  {
    // The bit stays while another process holds the install lock, and so may be installing.
    const TestState other(path());
    const HeldLock installing = other->lock(StateLock::install, TestState::deadline());
    state->switch_if_replaced();
    EXPECT_TRUE(is_superseded());
  }
  state->switch_if_replaced();
  EXPECT_FALSE(is_superseded());
  EXPECT_TRUE(state->usable());
  EXPECT_EQ(state.get("a"), "1");
}

// A header that claims more bytes than the file has makes the state unusable.
TEST_F(FileTest, state_with_impossible_file_size_is_unusable) {
  TestState state(path());
  state.apply({{"a", "1"}});
  const FileDescriptor file = open_file(path(), O_RDWR);
  const std::uint64_t bytes = std::uint64_t{1} << 60;
  ASSERT_EQ(::pwrite(file.number(), &bytes, sizeof bytes, offsetof(Header, file_bytes)), 8);
  state->switch_if_replaced();
  EXPECT_FALSE(state->usable());
  EXPECT_NE(state->unusable_reason().find("cut short"), std::string::npos)
      << state->unusable_reason();
}

TEST_F(FileTest, new_file_catches_up_before_it_is_installed) {
  TestState state(path());
  for (int i = 0; i < 3; ++i) state.apply({{"a", std::to_string(i)}});
  int calls = 0;
  const auto install = [&](UpdateId as_of) {
    const std::unique_ptr<StateBuilder> builder = state->begin_build(testing::test_uuid, "test:");
    builder->finish_load(as_of, 7);
    state->install(*builder, InstallPolicy::always, [&] {
      ++calls;
      const TestState other(path());
      EXPECT_THROW(other->begin_write(Deadline(std::chrono::milliseconds(0))), Error);
      Update update;
      update.id = as_of + 1;
      update.changes.push_back(Change::set("a", "caught up"));
      builder->apply(update);
    });
  };
  install(2);
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(state->applied_id(), 3U);
  EXPECT_EQ(state.get("a"), "caught up");
  install(3);
  EXPECT_EQ(calls, 1) << "the new file was already current";
}

TEST_F(FileTest, file_that_is_behind_is_installed_only_by_always) {
  TestState state(path());
  for (int i = 0; i < 3; ++i) state.apply({{"a", std::to_string(i)}});
  for (const auto policy : {InstallPolicy::unless_behind, InstallPolicy::always}) {
    const bool is_installed = policy == InstallPolicy::always;
    const std::unique_ptr<StateBuilder> builder = state->begin_build(testing::test_uuid, "test:");
    builder->finish_load(2, 7);
    EXPECT_EQ(state->install(*builder, policy), is_installed);
    EXPECT_EQ(state->applied_id(), is_installed ? 2U : 3U);
  }
  const std::unique_ptr<StateBuilder> builder = state->begin_build(testing::test_uuid, "test:");
  builder->finish_load(4, 7);
  EXPECT_TRUE(state->install(*builder, InstallPolicy::unless_behind));
  EXPECT_EQ(state->applied_id(), 4U);
}

// To make room for a new one.
TEST_F(FileTest, state_is_removed_only_if_nothing_else_has_it_open) {
  TestState state(path());
  state.apply({{"a", "1"}});
  {
    const View view = state.view();
    EXPECT_FALSE(state->remove_if_unused(TestState::deadline()));
    EXPECT_EQ(view.get("a"), "1");
  }
  {
    const testing::SharedWithChildren<std::atomic<bool>> is_open;
    testing::ChildProcess other([&]() -> std::string {
      const TestState same(path());
      *is_open = true;
      for (;;) ::pause();
    });
    while (!*is_open) std::this_thread::yield();
    EXPECT_FALSE(state->remove_if_unused(TestState::deadline()));
  }
  EXPECT_TRUE(state->usable());
  EXPECT_EQ(state.get("a"), "1");
  state.apply({{"a", "2"}});

  EXPECT_TRUE(state->remove_if_unused(TestState::deadline()));

  EXPECT_FALSE(fs::exists(path()));
  EXPECT_FALSE(state->usable());
  EXPECT_THAT(mappings_of(path()), ::testing::IsEmpty());
  expect_error(
      ErrorKind::unavailable, [&] { state.get("a"); }, "removed to make room", path());
  state->install(*state->begin_build(testing::test_uuid, "test:"));
  EXPECT_EQ(state.get("a"), std::nullopt);
}

TEST_F(FileTest, reads_during_a_removal_wait_and_then_fail) {
  TestState state(path());
  state.apply({{"a", "1"}});
  std::atomic<bool> stop{false};
  std::atomic<int> reads{0};
  std::thread reader([&] {
    std::string value;
    while (!stop) {
      try {
        EXPECT_TRUE(state->get("a", value));
        EXPECT_EQ(value, "1");
        ++reads;
      } catch (const Error& error) {
        EXPECT_EQ(error.kind(), ErrorKind::unavailable) << error.what();
      }
    }
  });
  while (reads < 100) std::this_thread::yield();
  EXPECT_TRUE(state->remove_if_unused(TestState::deadline()));
  stop = true;
  reader.join();
}

TEST_F(FileTest, state_moved_away_and_back_stays_usable) {
  TestState state(path());
  state.apply({{"a", "1"}});
  ASSERT_EQ(::rename(path().c_str(), path("away").c_str()), 0);
  state->switch_if_replaced();
  EXPECT_FALSE(state->usable());

  ASSERT_EQ(::rename(path("away").c_str(), path().c_str()), 0);
  state.apply({{"a", "2"}});

  EXPECT_TRUE(state->usable());
  EXPECT_EQ(state.get("a"), "2");
}

TEST_F(FileTest, replaced_state_is_followed) {
  TestState state(path());
  state.apply({{"a", "1"}});
  const TestState reader(path());
  const View before = reader.view();
  { TestState(path("other.state")).apply({{"a", "other"}, {"b", "2"}}); }
  ASSERT_EQ(::rename(path("other.state").c_str(), path().c_str()), 0);

  state.apply({{"c", "3"}});

  EXPECT_EQ(state.contents(), (Contents{{"a", "other"}, {"b", "2"}, {"c", "3"}}));
  reader->switch_if_replaced();
  EXPECT_EQ(reader.contents(), (Contents{{"a", "other"}, {"b", "2"}, {"c", "3"}}));
  EXPECT_EQ(TestState::contents(before), (Contents{{"a", "1"}}));
}

TEST_F(FileTest, install_does_not_replace_a_file_that_is_no_state) {
  const std::unique_ptr<State> state = State::open(options_at(path()));
  ASSERT_FALSE(state->usable());
  const std::unique_ptr<StateBuilder> builder = state->begin_build(testing::test_uuid, "test:");
  write_file(path(), "a letter to my aunt");

  expect_error(
      ErrorKind::corrupt, [&] { state->install(*builder); }, path());

  EXPECT_EQ(file_contents(path()), "a letter to my aunt");
}

TEST_F(FileTest, copy_of_a_clean_state_is_adopted) {
  {
    TestState state(path());
    for (int i = 0; i < 300; ++i)
      state.apply(
          {{"key" + std::to_string(i % 100), std::string(static_cast<std::size_t>(i * 10), 'v')},
           {"key" + std::to_string(i % 7), std::nullopt}});
  }
  TestState state(path());
  std::filesystem::copy_file(path(), path("copy.state"));

  TestState copy(path("copy.state"));  // the original is open meanwhile

  EXPECT_TRUE(copy->adopted());
  EXPECT_EQ(copy.contents(), state.contents());
  EXPECT_EQ(copy->info().digest, state->info().digest);
  EXPECT_NE(copy->info().state_id, state->info().state_id);
  EXPECT_EQ(copy.check(), std::vector<std::string>{});
  copy.apply({{"copy", "1"}});
  state.apply({{"original", "1"}});
  EXPECT_EQ(copy.get("original"), std::nullopt);
  EXPECT_EQ(state.get("copy"), std::nullopt);
  EXPECT_FALSE(TestState(path("copy.state"))->adopted());
  EXPECT_EQ(state.check(), std::vector<std::string>{});
}

TEST_F(FileTest, copy_is_adopted_beside_a_process_that_reads_it) {
  const std::string copy = path("copy.state");
  {
    TestState state(path());
    for (int i = 0; i < 300; ++i)
      state.apply({{"key" + std::to_string(i % 100), std::string(3'000, 'v')},
                   {"key" + std::to_string(i % 7), std::nullopt}});
  }
  fs::copy_file(path(), copy);
  StateOptions read_only = options_at(copy, std::uint64_t{64} << 30);
  read_only.read_only = true;
  const std::unique_ptr<State> reader = State::open(read_only);
  ASSERT_TRUE(reader->usable()) << reader->unusable_reason();
  const View view(reader->pin());
  const Contents before = TestState::contents(view);
  const std::uint64_t inode = inode_of(copy);

  TestState writer(copy);

  EXPECT_TRUE(writer->adopted());
  EXPECT_EQ(inode_of(copy), inode) << "it was built again";
  for (int i = 0; i < 3'000; ++i)
    writer.apply({{"key" + std::to_string(i % 50), std::string(3'000, 'w')},
                  {"key" + std::to_string(50 + i % 50), std::nullopt}});
  EXPECT_EQ(TestState::contents(view), before);
  EXPECT_EQ(TestState::contents(View(reader->pin())), writer.contents());
  std::string value;
  EXPECT_TRUE(reader->get("key1", value));
  EXPECT_EQ(value, std::string(3'000, 'w'));
  EXPECT_EQ(writer.check(), std::vector<std::string>{});
  const std::int64_t now_ns = boot_time_ns();
  writer->record_poll(now_ns, 7);
  EXPECT_EQ(reader->last_poll_time_ns(), now_ns);
  EXPECT_FALSE(reader->was_polled_by_another_clock());
}

TEST_F(FileTest, copy_is_adopted_once_a_process_has_verified_it_for_itself) {
  const std::string copy = path("copy.state");
  { TestState(path()).apply({{"a", "1"}}); }
  fs::copy_file(path(), copy);
  FileDescriptor reader = open_file(copy, O_RDONLY);
  ASSERT_TRUE(mark_verifying(reader.number()));
  EXPECT_THAT(
      State::open(options_at(copy), Deadline(std::chrono::milliseconds(20)))->unusable_reason(),
      HasSubstr("was still verifying it"));
  std::thread verifying([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    mark_reading(reader.number());
    unmark_verifying(reader.number());
  });
  EXPECT_TRUE(TestState(copy)->adopted());
  verifying.join();
}

TEST_F(FileTest, copy_is_not_adopted_while_its_owner_runs) {
  const std::string copy = path("copy.state");
  { TestState(path()).apply({{"a", "1"}}); }
  fs::copy_file(path(), copy);
  std::optional<FileDescriptor> user(open_file(copy, O_RDONLY));
  ASSERT_TRUE(mark_in_use(user->number()));
  EXPECT_THAT(State::open(options_at(copy))->unusable_reason(),
              HasSubstr("other processes use it"));
  // Not in use, but just being opened.
  std::thread opening([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    user.reset();
  });
  EXPECT_TRUE(State::open(options_at(copy))->usable());
  opening.join();
}

TEST_F(FileTest, copy_made_during_writes_is_correct_or_rejected) {
  TestState state(path());
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    for (int i = 0; !stop; ++i) {
      const std::unique_ptr<StateWriter> held = state->begin_write(TestState::deadline());
      for (int k = 0; k < 3; ++k)
        TestState::apply(*held, {{"first", std::to_string(i)},
                                 {"key" + std::to_string(i % 500), std::string(2000, 'v')},
                                 {"last", std::to_string(i)}});
      held->info();
    }
  });
  int adopted = 0;
  int rejected = 0;
  for (int i = 0; i < 60; ++i) {
    const std::string copy = path("copy" + std::to_string(i));
    write_file(copy, file_contents(path()));
    const std::unique_ptr<State> opened = State::open(options_at(copy));
    if (!opened->usable()) {
      ++rejected;
      continue;
    }
    ++adopted;
    std::string first;
    std::string last;
    EXPECT_EQ(opened->get("first", first), opened->get("last", last));
    EXPECT_EQ(first, last);
    EXPECT_EQ(opened->check(TestState::deadline(), {}), std::vector<std::string>{});
    std::filesystem::remove(copy);
  }
  stop = true;
  writer.join();
  std::printf("copies of a state being written: adopted=%d rejected=%d\n", adopted, rejected);
}

// A damaged copy that gets the inode of the removed original. File systems reuse inodes.
TEST_F(FileTest, copy_with_the_inode_of_the_original_is_detected) {
  { TestState(path()).apply({{"a", "the correct value"}}); }
  std::string damaged = file_contents(path());
  damaged.replace(damaged.find("the correct value"), 3, "no!");
  const std::uint64_t inode = inode_of(path());
  ::unlink(path().c_str());
  std::vector<std::string> others;
  for (int i = 0; i < 3000; ++i) {
    const std::string candidate = path("candidate" + std::to_string(i));
    write_file(candidate, i == 0 ? damaged : "");
    if (inode_of(candidate) == inode) {
      write_file(candidate, damaged);
      ASSERT_EQ(::rename(candidate.c_str(), path().c_str()), 0);
      break;
    }
    others.push_back(candidate);
  }
  if (inode_of(path()) != inode) {
    std::printf("no file got the same inode\n");
    write_file(path(), damaged);
  }
  const std::unique_ptr<State> state = State::open(options_at(path()));

  EXPECT_FALSE(state->usable());
  EXPECT_NE(state->unusable_reason().find("does not verify"), std::string::npos)
      << state->unusable_reason();
}

TEST_F(FileTest, temporary_files_of_dead_builders_are_removed) {
  TestState state(path());
  ASSERT_EQ(run_in_child([&]() -> std::string {
              const TestState child_state(path());
              const auto builder = child_state->begin_build(testing::test_uuid, "test:");
              ::raise(SIGKILL);
              return "";
            }),
            "died of signal 9");
  const auto count = [&] {
    int found = 0;
    for (const auto& entry : std::filesystem::directory_iterator(directory_.path()))
      found += entry.path().string().find(".building-") != std::string::npos;
    return found;
  };
  ASSERT_EQ(count(), 1);

  const auto first = state->begin_build(testing::test_uuid, "test:");
  EXPECT_EQ(count(), 1);
  const auto second = state->begin_build(testing::test_uuid, "test:");
  EXPECT_EQ(count(), 2);
}

TEST_F(FileTest, replaced_file_is_unmapped_after_its_last_view) {
  TestState state(path());
  state.apply({{"a", "1"}});
  const TestState reader(path());
  ASSERT_EQ(reader.get("a"), "1");
  std::optional<View> before(reader.view());
  {
    const auto builder = state->begin_build(testing::test_uuid, "test:");
    const Item items[] = {{"a", "2"}, {"b", "2"}};
    builder->load(items, 7);
    builder->finish_load(7, 77);
    state->install(*builder);
  }
  EXPECT_EQ(state->applied_id(), 7U);
  EXPECT_EQ(reader.get("a"), "2");
  const View replaced = reader.view();
  EXPECT_EQ(replaced.get("b"), "2");
  EXPECT_EQ(before->get("a"), "1");
  EXPECT_EQ(TestState::contents(*before), (Contents{{"a", "1"}}));
  state->switch_if_replaced();
  reader->switch_if_replaced();
  EXPECT_EQ(mappings_of(path() + " (deleted)").size(), 2U) << "of the view, and of its lock";

  before.reset();
  reader->switch_if_replaced();
  EXPECT_TRUE(mappings_of(path() + " (deleted)").empty());
  EXPECT_LE(mappings_of(path()).size(), 4U);
}

// An installer may die at any point. A reader must find the new file, or stay on the old one if
// that is still at the path.
TEST_F(FileTest, reader_finds_current_file_after_its_installer_died) {
  for (int i = 0; i < 60; ++i) {
    const std::string own_path = path("died" + std::to_string(i));
    TestState state(own_path);
    state.apply({{"a", "1"}});
    const TestState reader(own_path);
    ASSERT_EQ(reader.get("a"), "1");
    const std::uint64_t inode = inode_of(own_path);
    {
      testing::ChildProcess installer([&]() -> std::string {
        const auto builder = state->begin_build(testing::test_uuid, "test:");
        const Item items[] = {{"a", "2"}};
        builder->load(items, 2);
        builder->finish_load(2, 2);
        state->install(*builder);
        return "";
      });
      ::usleep(static_cast<useconds_t>(i * 40));
      installer.kill(SIGKILL);
      installer.wait();
    }
    const bool replaced = inode_of(own_path) != inode;
    ASSERT_EQ(reader.get("a"), replaced ? "2" : "1") << i;
    if (!replaced) {
      ASSERT_EQ(state.apply({{"a", "3"}}), 2U);
      ASSERT_TRUE(reader->usable());
      ASSERT_EQ(reader.get("a"), "3");
    }
    std::filesystem::remove(own_path);
  }
}

TEST_F(FileTest, removed_state_is_unusable_for_every_reader) {
  TestState state(path());
  state.apply({{"a", "1"}});
  const TestState reader(path());
  const View before = reader.view();

  state->remove(TestState::deadline());

  EXPECT_FALSE(reader->usable());
  EXPECT_FALSE(std::filesystem::exists(path()));
  EXPECT_EQ(before.get("a"), "1");
  EXPECT_EQ(reader.get("a"), "1");
  TestState(path()).apply({{"a", "2"}});
  EXPECT_EQ(reader.get("a"), "2") << "a reader sees completed writes after a removal";
  state->remove(TestState::deadline());
  state->remove(TestState::deadline());
}

// A process that has read the boot id keeps it, so this needs another program.
TEST_F(FileTest, missing_boot_id_gives_error_invalid) {
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "NOT TESTED: AddressSanitizer finds the stack by /proc";
#endif
  const std::string program = WHYCACHE_TEST_BIN "/whycache";
  if (::geteuid() != 0 || ::access(program.c_str(), X_OK) != 0)
    GTEST_SKIP() << "NOT TESTED: needs root and the command line";
  TestState state(path());
  state.apply({{"a", "1"}});
  const std::string command = "unshare -m sh -c 'mount -t tmpfs none /proc && exec " + program +
                              " get a --state " + path() + "' 2>&1";
  FILE* const output = ::popen(command.c_str(), "r");
  ASSERT_NE(output, nullptr);
  std::string text;
  for (int c = std::fgetc(output); c != EOF; c = std::fgetc(output)) text += static_cast<char>(c);
  EXPECT_NE(::pclose(output), 0);
  EXPECT_NE(text.find("cannot read the kernel's boot id"), std::string::npos) << text;
  state.apply({{"a", "2"}});
  EXPECT_EQ(state.get("a"), "2");
}

}  // namespace
}  // namespace whycache
