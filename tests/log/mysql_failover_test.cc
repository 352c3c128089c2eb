// The log in MySQL when its address changes to a replica that lacks the last updates. Replication
// is real, and a proxy is the address. Every machine detects the failover at its next update(), and
// reaches the state of the replica. WHYCACHE_FAILOVERS sets the number of failovers.
#include <gtest/gtest.h>

#if WHYCACHE_WITH_MYSQL

#include <cstdio>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "log/mysql_test_support.h"
#include "support/child_process.h"
#include "support/tcp_proxy.h"

namespace whycache {
namespace {

using MysqlLogFailover = MysqlTest;
using MysqlLogFailoverLong = MysqlTest;
using testing::TcpProxy;

// An address that leads to the primary until it fails over to the replica.
class FailoverAddress {
 public:
  FailoverAddress(ReplicatedPair& pair, std::string database)
      : pair_(pair), database_(std::move(database)), proxy_(pair.primary.port()) {}

  std::string url() const {
    return "mysql://root@127.0.0.1:" + std::to_string(proxy_.port()) + '/' + database_;
  }
  std::string replica_url() const { return pair_.replica.url(database_); }
  // The replica does not get any later write of the primary.
  void lose_later_writes() const {
    pair_.catch_up();
    pair_.stop_replication();
  }
  void fail_over() { proxy_.point_to(pair_.replica.port()); }

 private:
  ReplicatedPair& pair_;
  std::string database_;
  TcpProxy proxy_;
};

void set_some(Cache& cache, std::uint64_t count, const std::string& value) {
  for (std::uint64_t i = 0; i < count; ++i)
    cache.set("key " + std::to_string(i), value + ' ' + std::to_string(i));
}

TEST_F(MysqlLogFailover, writer_detects_failover_before_append) {
  ReplicatedPair pair;
  FailoverAddress address(pair, pair.primary.make_database());
  const TemporaryDirectory directory;
  Cache writer(address.url(), options_for(directory, "writer"));
  set_some(writer, 10, "kept");
  address.lose_later_writes();
  set_some(writer, 5, "lost");
  address.fail_over();

  EXPECT_EQ(writer.set("new", "value"), 11U);
  EXPECT_EQ(writer.get("key 0"), "kept 0");
  EXPECT_EQ(writer.counters().rebuilds_diverged, 1U);
  Cache other(address.replica_url(), options_for(directory, "other"));
  EXPECT_EQ(other.digest(), writer.digest());
}

// The old primary answered a moment ago, while other machines wrote as many updates to the new one
// as were lost. Only the chain distinguishes them from the updates that the writer knows.
TEST_F(MysqlLogFailover, writer_that_just_polled_old_primary_detects_failover) {
  ReplicatedPair pair;
  FailoverAddress address(pair, pair.primary.make_database());
  const TemporaryDirectory directory;
  Cache writer(address.url(), options_for(directory, "writer"));
  set_some(writer, 10, "kept");
  address.lose_later_writes();
  set_some(writer, 5, "lost");
  Cache other(address.replica_url(), options_for(directory, "other"));
  set_some(other, 5, "new");
  writer.update();
  address.fail_over();

  EXPECT_EQ(writer.set("mine", "value"), 16U);
  EXPECT_EQ(writer.get("key 0"), "new 0");
  EXPECT_EQ(other.update(), 16U);
  EXPECT_EQ(other.get("mine"), "value");
  EXPECT_EQ(other.digest(), writer.digest());
  EXPECT_EQ(Cache(address.replica_url(), options_for(directory, "late")).digest(), writer.digest());
}

// No machine is ever wrong, whatever was lost or written instead, and whatever it had applied.
TEST_F(MysqlLogFailoverLong, every_machine_detects_failover_at_next_update) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  ReplicatedPair pair;
  const std::uint64_t rounds = testing::number_from_environment("WHYCACHE_FAILOVERS", 40);
  std::uint64_t right = 0;
  std::uint64_t rebuilt = 0;
  for (std::uint64_t round = 0; round < rounds; ++round) {
    FailoverAddress address(pair, pair.primary.make_database());
    const TemporaryDirectory directory;
    std::vector<std::unique_ptr<Cache>> machines;
    for (int machine = 0; machine < 4; ++machine) {
      machines.push_back(
          std::make_unique<Cache>(address.url(), options_for(directory, std::to_string(machine))));
    }
    Cache& writer = *machines[0];
    set_some(writer, 1 + random() % 10, "kept");
    if (random() % 4 == 0) writer.rewrite_history();
    for (auto& machine : machines) {
      if (random() % 2 == 0) machine->update();
    }
    address.lose_later_writes();
    for (std::uint64_t left = random() % 6; left > 0; --left) {
      writer.set("key " + std::to_string(random() % 10), "lost " + std::to_string(left));
      if (random() % 4 == 0) writer.rewrite_history();
      machines[1 + random() % 3]->update();
    }
    address.fail_over();
    for (std::uint64_t left = random() % 8; left > 0; --left) {
      machines[random() % machines.size()]->set("key " + std::to_string(random() % 10),
                                                "new " + std::to_string(left));
    }

    const Cache expected(address.replica_url(), options_for(directory, "expected"));
    for (auto& machine : machines) {
      machine->update();
      EXPECT_EQ(machine->applied_id(), expected.applied_id());
      EXPECT_EQ(machine->digest(), expected.digest());
      rebuilt += machine->counters().rebuilds_diverged > 0;
      right += machine->digest() == expected.digest();
    }
    // Reset the position of the replica so that it follows the primary again.
    testing::MariadbClient(pair.replica)
        .run("SET GLOBAL gtid_slave_pos = '" +
             testing::MariadbClient(pair.primary).run("SELECT @@gtid_binlog_pos") + "'");
    pair.start_replication();
    if (HasFailure()) break;
  }
  std::printf("failovers=%llu machines_right=%llu of=%llu rebuilds=%llu\n",
              static_cast<unsigned long long>(rounds), static_cast<unsigned long long>(right),
              static_cast<unsigned long long>(rounds * 4),
              static_cast<unsigned long long>(rebuilt));
  EXPECT_GT(rebuilt, 0U);
}

}  // namespace
}  // namespace whycache

#endif
