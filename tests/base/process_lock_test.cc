#include "base/process_lock.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <optional>
#include <string>
#include <thread>

#include "base/file.h"
#include "support/temporary_directory.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

class ProcessLock : public ::testing::Test {
 protected:
  FileDescriptor open() { return open_file(directory_.file("lock"), O_RDWR | O_CREAT, 0600); }

  testing::TemporaryDirectory directory_;
};

// A child process that opens the file by itself, locks a byte, and then waits.
class Holder {
 public:
  Holder(const std::string& path, std::uint64_t byte) {
    int ends[2];
    EXPECT_EQ(::pipe(ends), 0);
    process_ = ::fork();
    if (process_ == 0) {
      FileDescriptor file(::open(path.c_str(), O_RDWR | O_CLOEXEC));
      const char locked = try_lock_byte(file.number(), byte) ? 'y' : 'n';
      if (::write(ends[1], &locked, 1) != 1) ::_exit(1);
      for (;;) ::pause();
    }
    char locked = '?';
    EXPECT_EQ(::read(ends[0], &locked, 1), 1);
    EXPECT_EQ(locked, 'y');
    ::close(ends[0]);
    ::close(ends[1]);
  }
  Holder(const Holder&) = delete;
  Holder& operator=(const Holder&) = delete;
  ~Holder() { kill(); }

  void kill() {
    if (process_ <= 0) return;
    ::kill(process_, SIGKILL);
    ::waitpid(process_, nullptr, 0);
    process_ = -1;
  }

 private:
  pid_t process_;
};

TEST_F(ProcessLock, shared_locks_exclude_only_exclusive_ones) {
  const FileDescriptor first = open();
  const FileDescriptor second = open();
  const FileDescriptor third = open();
  EXPECT_TRUE(try_lock_byte_shared(first.number(), 3));
  EXPECT_TRUE(try_lock_byte_shared(second.number(), 3));
  EXPECT_FALSE(try_lock_byte(third.number(), 3));
  EXPECT_TRUE(is_byte_locked(third.number(), 3));

  unlock_byte(first.number(), 3);
  unlock_byte(second.number(), 3);

  EXPECT_TRUE(try_lock_byte(third.number(), 3));
  EXPECT_FALSE(try_lock_byte_shared(first.number(), 3));
}

TEST_F(ProcessLock, lock_excludes_a_second_open_in_one_process) {
  const FileDescriptor first = open();
  const FileDescriptor second = open();

  EXPECT_TRUE(try_lock_byte(first.number(), 7));
  EXPECT_FALSE(try_lock_byte(second.number(), 7));
  EXPECT_TRUE(is_byte_locked(second.number(), 7));
  EXPECT_FALSE(is_byte_locked(first.number(), 7)) << "the holder's own lock does not count";

  unlock_byte(first.number(), 7);

  EXPECT_FALSE(is_byte_locked(second.number(), 7));
  EXPECT_TRUE(try_lock_byte(second.number(), 7));
}

TEST_F(ProcessLock, single_bytes_are_locked_beyond_the_file_end) {
  const FileDescriptor first = open();
  const FileDescriptor second = open();
  const std::uint64_t far = std::uint64_t{1} << 40;

  EXPECT_TRUE(try_lock_byte(first.number(), far));
  EXPECT_TRUE(try_lock_byte(second.number(), far + 1));
  EXPECT_TRUE(try_lock_byte(second.number(), far - 1));
  EXPECT_FALSE(try_lock_byte(second.number(), far));
}

TEST_F(ProcessLock, lock_is_dropped_only_with_its_open_file) {
  FileDescriptor first = open();
  const FileDescriptor second = open();
  ASSERT_TRUE(try_lock_byte(first.number(), 0));

  // A POSIX lock would be dropped when the process closes any descriptor of the file. This one is
  // not.
  open().close();
  EXPECT_TRUE(is_byte_locked(second.number(), 0));

  first.close();
  EXPECT_TRUE(try_lock_byte(second.number(), 0));
}

TEST_F(ProcessLock, lock_is_dropped_when_its_holder_is_killed) {
  const FileDescriptor file = open();
  Holder holder(directory_.file("lock"), 3);
  EXPECT_TRUE(is_byte_locked(file.number(), 3));
  EXPECT_FALSE(try_lock_byte(file.number(), 3));

  holder.kill();

  EXPECT_FALSE(is_byte_locked(file.number(), 3));
  EXPECT_TRUE(try_lock_byte(file.number(), 3));
}

TEST_F(ProcessLock, sole_use_is_proven_only_without_another_descriptor_or_mapping) {
  const std::string path = directory_.file("lock");
  const FileDescriptor file = open();
  ASSERT_EQ(::ftruncate(file.number(), 4096), 0);
  EXPECT_TRUE(SoleUse(file.number()));
  {
    const FileDescriptor other = open_file(path, O_RDONLY);
    EXPECT_FALSE(SoleUse(file.number()));
  }
  EXPECT_TRUE(SoleUse(file.number()));
  {
    Holder holder(path, 3);
    EXPECT_FALSE(SoleUse(file.number()));
  }
  void* const mapped =
      ::mmap(nullptr, 4096, PROT_READ, MAP_SHARED, open_file(path, O_RDONLY).number(), 0);
  ASSERT_NE(mapped, MAP_FAILED);
  EXPECT_FALSE(SoleUse(file.number()));
  ::munmap(mapped, 4096);
  EXPECT_TRUE(SoleUse(file.number()));
}

// The kernel tells the holder of a lease by a signal.
TEST_F(ProcessLock, open_during_sole_use_waits_and_raises_no_signal) {
  for (const int flags : {O_RDONLY, O_RDONLY | O_NONBLOCK, O_RDWR | O_NONBLOCK}) {
    const FileDescriptor file = open();
    std::optional<SoleUse> sole_use(std::in_place, file.number());
    ASSERT_TRUE(*sole_use);
    std::atomic<bool> opened{false};
    std::thread other([&] {
      open_file(directory_.file("lock"), flags);
      opened = true;
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(30));
    EXPECT_FALSE(opened);
    sole_use.reset();
    other.join();
    EXPECT_TRUE(opened);
  }
}

TEST_F(ProcessLock, nonblocking_open_gives_up_on_a_sole_use_that_lasts) {
  const FileDescriptor file = open();
  const SoleUse sole_use(file.number());
  ASSERT_TRUE(sole_use);
  const auto error =
      testing::thrown_error([&] { open_file(directory_.file("lock"), O_RDONLY | O_NONBLOCK); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::unavailable);
  EXPECT_EQ(error->system_error(), EWOULDBLOCK);
}

TEST_F(ProcessLock, locking_a_closed_descriptor_is_an_error) {
  EXPECT_TRUE(testing::thrown_error([] { try_lock_byte(-1, 0); }).has_value());
  EXPECT_TRUE(testing::thrown_error([] { is_byte_locked(-1, 0); }).has_value());
  unlock_byte(-1, 0);
}

}  // namespace
}  // namespace whycache
