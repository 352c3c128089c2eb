// A writer with memcached in front of MariaDB: after it loses its connection it reads the log
// before it appends, even if memcached has just delivered the latest update.
#include <gtest/gtest.h>

#if WHYCACHE_WITH_MYSQL

#include <chrono>
#include <string>

#include "client/fleet.h"
#include "support/mariadb_server.h"
#include "support/memcached_server.h"
#include "support/tcp_proxy.h"

namespace whycache::testing {
namespace {

TEST(MemcachedMysql, writer_with_lost_connection_succeeds_within_one_retry) {
  if (!MariadbServer::is_installed()) GTEST_SKIP() << "NOT TESTED: mariadbd is not installed";
  if (!MemcachedServer::is_installed()) GTEST_SKIP() << "NOT TESTED: memcached is not installed";
  MariadbServer& server = MariadbServer::shared();
  TcpProxy proxy(server.port());
  const std::string database = server.make_database();
  // With this confirm_s no machine reads the log in between.
  const std::string options = "?memcached=" + MemcachedServer::shared().address() +
                              "&memcached_timeout_ms=2000&confirm_s=3600";
  Fleet fleet;
  Cache berlin("memcached+" + server.url(database) + options, fleet.options("berlin"));
  Cache tokyo(
      "memcached+mysql://root@127.0.0.1:" + std::to_string(proxy.port()) + '/' + database + options,
      fleet.options("tokyo"));
  berlin.set("key", "first");
  tokyo.update();
  tokyo.update();

  for (int round = 1; round <= 20; ++round) {
    // Given a machine that has lost its connection to the log and has the last update from
    // memcached,
    const UpdateId id = berlin.set("key", "berlin");
    proxy.cut_all();
    const std::uint64_t connections = proxy.connections();
    ASSERT_EQ(tokyo.update(), id);
    ASSERT_EQ(proxy.connections(), connections);
    const std::uint64_t retries = tokyo.counters().log_retries;

    // when it writes, then at most one retry is needed.
    EXPECT_EQ(tokyo.set("key", "tokyo", {.note = {}, .deadline = std::chrono::seconds(10)}),
              id + 1);
    EXPECT_LE(tokyo.counters().log_retries, retries + 1);
    EXPECT_EQ(proxy.connections(), connections + 1);
    ASSERT_EQ(berlin.update(), id + 1);
    EXPECT_EQ(berlin.get("key"), "tokyo");
  }
}

}  // namespace
}  // namespace whycache::testing

#endif
