// Runs the tests of log_contract.h with every log of the project.
#include "log/log_contract.h"

#include <cstdio>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "../../examples/own_log.h"
#if WHYCACHE_WITH_POSTGRES
#include "log/postgres_store.h"
#endif
#include "log/stores.h"
#include "log/tiered_store.h"

namespace whycache {
namespace {

class OwnStore final : public LogStore {
 public:
  std::unique_ptr<Log> open() override { return std::make_unique<OwnLog>(store_); }

 private:
  std::shared_ptr<SharedStore> store_ = std::make_shared<SharedStore>();
};

}  // namespace

INSTANTIATE_TEST_SUITE_P(Memory, LogContract,
                         ::testing::Values(LogUnderTest{
                             "memory", [] { return std::make_unique<MemoryStore>(); }}),
                         LogUnderTest::name_of);

INSTANTIATE_TEST_SUITE_P(Own, LogContract,
                         ::testing::Values(LogUnderTest{
                             "own", [] { return std::make_unique<OwnStore>(); }}),
                         LogUnderTest::name_of);

INSTANTIATE_TEST_SUITE_P(File, LogContract,
                         ::testing::Values(LogUnderTest{
                             "file", [] { return std::make_unique<FileStore>(); }}),
                         LogUnderTest::name_of);

#if WHYCACHE_WITH_SQLITE
// Once with the journal mode for this version of the library, and once as if it had no WAL-reset
// bug.
INSTANTIATE_TEST_SUITE_P(
    Sqlite, LogContract,
    ::testing::Values(LogUnderTest{"sqlite", [] { return std::make_unique<SqliteStore>(); }},
                      LogUnderTest{"sqlite_wal",
                                   [] { return std::make_unique<SqliteStore>(3'051'003); }}),
    LogUnderTest::name_of);
#endif

#if WHYCACHE_WITH_MYSQL
namespace {

std::vector<LogUnderTest> mysql_logs() {
  if (!testing::MariadbServer::is_installed()) {
    std::fprintf(
        stderr,
        "\n*** SKIPPED: mariadbd is not installed, so that the mysql log is not tested ***\n\n");
    return {};
  }
  return {{"mysql", [] { return std::make_unique<MysqlStore>(); }, 1000}};
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(Mysql, LogContract, ::testing::ValuesIn(mysql_logs()),
                         LogUnderTest::name_of);
#endif

#if WHYCACHE_WITH_POSTGRES
namespace {

std::vector<LogUnderTest> postgres_logs() {
  if (!testing::PostgresTestServer::is_installed()) {
    std::fprintf(stderr,
                 "\n*** SKIPPED: PostgreSQL's server is not installed, so that the postgres log is "
                 "not tested ***\n\n");
    return {};
  }
  return {{"postgres", [] { return std::make_unique<PostgresStore>(); }, 1000}};
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(Postgres, LogContract, ::testing::ValuesIn(postgres_logs()),
                         LogUnderTest::name_of);
#endif

namespace {

template <typename Store>
void add_tiered(std::vector<LogUnderTest>& logs, const std::string& name) {
  // Every call asks the tier too, so each of these logs is as slow as one in a server.
  constexpr unsigned append_count = 1000;
  for (const testing::TierKind kind : testing::tier_kinds()) {
    for (const auto& [how, read_by] :
         {std::pair("_read", ReadMethod::reading), std::pair("_poll", ReadMethod::polling)}) {
      logs.push_back(
          {name_of(kind) + '_' + name + how,
           [kind = kind, by = read_by] { return std::make_unique<TieredStore<Store>>(kind, by); },
           append_count});
    }
  }
}

// Each log behind each tier: once with read(), as tools use, and once with poll(), as followers
// use.
std::vector<LogUnderTest> tiered_logs() {
  std::vector<LogUnderTest> logs;
  add_tiered<FileStore>(logs, "file");
#if WHYCACHE_WITH_SQLITE
  add_tiered<SqliteStore>(logs, "sqlite");
#endif
#if WHYCACHE_WITH_MYSQL
  if (testing::MariadbServer::is_installed()) add_tiered<MysqlStore>(logs, "mysql");
#endif
#if WHYCACHE_WITH_POSTGRES
  if (testing::PostgresTestServer::is_installed()) add_tiered<PostgresStore>(logs, "postgres");
#endif
  return logs;
}

}  // namespace

INSTANTIATE_TEST_SUITE_P(Tiered, LogContract, ::testing::ValuesIn(tiered_logs()),
                         LogUnderTest::name_of);

}  // namespace whycache
