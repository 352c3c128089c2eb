// The log in MySQL and fork().
#include <gtest/gtest.h>

#if WHYCACHE_WITH_MYSQL

#include <unistd.h>

#include <atomic>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "log/mysql_test_support.h"
#include "log/root_tests.h"
#include "support/sanitizers.h"

namespace whycache {
namespace {

using MysqlLogFork = MysqlTest;

// --- fork(). ---

TEST_F(MysqlLogFork, forked_child_must_reopen_log) {
  MysqlStore store;
  std::unique_ptr<Log> log = store.open();
  append_up_to(*log, 1);
  Child child([&] {
    for (const auto& call : std::vector<std::function<void()>>{
             [&] { log->extent(); }, [&] { log->append(2, "x"); }, [&] { updates_of(*log); },
             [&] { rewrite(*log, 1, {"part"}); }}) {
      const auto error = thrown_error(call);
      require(error && error->kind() == ErrorKind::invalid, "a call in the child is refused");
    }
    const auto own = log->reopen();
    require(own->append(2, "by the child") == Appended::yes, "append");
    log.reset();
    require(own->append(3, "by the child") == Appended::yes,
            "append after the parent's log was closed");
  });
  ASSERT_EQ(child.wait(), 0);
  EXPECT_EQ(log->append(4, "by the parent"), Appended::yes);
  EXPECT_EQ(updates_of(*log).size(), 4U);
}

TEST_F(MysqlLogFork, forks_during_appends_lose_nothing) {
  SKIP_WITHOUT_THREADS_IN_CHILD();
#if defined(__SANITIZE_ADDRESS__)
  GTEST_SKIP() << "NOT TESTED: a child inherits the locks of AddressSanitizer's allocator as other "
                  "threads held them";
#endif
  const CertificateAuthority authority("IP:127.0.0.1");
  MariadbServer server(tls_options(authority));
  MysqlStore store(server);
  for (const std::string& options : {std::string(), "?tls_ca=" + authority.ca()}) {
    const std::string url = server.url(store.database()) + options;
    const auto log = open_log(url);
    const UpdateId before = log->extent().head;
    const auto append_somewhere = [](Log& own, const std::string& bytes) {
      while (own.append(own.extent().head + 1, bytes) != Appended::yes) {
      }
    };
    std::atomic<bool> done{false};
    std::atomic<std::uint64_t> appended{0};
    std::vector<std::thread> threads;
    threads.emplace_back([&] {
      while (!done) {
        append_somewhere(*log, "by a thread");
        ++appended;
      }
    });
    threads.emplace_back([&] {
      while (!done) {  // a new connection for each append
        append_somewhere(*open_log(url), "by a thread");
        ++appended;
      }
    });
    constexpr int children = 20;
    constexpr int appends_each = 5;
    for (int i = 0; i < children; ++i) {
      Child child([&] {
        ::alarm(60);
        const auto own = log->reopen();
        for (int j = 0; j < appends_each; ++j) append_somewhere(*own, "by a child");
      });
      EXPECT_EQ(child.wait(), 0);
    }
    done = true;
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(updates_of(*log, before + 1).size(), appended + children * appends_each);
  }
}

}  // namespace
}  // namespace whycache

#endif
