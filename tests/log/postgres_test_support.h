// Helpers of the tests of the log in PostgreSQL (postgres_*_test.cc).
#pragma once

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "log/postgres_log.h"
#include "log/postgres_store.h"
#include "log/server_test_support.h"
#include "support/postgres_server.h"

namespace whycache {

using testing::PostgresClient;
using testing::PostgresTestServer;

class PostgresTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!PostgresTestServer::is_installed())
      GTEST_SKIP() << "NOT TESTED: PostgreSQL's server is not installed";
  }
};

inline std::vector<std::string> documented_postgres_sql(const std::string& document) {
  return fenced_blocks(document, "postgres");
}

// Returns how many connections to the database wait for a lock.
inline int waiting_connections(const PostgresStore& store) {
  return std::stoi(store.run("SELECT count(*) FROM pg_stat_activity WHERE datname = '" +
                             store.database() + "' AND wait_event_type = 'Lock'"));
}

inline bool becomes_blocked(const PostgresStore& store, int connections = 1) {
  return becomes_true_within(milliseconds(20'000),
                             [&] { return waiting_connections(store) >= connections; });
}

}  // namespace whycache
