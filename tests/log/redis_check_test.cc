// Real Redis servers refuse commands, and `whycache doctor` names each refusal.
#include "log/redis_check.h"

#include <gtest/gtest.h>

#include <chrono>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "support/redis_server.h"
#include "support/tcp_proxy.h"
#include "support/temporary_directory.h"

namespace whycache {
namespace {

using std::chrono::seconds;
using testing::RedisClient;
using testing::RedisTestServer;

RedisServer server_at(const RedisTestServer& server) {
  RedisServer redis;
  redis.address = parse_server_address(server.address(), 6379).value();
  return redis;
}

// "SET, XADD: OOM; XREAD: NOPERM": commands and codes.
std::string refusals_of(const RedisServer& server, const std::string& log_prefix = "") {
  const Deadline deadline(seconds(20));
  RedisConnection connection(server, deadline);
  std::string text;
  for (const RedisRefusal& refusal : find_redis_refusals(connection, log_prefix, deadline)) {
    if (!text.empty()) text += "; ";
    for (const std::string& command : refusal.commands)
      text += (&command == refusal.commands.data() ? "" : ", ") + command;
    text += ": " + refusal.error.substr(0, refusal.error.find(' '));
  }
  return text;
}

TEST(RedisCheck, server_that_does_everything_keeps_nothing_of_it) {
  const RedisTestServer server;
  EXPECT_EQ(refusals_of(server_at(server), "whycache2:test:"), "");
  EXPECT_EQ(RedisClient(server).run({"DBSIZE"}).at(0), "0");
}

// Doctor asks for three seconds.
TEST(RedisCheck, server_far_away_is_asked_in_few_round_trips) {
  const RedisTestServer server;
  testing::TcpProxy proxy(server.port());
  testing::TcpProxy::ConnectionFaults faults;
  faults.to_client.delay = std::chrono::milliseconds(150);
  proxy.set_faults(faults);
  RedisServer redis = server_at(server);
  redis.address.port = proxy.port();
  const Deadline deadline(seconds(3));
  RedisConnection connection(redis, deadline);
  EXPECT_TRUE(find_redis_refusals(connection, "whycache2:test:", deadline).empty());
}

TEST(RedisCheck, commands_that_a_user_may_not_use_are_named) {
  const RedisTestServer server;
  const testing::TemporaryDirectory directory;
  RedisServer redis = server_at(server);
  redis.user = "flags";
  redis.password_file = directory.file("password");
  std::ofstream(redis.password_file) << "secret\n";
  RedisClient client(server);
  client.run({"ACL", "SETUSER", "flags", "on", ">secret", "~whycache2:*", "+@all", "-xadd",
              "-xread", "-hset", "-evalsha"});
  EXPECT_EQ(refusals_of(redis), "XADD, XREAD, HSET, EVALSHA: NOPERM");
  client.run({"ACL", "SETUSER", "flags", "resetkeys", "~other:*", "+@all"});
  const std::string found = refusals_of(redis);
  EXPECT_TRUE(found.starts_with("SET, GET, MGET, XADD, ")) << found;
}

TEST(RedisCheck, server_without_memory_is_named_with_what_it_refuses) {
  const RedisTestServer server({"--maxmemory", "1"});
  EXPECT_EQ(refusals_of(server_at(server)), "SET, XADD, HSET: OOM");
}

TEST(RedisCheck, replica_is_named_with_what_it_refuses) {
  const RedisTestServer primary;
  const RedisTestServer replica({"--replicaof", "127.0.0.1 " + std::to_string(primary.port())});
  const auto end = std::chrono::steady_clock::now() + seconds(30);
  while (RedisClient(replica).info("master_link_status") != "up" &&
         std::chrono::steady_clock::now() < end)
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(refusals_of(server_at(replica)), "SET, XADD, EXPIRE, XDEL, HSET, HDEL, DEL: READONLY");
}

TEST(RedisCheck, cluster_is_named) {
  const RedisTestServer cluster({"--cluster-enabled", "yes"});
  const std::string found = refusals_of(server_at(cluster));
  EXPECT_NE(found.find("CLUSTERDOWN"), std::string::npos) << found;
}

TEST(RedisCheck, key_of_the_log_that_has_another_type_is_named) {
  const RedisTestServer server;
  const RedisConnection connection(server_at(server), Deadline(seconds(20)));
  const std::string prefix = "whycache2:test:";
  const std::string keys = connection.keys_of(prefix);
  RedisClient client(server);
  client.run({"SET", keys + "updates", "not a stream"});
  client.run({"LPUSH", keys + "head", "not a text"});
  EXPECT_EQ(refusals_of(server_at(server), prefix),
            "GET " + keys + "head, XRANGE " + keys + "updates: WRONGTYPE");
  EXPECT_EQ(refusals_of(server_at(server)), "");
}

}  // namespace
}  // namespace whycache
