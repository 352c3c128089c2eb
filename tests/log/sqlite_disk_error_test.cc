// Disks that fail below SQLite: the error names the cause, and is not taken for damage or a limit.
#include <gtest/gtest.h>

#if WHYCACHE_WITH_SQLITE

#include <signal.h>
#include <sqlite3.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <optional>
#include <string>

#include "base/signals.h"
#include "log/child.h"
#include "log/log_helpers.h"
#include "log/root_tests.h"
#include "log/sqlite_log.h"
#include "log/stores.h"
#include "support/program.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

using testing::read_file;
using testing::thrown_error;

constexpr int rollback_journal_version = 3'040'001;
constexpr int wal_version = 3'051'003;

// Replaces pread() and pwrite() of SQLite. While it exists, the `number`-th read or write fails.
class FailingDisk {
 public:
  FailingDisk() {
    for (const char* name : {"pread", "pread64"}) replace(name, failing_read);
    for (const char* name : {"pwrite", "pwrite64"}) replace(name, failing_write);
  }
  FailingDisk(const FailingDisk&) = delete;
  FailingDisk& operator=(const FailingDisk&) = delete;
  ~FailingDisk() {
    reads_left = writes_left = 0;
    sqlite3_vfs* const vfs = sqlite3_vfs_find(nullptr);
    for (const char* name : {"pread", "pread64", "pwrite", "pwrite64"})
      vfs->xSetSystemCall(vfs, name, nullptr);
  }

  static void fail_read(int number, int error) { reads_left = number, error_number = error; }
  static void fail_write(int number, int error) { writes_left = number, error_number = error; }
  // Whether the call that was to fail was not made.
  static bool is_waiting() { return reads_left > 0 || writes_left > 0; }

 private:
  template <typename Function>
  static void replace(const char* name, Function* function) {
    sqlite3_vfs* const vfs = sqlite3_vfs_find(nullptr);
    if (vfs->xGetSystemCall(vfs, name) == nullptr) return;
    require(vfs->xSetSystemCall(vfs, name, reinterpret_cast<sqlite3_syscall_ptr>(function)) ==
                SQLITE_OK,
            name);
  }
  static ssize_t failing_read(int file, void* buffer, size_t bytes, off_t offset) {
    if (reads_left > 0 && --reads_left == 0) return errno = error_number, -1;
    return ::pread(file, buffer, bytes, offset);
  }
  static ssize_t failing_write(int file, const void* buffer, size_t bytes, off_t offset) {
    if (writes_left > 0 && --writes_left == 0) return errno = error_number, -1;
    return ::pwrite(file, buffer, bytes, offset);
  }

  static inline int reads_left = 0;
  static inline int writes_left = 0;
  static inline int error_number = 0;
};

void use_log(SqliteStore& store) {
  const auto log = store.open();
  updates_of(*log);
  parts_of(*log);
  log->append(log->extent().head + 1, "x");
}

void fill(SqliteStore& store) {
  const auto log = store.open();
  append_up_to(*log, 40);
  rewrite(*log, 10, {std::string(3000, 'a'), std::string(9000, 'b')});
}

// Fails one read after the other. Returns how many there were.
int expect_read_errors_named(SqliteStore& store, int error) {
  const FailingDisk disk;
  for (int number = 1;; ++number) {
    SCOPED_TRACE("read " + std::to_string(number));
    FailingDisk::fail_read(number, error);
    const std::optional<Error> thrown = thrown_error([&] { use_log(store); });
    if (FailingDisk::is_waiting()) return number - 1;
    if (!thrown) continue;  // SQLite does without what it could not read
    EXPECT_TRUE(thrown->kind() == ErrorKind::unavailable || thrown->kind() == ErrorKind::uncertain)
        << thrown->what();
    EXPECT_EQ(thrown->system_error(), error) << thrown->what();
    EXPECT_NE(std::string(thrown->what()).find(std::strerror(error)), std::string::npos)
        << thrown->what();
    EXPECT_EQ(std::string(thrown->what()).find("restore"), std::string::npos) << thrown->what();
    use_log(store);
  }
}

TEST(SqliteDiskError, failed_read_with_rollback_journal_is_unavailable_not_corrupt) {
  for (const int error : {EIO, ENXIO, EINVAL}) {
    SqliteStore store(rollback_journal_version);
    fill(store);
    EXPECT_GT(expect_read_errors_named(store, error), 10);
  }
}

TEST(SqliteDiskError, failed_read_in_wal_mode_is_unavailable_not_corrupt) {
  SqliteStore store(wal_version);
  fill(store);
  EXPECT_GT(expect_read_errors_named(store, EIO), 10);
}

TEST(SqliteDiskError, truncated_database_is_still_corrupt) {
  SqliteStore store(rollback_journal_version);
  fill(store);
  write_file(store.path(), read_file(store.path()).substr(0, 8192));
  const std::optional<Error> error = thrown_error([&] { use_log(store); });
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::corrupt) << error->what();
  EXPECT_EQ(error->system_error(), 0);
}

// SIGXFSZ is pending the whole time, since the application blocks it.
TEST(SqliteDiskError, failed_write_is_no_limit_while_sigxfsz_is_pending) {
  for (const int version : {rollback_journal_version, wal_version}) {
    SqliteStore store(version);
    fill(store);
    Child child([&] {
      sigset_t blocked;
      sigemptyset(&blocked);
      sigaddset(&blocked, SIGXFSZ);
      ::pthread_sigmask(SIG_BLOCK, &blocked, nullptr);
      ::raise(SIGXFSZ);
      const FailingDisk disk;
      for (const int expected : {EIO, EFBIG, EDQUOT}) {
        for (int number = 1;; ++number) {
          const auto log = store.open();
          const UpdateId next = log->extent().head + 1;
          FailingDisk::fail_write(number, expected);
          const std::optional<Error> error =
              thrown_error([&] { log->append(next, std::string(5000, 'x')); });
          if (FailingDisk::is_waiting()) break;
          if (!error) continue;
          require((error->kind() == ErrorKind::limit) == (expected == EFBIG), error->what());
          require(error->system_error() == expected, error->what());
        }
      }
      require(ThreadSignalBlocker::is_pending(SIGXFSZ), "still pending");
    });
    EXPECT_EQ(child.wait(), 0);
  }
}

}  // namespace
}  // namespace whycache

#endif
