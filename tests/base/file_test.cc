#include "base/file.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include <cerrno>
#include <csignal>
#include <string>

#include "support/child_process.h"
#include "support/sanitizers.h"
#include "support/temporary_directory.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

using testing::expect_error;

class File : public ::testing::Test {
 protected:
  std::string path(const std::string& name) const { return directory_.file(name); }
  // Creates a directory with these permission bits.
  std::string make_directory(const std::string& name, mode_t mode) const {
    EXPECT_EQ(::mkdir(path(name).c_str(), 0700), 0);
    EXPECT_EQ(::chmod(path(name).c_str(), mode), 0);
    return path(name);
  }
  void write_file(const std::string& name, std::string_view bytes) const {
    const FileDescriptor file = open_file(path(name), O_WRONLY | O_CREAT | O_TRUNC, 0600);
    write_all(file.number(), bytes, path(name));
  }

  testing::TemporaryDirectory directory_;
};

bool is_open(int descriptor) { return ::fcntl(descriptor, F_GETFD) >= 0; }

TEST_F(File, written_bytes_are_read_back) {
  std::string bytes(200'000, 'x');
  bytes[100'000] = '\0';
  write_file("file", bytes);
  EXPECT_EQ(read_whole_file(path("file"), bytes.size()), bytes);

  write_file("empty", "");
  EXPECT_EQ(read_whole_file(path("empty"), 0), "");
}

TEST_F(File, file_longer_than_bytes_max_is_corrupt) {
  write_file("file", "0123456789");
  expect_error(
      ErrorKind::corrupt, [&] { read_whole_file(path("file"), 9); }, "file is too long",
      path("file"), "bytes_max=9");
}

TEST_F(File, absent_file_gives_error_or_empty_descriptor) {
  expect_error(
      ErrorKind::invalid, [&] { open_file(path("absent"), O_RDONLY); },
      "cannot open file: path=" + path("absent"));
  EXPECT_FALSE(open_file_if_exists(path("absent"), O_RDONLY));
  EXPECT_EQ(testing::thrown_error([&] { open_file(path("absent"), O_RDONLY); })->system_error(),
            ENOENT);
}

TEST_F(File, symbolic_link_is_not_followed) {
  write_file("target", "secret");
  ASSERT_EQ(::symlink(path("target").c_str(), path("link").c_str()), 0);
  ASSERT_EQ(::symlink(path("absent").c_str(), path("dangling").c_str()), 0);

  for (const char* link : {"link", "dangling"}) {
    expect_error(
        ErrorKind::invalid, [&] { open_file(path(link), O_RDWR | O_CREAT, 0600); },
        "a symbolic link is in its place");
    expect_error(
        ErrorKind::invalid, [&] { open_file_if_exists(path(link), O_RDWR); },
        "a symbolic link is in its place");
  }
  EXPECT_FALSE(open_file_if_exists(path("absent"), O_RDONLY)) << "the link's target was created";
}

TEST_F(File, descriptor_is_closed_on_exec) {
  write_file("file", "");
  const FileDescriptor file = open_file(path("file"), O_RDONLY);
  EXPECT_NE(::fcntl(file.number(), F_GETFD) & FD_CLOEXEC, 0);
}

TEST_F(File, descriptor_is_closed_by_its_last_owner) {
  write_file("file", "");
  FileDescriptor first = open_file(path("file"), O_RDONLY);
  const int number = first.number();

  FileDescriptor second(std::move(first));
  EXPECT_EQ(second.number(), number);
  EXPECT_TRUE(is_open(number));

  second = FileDescriptor();
  EXPECT_FALSE(is_open(number));

  FileDescriptor third = open_file(path("file"), O_RDONLY);
  const int released = third.release();
  third.close();
  EXPECT_TRUE(is_open(released));
  ::close(released);
}

TEST_F(File, closed_descriptor_cannot_be_written_or_synced) {
  EXPECT_TRUE(testing::thrown_error([] { write_all(-1, "x", "/nowhere"); }).has_value());
  EXPECT_TRUE(testing::thrown_error([] { sync_file(-1, "/nowhere"); }).has_value());
  write_all(-1, "", "/nowhere");  // nothing to write
}

TEST_F(File, full_disk_gives_error_limit) {
  const FileDescriptor full(::open("/dev/full", O_WRONLY | O_CLOEXEC));
  if (!full) GTEST_SKIP() << "no /dev/full";
  expect_error(
      ErrorKind::limit, [&] { write_all(full.number(), "x", "/dev/full"); },
      "cannot write file: path=/dev/full");
}

TEST_F(File, file_and_directory_are_synced) {
  const FileDescriptor file = open_file(path("file"), O_WRONLY | O_CREAT, 0600);
  sync_file(file.number(), path("file"));
  sync_directory(directory_.path());
  expect_error(
      ErrorKind::invalid, [&] { sync_directory(path("file")); }, "cannot open file");
}

TEST_F(File, allocation_reserves_blocks_and_keeps_contents) {
  write_file("file", "written");
  const FileDescriptor file = open_file(path("file"), O_RDWR);

  ASSERT_EQ(allocate_in_file(file.number(), 0, 100'000), 0);

  struct stat status;
  ASSERT_EQ(::fstat(file.number(), &status), 0);
  EXPECT_EQ(status.st_size, 100'000);
  EXPECT_GE(status.st_blocks * 512, 100'000);
  EXPECT_EQ(read_whole_file(path("file"), 100'000), "written" + std::string(100'000 - 7, '\0'));
  EXPECT_EQ(allocate_in_file(file.number(), 200'000, 1000), 0) << "beyond the end";
  EXPECT_EQ(allocate_in_file(file.number(), 0, 1000), 0) << "again";
  ASSERT_EQ(::fstat(file.number(), &status), 0);
  EXPECT_EQ(status.st_size, 201'000);
}

TEST_F(File, failed_allocation_returns_an_errno) {
  write_file("file", "");
  EXPECT_EQ(allocate_in_file(-1, 0, 1000), EBADF);
  EXPECT_EQ(allocate_in_file(open_file(path("file"), O_RDONLY).number(), 0, 1000), EBADF);
  EXPECT_EQ(allocate_in_file(open_file(path("file"), O_RDWR).number(), 0, 0), EINVAL);
}

TEST_F(File, allocation_beyond_file_size_limit_raises_no_signal) {
  write_file("file", std::string(3000, 'x'));
  const FileDescriptor file = open_file(path("file"), O_RDWR);
  struct rlimit before;
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  struct rlimit limit = before;
  limit.rlim_cur = 2000;
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &limit), 0);

  const int beyond = allocate_in_file(file.number(), 0, 5000);
  const int within =
      allocate_in_file(file.number(), 0, 3000);  // the length of the file: it does not grow

  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &before), 0);
  EXPECT_EQ(beyond, EFBIG);
  EXPECT_EQ(within, 0);
}

TEST_F(File, parent_directory_ends_before_the_last_slash) {
  EXPECT_EQ(parent_directory("/var/lib/x.state"), "/var/lib");
  EXPECT_EQ(parent_directory("/x.state"), "/");
  EXPECT_EQ(parent_directory("x.state"), ".");
  EXPECT_EQ(parent_directory("a/b"), "a");
}

TEST_F(File, errno_decides_the_error_kind) {
  EXPECT_EQ(system_error("cannot do it", "/x", EACCES).kind(), ErrorKind::invalid);
  EXPECT_EQ(system_error("cannot do it", "/x", EROFS).kind(), ErrorKind::invalid);
  EXPECT_EQ(system_error("cannot do it", "/x", ENOSPC).kind(), ErrorKind::limit);
  EXPECT_EQ(system_error("cannot do it", "/x", EMFILE).kind(), ErrorKind::limit);
  EXPECT_EQ(system_error("cannot do it", "/x", EIO).kind(), ErrorKind::unavailable);

  const Error error = system_error("cannot do it", "/x", ENOSPC);
  EXPECT_STREQ(error.what(), "cannot do it: path=/x reason=\"No space left on device\"");
  EXPECT_EQ(error.system_error(), ENOSPC);
}

// If the application has closed its standard streams, what it prints later must not get into a file
// of the library.
TEST_F(File, descriptor_never_has_the_number_of_a_standard_stream) {
  write_file("file", "x");
  EXPECT_EQ(testing::run_in_child([&]() -> std::string {
              for (int number = 0; number <= STDERR_FILENO; ++number) ::close(number);
              const FileDescriptor opened = open_file(path("file"), O_RDWR);
              const FileDescriptor if_exists = open_file_if_exists(path("file"), O_RDWR);
              const FileDescriptor taken(::open(path("file").c_str(), O_RDWR | O_CLOEXEC));
              for (const FileDescriptor* file : {&opened, &if_exists, &taken}) {
                if (file->number() <= STDERR_FILENO) return "a standard stream";
                if (::fcntl(file->number(), F_GETFD) != FD_CLOEXEC) return "not close-on-exec";
              }
              for (int number = 0; number <= STDERR_FILENO; ++number) {
                if (is_open(number)) return "left open: " + std::to_string(number);
              }
              return read_to_end(opened, path("file"), 10) == "x" ? "" : "another file";
            }),
            "");
}

TEST_F(File, open_without_descriptor_besides_standard_streams_gives_limit) {
  SKIP_WITHOUT_SPARE_DESCRIPTOR();
  write_file("file", "x");
  EXPECT_EQ(testing::run_in_child([&]() -> std::string {
              ::close(STDIN_FILENO);
              const struct rlimit standard_streams = {STDERR_FILENO + 1, STDERR_FILENO + 1};
              ::setrlimit(RLIMIT_NOFILE, &standard_streams);
              const auto error = testing::thrown_error([&] { open_file(path("file"), O_RDONLY); });
              if (is_open(STDIN_FILENO)) return "left open";
              return error && error->kind() == ErrorKind::limit ? "" : "no error of kind limit";
            }),
            "");
}

TEST_F(File, write_beyond_file_size_limit_gives_error_and_no_signal) {
  EXPECT_EQ(testing::run_in_child([&]() -> std::string {
              const struct rlimit limit = {1000, 1000};
              ::setrlimit(RLIMIT_FSIZE, &limit);
              const auto error =
                  testing::thrown_error([&] { write_file("file", std::string(2000, 'x')); });
              if (!error || error->system_error() != EFBIG) return "no error for EFBIG";
              const FileDescriptor file = open_file(path("other"), O_RDWR | O_CREAT, 0600);
              if (allocate_in_file(file.number(), 0, 2000) != EFBIG) return "allocated";
              sigset_t blocked;
              ::pthread_sigmask(SIG_SETMASK, nullptr, &blocked);
              return ::sigismember(&blocked, SIGXFSZ) == 0 ? "" : "the signal stays blocked";
            }),
            "");
}

TEST_F(File, permissions_beyond_mode_are_removed) {
  write_file("file", "x");
  const FileDescriptor file = open_file(path("file"), O_RDONLY);
  const auto mode = [&] {
    struct stat status;
    return ::fstat(file.number(), &status) == 0 ? status.st_mode & 0777 : 0;
  };
  ASSERT_EQ(::fchmod(file.number(), 0664), 0);
  restrict_mode(file, 0640, path("file"), "state file");
  EXPECT_EQ(mode(), 0640U);
  restrict_mode(file, 0666, path("file"), "state file");
  EXPECT_EQ(mode(), 0640U);
}

TEST_F(File, owner_of_file_is_trusted_by_rule) {
  if (::geteuid() != 0) GTEST_SKIP() << "NOT TESTED: needs root, to change owners";
  constexpr uid_t owner = 12345;
  constexpr uid_t stranger = 23456;
  for (const mode_t mode : {0755U, 01777U, 01775U}) {
    const std::string directory = make_directory("owned" + std::to_string(mode), mode);
    ASSERT_EQ(::chown(directory.c_str(), owner, owner), 0);
    const auto is_trusted = [&](uid_t user, FileOwner trusted) {
      struct stat file {};
      file.st_uid = user;
      return is_trusted_owner(file, directory + "/file", trusted);
    };
    for (const FileOwner trusted : {FileOwner::self_or_root, FileOwner::owner_of_directory}) {
      EXPECT_TRUE(is_trusted(0, trusted)) << mode;
      EXPECT_FALSE(is_trusted(stranger, trusted)) << mode;
    }
    EXPECT_FALSE(is_trusted(owner, FileOwner::self_or_root)) << mode;
    EXPECT_EQ(is_trusted(owner, FileOwner::owner_of_directory), mode == 0755U) << mode;
  }
}

using Directory = File;

TEST_F(Directory, directory_writable_only_for_its_owner_is_safe) {
  check_directory_is_safe(make_directory("mine", 0700));
  check_directory_is_safe(make_directory("readable", 0755));
}

TEST_F(Directory, directory_writable_for_others_is_unsafe_unless_sticky) {
  expect_error(
      ErrorKind::invalid, [&] { check_directory_is_safe(make_directory("group", 0770)); },
      "writable for others", path("group"), "chmod go-w");
  expect_error(
      ErrorKind::invalid, [&] { check_directory_is_safe(make_directory("world", 0777)); },
      "writable for others");
  expect_error(
      ErrorKind::invalid, [&] { check_directory_is_safe(make_directory("other", 0702)); },
      "writable for others");
  check_directory_is_safe(make_directory("sticky", 01777));
}

TEST_F(Directory, directory_of_another_user_is_unsafe) {
  if (::geteuid() != 0) GTEST_SKIP() << "needs root, to change the owner of a directory";
  const std::string theirs = make_directory("theirs", 0755);
  ASSERT_EQ(::chown(theirs.c_str(), 12345, 12345), 0);
  expect_error(
      ErrorKind::invalid, [&] { check_directory_is_safe(theirs); }, "belongs to another user",
      "owner=12345");
}

TEST_F(Directory, absent_path_or_regular_file_is_unsafe) {
  expect_error(
      ErrorKind::invalid, [&] { check_directory_is_safe(path("absent")); },
      "cannot use directory: path=" + path("absent"));
  write_file("file", "");
  expect_error(
      ErrorKind::invalid, [&] { check_directory_is_safe(path("file")); }, "cannot use directory");
}

}  // namespace
}  // namespace whycache
