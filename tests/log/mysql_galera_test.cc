// The log in MySQL on a Galera cluster.
#include <gtest/gtest.h>

#if WHYCACHE_WITH_MYSQL

#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

#include "log/mysql_test_support.h"
#include "support/program.h"

namespace whycache {
namespace {

using MysqlLogGaleraLong = MysqlTest;

// --- Galera. ---

constexpr char galera_library[] = "/usr/lib/galera/libgalera_smm.so";

// Two nodes of a cluster. Both accept writes. The cluster takes several seconds to start.
class Cluster {
 public:
  Cluster() : first_(options({"--wsrep-new-cluster"})) {
    // The second node starts with a copy of the first one's data, so that little has to be sent.
    first_.stop();
    const TemporaryDirectory copy;
    std::filesystem::copy(first_.file("data"), copy.file("data"),
                          std::filesystem::copy_options::recursive);
    std::filesystem::remove(copy.file("data/galera.cache"));
    first_.start();
    second_ = std::make_unique<MariadbServer>(options({}), copy.file("data"));
    for (MariadbServer* node : nodes()) {
      if (!becomes_true_within(milliseconds(60'000), [&] { return is_ready(*node); }))
        throw std::runtime_error("the nodes do not form a cluster");
    }
  }
  std::vector<MariadbServer*> nodes() { return {&first_, second_.get()}; }

 private:
  static bool is_ready(const MariadbServer& node) {
    try {
      return MariadbClient(node).run("SHOW STATUS LIKE 'wsrep_local_state_comment'") == "Synced" &&
             MariadbClient(node).run("SHOW STATUS LIKE 'wsrep_cluster_size'") == "2";
    } catch (const std::runtime_error&) {  // a joining node refuses connections
      return false;
    }
  }

  std::vector<std::string> options(std::vector<std::string> more) const {
    const auto address = [](std::uint16_t port) { return "127.0.0.1:" + std::to_string(port); };
    const std::string own = address(more.empty() ? second_port_ : first_port_);
    const std::vector<std::string> all{
        "--wsrep-on=ON",
        std::string("--wsrep-provider=") + galera_library,
        "--binlog-format=ROW",
        "--innodb-autoinc-lock-mode=2",
        "--wsrep-node-address=127.0.0.1",
        "--wsrep-sst-method=rsync",
        "--wsrep-cluster-address=gcomm://" + address(first_port_) + ',' + address(second_port_),
        "--wsrep-sst-receive-address=" + address(testing::free_port()),
        "--wsrep-provider-options=gmcast.listen_addr=tcp://" + own +
            ";ist.recv_addr=" + address(testing::free_port()) +
            ";gcache.size=16M;base_host=127.0.0.1;base_port=" + own.substr(10)};
    more.insert(more.end(), all.begin(), all.end());
    return more;
  }

  const std::uint16_t first_port_ = testing::free_port();
  const std::uint16_t second_port_ = testing::free_port();
  MariadbServer first_;
  std::unique_ptr<MariadbServer> second_;
};

void create_follower(const MysqlStore& store) {
  store.run(documented_procedures() + "CREATE USER 'follower'@'%'; GRANT EXECUTE ON " +
            store.database() + ".* TO 'follower'@'%'");
}

TEST_F(MysqlLogGaleraLong, writers_on_two_nodes_share_one_log) {
  if (::access(galera_library, R_OK) != 0) GTEST_SKIP() << "NOT TESTED: Galera is not installed";
  Cluster cluster;
  MysqlStore store(*cluster.nodes()[0]);
  const auto open_at = [&](std::size_t node, const std::string& user = "root") {
    MysqlLogOptions options = store.options();
    options.server.user = user;
    options.server.port = cluster.nodes()[node]->port();
    return std::make_unique<MysqlLog>(options);
  };
  ASSERT_TRUE(becomes_true_within(milliseconds(20'000),
                                  [&] { return !thrown_error([&] { open_at(1); }); }));

  // The other node shows an acknowledged update immediately, also by the procedures.
  const auto here = open_at(0);
  const auto there = open_at(1);
  create_follower(store);
  const auto follower_here = open_at(0, "follower");
  const auto follower_there = open_at(1, "follower");
  for (UpdateId id = 1; id <= 50; ++id) {
    ASSERT_EQ((id % 2 == 0 ? here : there)->append(id, "update"), Appended::yes) << id;
    ASSERT_EQ((id % 2 == 0 ? there : here)->extent().head, id);
    ASSERT_EQ((id % 2 == 0 ? follower_there : follower_here)->extent().head, id);
  }
  ASSERT_EQ(here->append(50, "again"), Appended::taken);

  // Concurrent writers on both nodes lose and duplicate nothing.
  constexpr std::size_t writers = 4;
  constexpr int appends_each = 100;
  std::vector<Child> children;
  for (std::size_t writer = 0; writer < writers; ++writer) {
    children.emplace_back([&, writer] {
      const auto log = open_at(writer % 2);
      for (int i = 0; i < appends_each; ++i)
        append_until_acknowledged(*log, std::to_string(writer) + ' ' + std::to_string(i));
    });
  }
  std::atomic<bool> done{false};
  Updates seen;
  std::thread follower([&] {
    const auto log = open_at(1);
    for (bool last = false; !last;) {
      last = done;
      log->read(seen.size() + 1, no_end, [&](UpdateId id, std::string_view bytes) {
        EXPECT_EQ(id, seen.size() + 1);
        seen[id] = bytes;
        return true;
      });
    }
  });
  for (Child& child : children) EXPECT_EQ(child.wait(), 0);
  done = true;
  follower.join();
  std::vector<int> next(writers, 0);
  EXPECT_EQ(seen.size(), 50 + writers * appends_each);
  EXPECT_EQ(updates_of(*here), seen);
  for (const auto& [id, bytes] : seen) {
    if (id <= 50) continue;
    EXPECT_EQ(bytes.substr(2), std::to_string(next[static_cast<std::size_t>(bytes[0] - '0')]++))
        << id;
  }

  // A process that missed a rewrite on the other node cannot append below the base.
  const UpdateId head = here->extent().head;
  ASSERT_TRUE(rewrite(*here, head, {"part"}));
  EXPECT_EQ(there->append(7, "stray"), Appended::below_base);
  EXPECT_EQ(there->append(head, "stray"), Appended::below_base);
  EXPECT_EQ(there->append(head + 1, "x"), Appended::yes);
  EXPECT_EQ(updates_of(*here), (Updates{{head + 1, "x"}}));
}

}  // namespace
}  // namespace whycache

#endif
