// Followers that Redis wakes: how soon they see a write, how seldom the log is asked, and what they
// report of a Redis that refuses them.
#include <gtest/gtest.h>

#include <chrono>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "client/tiered_fleet.h"
#include "support/redis_server.h"

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using std::chrono::steady_clock;

// Without being woken, a follower would see an update a minute later.
constexpr FollowPace woken_only{
    .interval_min = seconds(60), .interval_max = seconds(60), .interval_max_notified = seconds(60)};

bool happens_soon(const std::function<bool()>& what, seconds patience = seconds(20)) {
  const auto end = steady_clock::now() + patience;
  while (!what()) {
    if (steady_clock::now() > end) return false;
    std::this_thread::sleep_for(milliseconds(1));
  }
  return true;
}

class RedisFollow : public ::testing::Test {
 protected:
  Cache open(const std::string& name, const FollowPace& pace = woken_only) {
    Options options = fleet.options(name);
    options.follow = true;
    options.follow_pace = pace;
    options.on_event = events.listener();
    return Cache(url(), options);
  }
  std::string url() const {
    return tiered_url(TierKind::redis, fleet.url(), server.address()) + "&confirm_s=1";
  }

  RedisTestServer server;
  Events events;
  Fleet fleet{"sqlite"};
  Cache writer{url() + "&redis_timeout_ms=2000", fleet.options("writer")};
};

TEST_F(RedisFollow, write_wakes_followers_of_other_machines) {
  writer.set("key", "0");
  std::vector<Cache> followers;
  for (int i = 0; i < 3; ++i) followers.push_back(open("follower" + std::to_string(i)));
  for (const Cache& follower : followers)
    ASSERT_TRUE(happens_soon([&] { return follower.get("key") == "0"; }));
  for (int i = 1; i <= 50; ++i) {
    const std::string value = std::to_string(i);
    writer.set("key", value);
    for (const Cache& follower : followers)
      EXPECT_TRUE(happens_soon([&] { return follower.get("key") == value; })) << i;
  }
  EXPECT_EQ(events.count(Event::Kind::polling), 0);
}

TEST_F(RedisFollow, follower_is_woken_again_after_server_restarts) {
  writer.set("key", "0");
  Cache follower = open("follower", {});
  ASSERT_TRUE(happens_soon([&] { return follower.get("key") == "0"; }));
  for (int round = 1; round <= 2; ++round) {
    server.kill();
    server.start();
    const std::string value = std::to_string(round);
    writer.set("key", value);
    EXPECT_TRUE(happens_soon([&] { return follower.get("key") == value; }));
  }
}

TEST_F(RedisFollow, refusal_is_reported_once_and_the_log_is_polled) {
  RedisClient(server).run({"CONFIG", "SET", "requirepass", "secret"});
  writer.set("key", "0");
  Cache follower = open("follower", {});
  EXPECT_TRUE(happens_soon([&] { return events.count(Event::Kind::polling) > 0; }));
  EXPECT_NE(events.messages(Event::Kind::polling).find("NOAUTH"), std::string::npos)
      << events.messages(Event::Kind::polling);
  for (int i = 1; i <= 2; ++i) {
    const std::string value = std::to_string(i);
    writer.set("key", value);
    EXPECT_TRUE(happens_soon([&] { return follower.get("key") == value; }));
  }
  EXPECT_EQ(events.count(Event::Kind::polling), 1);
}

// The wait for an update meets the refusal, which Redis reports once.
TEST_F(RedisFollow, refusal_that_update_meets_is_reported) {
  writer.set("key", "0");
  Options options = fleet.options("reader");
  options.on_event = events.listener();
  Cache reader(url(), options);
  const UpdateId head = reader.update();
  RedisClient client(server);
  client.run({"CONFIG", "SET", "requirepass", "secret"});
  client.run({"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"});
  std::thread later([&] {
    EXPECT_TRUE(happens_soon([&] { return events.count(Event::Kind::polling) > 0; }));
    writer.set("key", "1");
  });
  EXPECT_EQ(reader.update({.at_least = head + 1, .deadline = seconds(60)}), head + 1);
  later.join();
  EXPECT_NE(events.messages(Event::Kind::polling).find("NOAUTH"), std::string::npos);
  EXPECT_EQ(events.count(Event::Kind::polling), 1);
}

TEST(RedisFollowers, idle_fleet_asks_the_log_once_every_confirm_s) {
  TieredFleet fleet(TierKind::redis, seconds(1));
  TieredMachine berlin = fleet.open("berlin");
  berlin->set("key", "0");
  std::vector<TieredMachine> followers;
  for (int i = 0; i < 10; ++i)
    followers.push_back(fleet.open("follower" + std::to_string(i), true, true));
  for (const TieredMachine& follower : followers)
    ASSERT_TRUE(happens_soon([&] { return follower->get("key") == "0"; }));
  std::this_thread::sleep_for(seconds(3));

  std::uint64_t before = 0;
  std::uint64_t after = 0;
  for (const TieredMachine& follower : followers) before += *follower.log_calls;
  std::this_thread::sleep_for(seconds(6));
  for (const TieredMachine& follower : followers) after += *follower.log_calls;
  EXPECT_GE(after - before, 1U);
  EXPECT_LE(after - before, 16U);  // some of these polls are two calls
  for (const TieredMachine& follower : followers)
    EXPECT_LT(follower->staleness(), fleet.staleness_max());
}

}  // namespace
}  // namespace whycache::testing
