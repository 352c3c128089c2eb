// One database on a real server, by all of its names: one state on this machine.
#include <gtest/gtest.h>

#if WHYCACHE_WITH_MYSQL

#include <chrono>
#include <filesystem>
#include <set>
#include <string>
#include <vector>

#include "client/fleet.h"
#include "support/mariadb_server.h"
#include "support/tcp_proxy.h"

namespace whycache::testing {
namespace {

namespace fs = std::filesystem;

class MysqlNames : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!MariadbServer::is_installed()) GTEST_SKIP() << "NOT TESTED: mariadbd is not installed";
  }

  Cache open(const std::string& url) const {
    Options options;
    options.state_path = directory.path() + "/";
    options.deadline = std::chrono::seconds(10);
    return Cache(url, options);
  }
  std::set<std::string> states() const {
    std::set<std::string> paths;
    for (const auto& entry : fs::directory_iterator(directory.path())) {
      if (entry.path().extension() == ".state" && !entry.is_symlink()) paths.insert(entry.path());
    }
    return paths;
  }

  TemporaryDirectory directory;
};

TEST_F(MysqlNames, write_by_one_name_is_read_by_every_other) {
  MariadbServer server;
  TcpProxy proxy(server.port());
  const std::string database = server.make_database();
  MariadbClient(server).run("CREATE USER other@'127.0.0.1'; GRANT ALL ON *.* TO other@'127.0.0.1'");
  const std::string port = std::to_string(server.port());
  const std::string first = server.url(database);
  std::vector<std::string> urls{
      first,
      server.url(database, "other"),
      first + "?tls=off",
      first + "?deadline_ms=5000&instance=default",
      "mysql://root@localhost:" + port + "/" + database,
      "mysql://root@/" + database + "?socket=" + server.socket(),
      "mysql://root@127.0.0.1:" + std::to_string(proxy.port()) + "/" + database,
      "mysql://root@[::ffff:127.0.0.1]:" + port + "/" + database + "?tls=off",
  };
#if WHYCACHE_WITH_MEMCACHED
  urls.push_back("memcached+" + first + "?memcached=127.0.0.1:1");
#endif
  open(first).set("k", "old");
  for (const std::string& url : urls) EXPECT_EQ(open(url).get("k"), "old") << url;

  std::string value = "old";
  for (const std::string& writer : urls) {
    value += "+";
    open(writer).set("k", value);
    for (const std::string& reader : urls)
      EXPECT_EQ(open(reader).get("k"), value) << writer << " " << reader;
  }
  EXPECT_EQ(states().size(), 1U);

  server.stop();
  for (const std::string& url : urls) EXPECT_EQ(open(url).get("k"), value) << url;
}

TEST_F(MysqlNames, databases_and_instances_have_states_of_their_own) {
  MariadbServer& server = MariadbServer::shared();
  const std::string url = server.url(server.make_database());
  const std::vector<std::string> logs{url, url + "?instance=blue",
                                      server.url(server.make_database())};
  for (const std::string& log : logs) open(log).set("k", log);
  for (const std::string& log : logs) EXPECT_EQ(open(log).get("k"), log);
  EXPECT_EQ(states().size(), logs.size());
}

}  // namespace
}  // namespace whycache::testing

#endif
