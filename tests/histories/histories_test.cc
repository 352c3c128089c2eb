// Histories (histories_main.cc) on every log that processes can share, for half a minute each or
// for WHYCACHE_HISTORY_SECONDS.
#include <gtest/gtest.h>

#include <cstdio>
#include <cstdlib>
#include <string>

#include "support/child_process.h"
#if WHYCACHE_WITH_MYSQL
#include "support/mariadb_server.h"
#endif
#if WHYCACHE_WITH_POSTGRES
#include "support/postgres_server.h"
#endif
#include "support/tier_server.h"

namespace whycache::testing {
namespace {

void expect_no_violation(const std::string& log) {
  const std::string command =
      std::string(WHYCACHE_TEST_BIN) + "/histories_main --log " + log + " --seconds " +
      std::to_string(number_from_environment("WHYCACHE_HISTORY_SECONDS", 30)) +
      " --keep " WHYCACHE_TEST_BIN "/histories_" + log;
  std::fflush(nullptr);
  EXPECT_EQ(std::system(command.c_str()), 0) << command;
}

TEST(HistoriesLong, histories_on_file_keep_promises) { expect_no_violation("file"); }

#if WHYCACHE_WITH_SQLITE
TEST(HistoriesLong, histories_on_sqlite_keep_promises) { expect_no_violation("sqlite"); }
#endif

#if WHYCACHE_WITH_POSTGRES
TEST(HistoriesLong, histories_on_postgres_keep_promises) {
  if (!PostgresTestServer::is_installed())
    GTEST_SKIP() << "NOT TESTED: PostgreSQL's server is not installed";
  expect_no_violation("postgres");
}
#endif

#if WHYCACHE_WITH_MYSQL
TEST(HistoriesLong, histories_on_mysql_keep_promises) {
  if (!MariadbServer::is_installed()) GTEST_SKIP() << "NOT TESTED: mariadbd is not installed";
  expect_no_violation("mysql");
}

void expect_no_violation_behind(TierKind kind) {
  if (!MariadbServer::is_installed()) GTEST_SKIP() << "NOT TESTED: mariadbd is not installed";
  if (only(kind).empty()) GTEST_SKIP() << "NOT TESTED: " << kind << " is not installed";
  expect_no_violation(name_of(kind));
}

TEST(HistoriesLong, histories_on_memcached_over_mysql_keep_promises) {
  expect_no_violation_behind(TierKind::memcached);
}

TEST(HistoriesLong, histories_on_redis_over_mysql_keep_promises) {
  expect_no_violation_behind(TierKind::redis);
}
#endif

}  // namespace
}  // namespace whycache::testing
