// Logs in files beside RLIMIT_FSIZE: a write that reaches it fails, and no signal ends the process.
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/resource.h>

#include <cerrno>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "base/signals.h"
#include "log/child.h"
#include "log/log_helpers.h"
#include "log/root_tests.h"
#include "log/stores.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

using testing::thrown_error;

// The hard limit stays, so that a process can raise the limit again.
void limit_file_size(rlim_t bytes) {
  rlimit limit{};
  require(::getrlimit(RLIMIT_FSIZE, &limit) == 0, "getrlimit");
  limit.rlim_cur = bytes;
  require(::setrlimit(RLIMIT_FSIZE, &limit) == 0, "setrlimit");
}

bool is_blocked(int signal) {
  sigset_t mask;
  return ::pthread_sigmask(SIG_SETMASK, nullptr, &mask) == 0 && sigismember(&mask, signal) == 1;
}

void require_limit(const std::function<void()>& call) {
  const std::optional<Error> error = thrown_error(call);
  require(error && error->kind() == ErrorKind::limit && error->system_error() == EFBIG,
          error ? error->what() : "no error");
  require(std::string(error->what()).find("RLIMIT_FSIZE") != std::string::npos, error->what());
  require(!ThreadSignalBlocker::is_pending(SIGXFSZ) && !is_blocked(SIGXFSZ),
          "nothing remains of the signal");
}

// In a child, which the signal would kill.
void expect_limit_without_signal(LogStore& store) {
  append_up_to(*store.open(), 3);
  Child child([&] {
    const auto log = store.open();
    const std::string large(400'000, 'x');
    limit_file_size(200'000);
    require_limit([&] { log->append(4, large); });
    require_limit([&] { rewrite(*log, 2, {"part", large}); });
    require(log->extent().head == 3 && log->extent().base == 0, "nothing was written");
    require(log->append(4, "small") == Appended::yes, "a small update fits");
    limit_file_size(0);
    const auto at_zero = thrown_error([&] { log->append(5, "x"); });
    require(at_zero && at_zero->kind() == ErrorKind::limit, "nothing fits");
    limit_file_size(RLIM_INFINITY);
    require(log->append(5, large) == Appended::yes, "append without the limit");
    require(rewrite(*log, 4, {"part", large}), "rewrite without the limit");
  });
  EXPECT_EQ(child.wait(), 0);
  const auto log = store.open();
  EXPECT_EQ(log->extent().base, 4U);
  EXPECT_EQ(updates_of(*log).size(), 1U);
}

TEST(FileSizeLimit, file_log_reports_limit_without_signal) {
  FileStore store;
  expect_limit_without_signal(store);
}

#if WHYCACHE_WITH_SQLITE

TEST(FileSizeLimit, sqlite_log_with_rollback_journal_reports_limit_without_signal) {
  SqliteStore store(3'040'001);
  expect_limit_without_signal(store);
}

TEST(FileSizeLimit, sqlite_log_in_wal_mode_reports_limit_without_signal) {
  SqliteStore store(3'051'003);
  expect_limit_without_signal(store);
}

#endif

TEST(FileSizeLimit, handler_of_application_is_kept_and_not_called) {
  FileStore store;
  store.open();
  Child child([&] {
    static volatile sig_atomic_t calls = 0;
    ::signal(SIGXFSZ, [](int) { calls = calls + 1; });
    const auto log = store.open();
    limit_file_size(100'000);
    require_limit([&] { log->append(1, std::string(200'000, 'x')); });
    require(calls == 0, "the handler was not called");
    ::raise(SIGXFSZ);
    require(calls == 1, "the handler is still installed");
  });
  EXPECT_EQ(child.wait(), 0);
}

TEST(FileSizeLimit, signal_that_application_blocks_stays_pending) {
  FileStore store;
  store.open();
  Child child([&] {
    sigset_t blocked;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGXFSZ);
    ::pthread_sigmask(SIG_BLOCK, &blocked, nullptr);
    ::raise(SIGXFSZ);
    const auto log = store.open();
    limit_file_size(100'000);
    const auto error = thrown_error([&] { log->append(1, std::string(200'000, 'x')); });
    require(error && error->kind() == ErrorKind::limit, "limit");
    require(ThreadSignalBlocker::is_pending(SIGXFSZ) && is_blocked(SIGXFSZ), "still pending");
  });
  EXPECT_EQ(child.wait(), 0);
}

}  // namespace
}  // namespace whycache
