// Machines that read updates from a tier: what they see, how stale it may be, and how rarely
// they read the log.
#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "client/tiered_fleet.h"

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

class TierFleet : public ::testing::TestWithParam<TierKind> {};

// Tiers whose servers limit the size of an item.
class TierItemLimit : public ::testing::TestWithParam<TierKind> {};

// A build may have no tier.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(TierFleet);
INSTANTIATE_TEST_SUITE_P(Tiers, TierFleet, ::testing::ValuesIn(tier_kinds()), name_of_kind);
INSTANTIATE_TEST_SUITE_P(Tiers, TierItemLimit, ::testing::ValuesIn(only(TierKind::memcached)),
                         name_of_kind);

std::uint64_t log_calls_of(const std::vector<TieredMachine>& machines) {
  std::uint64_t calls = 0;
  for (const TieredMachine& machine : machines) calls += *machine.log_calls;
  return calls;
}

TEST_P(TierFleet, followers_read_updates_from_tier_only) {
  TieredFleet fleet(GetParam(), confirm_never);
  TieredMachine berlin = fleet.open("berlin");
  berlin->set("key", "first");
  const std::vector<TieredMachine> followers = fleet.open_many(10);
  warm_up(followers);
  const std::uint64_t before = log_calls_of(followers);

  for (int i = 0; i < 50; ++i) {
    const std::string value = "value " + std::to_string(i);
    const UpdateId id = berlin->set("key", value);
    for (const TieredMachine& follower : followers) {
      EXPECT_EQ(follower->update(), id);
      EXPECT_EQ(follower->get("key"), value);
    }
  }
  EXPECT_EQ(log_calls_of(followers), before);
}

TEST_P(TierFleet, many_updates_are_read_from_tier_only) {
  TieredFleet fleet(GetParam(), confirm_never);
  TieredMachine berlin = fleet.open("berlin");
  TieredMachine tokyo = fleet.open("tokyo");
  tokyo->update();
  const std::uint64_t before = *tokyo.log_calls;

  for (int i = 0; i < 700; ++i) berlin->set("key " + std::to_string(i), std::to_string(i));

  EXPECT_EQ(tokyo->update(), 700U);
  EXPECT_EQ(contents(*tokyo.cache), contents(*berlin.cache));
  EXPECT_EQ(*tokyo.log_calls, before);
}

TEST_P(TierFleet, one_follower_confirms_with_log_for_all) {
  TieredFleet fleet(GetParam(), seconds(1));
  TieredMachine berlin = fleet.open("berlin");
  berlin->set("key", "value");
  const std::vector<TieredMachine> followers = fleet.open_many(20);
  warm_up(followers);
  const std::uint64_t before = log_calls_of(followers);
  std::vector<std::uint64_t> calls_before;
  for (const TieredMachine& follower : followers) calls_before.push_back(*follower.log_calls);

  // When all of them poll for five seconds,
  const auto end = std::chrono::steady_clock::now() + seconds(5);
  std::chrono::nanoseconds staleness_seen{0};
  while (std::chrono::steady_clock::now() < end) {
    for (const TieredMachine& follower : followers) {
      follower->update();
      staleness_seen = std::max(staleness_seen, follower->staleness());
    }
    std::this_thread::sleep_for(milliseconds(50));
  }

  // then the log was read about once a second in total, and every reported staleness was small.
  const std::uint64_t calls = log_calls_of(followers) - before;
  EXPECT_GE(calls, 2U);
  EXPECT_LE(calls, 10U);
  EXPECT_LT(staleness_seen, milliseconds(3500));
  // Mostly the same follower did it, over the connection that it has.
  std::uint64_t most_calls = 0;
  for (std::size_t i = 0; i < followers.size(); ++i)
    most_calls = std::max(most_calls, *followers[i].log_calls - calls_before[i]);
  EXPECT_GE(2 * most_calls, calls);
}

TEST_P(TierFleet, staleness_bound_reads_update_unknown_to_tier) {
  TieredFleet fleet(GetParam(), confirm_never);
  TieredMachine stranger = fleet.open("stranger", false);
  TieredMachine tokyo = fleet.open("tokyo");
  stranger->set("key", "old");
  warm_up({});
  tokyo->update();

  // Given an update that the tier does not hold,
  stranger->set("key", "new");
  tokyo->update();
  EXPECT_EQ(tokyo->get("key"), "old");

  // then a bounded read returns it from the log.
  EXPECT_EQ(tokyo->get_fresh("key").value, "new");
  stranger->set("key", "newer");
  std::this_thread::sleep_for(milliseconds(20));
  tokyo->update({.staleness_max = milliseconds(10)});
  EXPECT_EQ(tokyo->get("key"), "newer");
  stranger->set("key", "newest");
  EXPECT_EQ(tokyo->update({.at_least = 4}), 4U);
  EXPECT_EQ(tokyo->get("key"), "newest");
}

TEST_P(TierFleet, update_unknown_to_tier_is_seen_at_confirmation) {
  TieredFleet fleet(GetParam(), seconds(1));
  TieredMachine stranger = fleet.open("stranger", false);
  stranger->set("key", "old");
  const std::vector<TieredMachine> followers = fleet.open_many(3);
  warm_up(followers);

  stranger->set("key", "new");
  for (const TieredMachine& follower : followers) {
    EXPECT_TRUE(
        poll_until(follower, fleet.staleness_max(), [&] { return follower->get("key") == "new"; }));
  }
}

TEST_P(TierFleet, infrequent_poller_uses_confirmation_of_frequent_poller) {
  TieredFleet fleet(GetParam(), seconds(2));  // memcached counts whole seconds
  TieredMachine berlin = fleet.open("berlin");
  berlin->set("key", "old");
  const std::vector<TieredMachine> followers = fleet.open_many(2);
  warm_up(followers);
  const TieredMachine& frequent = followers[0];
  const TieredMachine& rare = followers[1];
  const std::uint64_t before = *rare.log_calls;

  // Given a follower that does not poll for longer than staleness_max(), while another polls,
  const auto end = std::chrono::steady_clock::now() + fleet.staleness_max() + milliseconds(500);
  while (std::chrono::steady_clock::now() < end) {
    frequent->update();
    std::this_thread::sleep_for(milliseconds(50));
  }
  berlin->set("key", "new");
  for (const std::uint64_t calls = *frequent.log_calls; *frequent.log_calls == calls;)
    frequent->update();

  // then the first sees the new value and its age without reading the log itself.
  EXPECT_EQ(rare->update(), 2U);
  EXPECT_EQ(*rare.log_calls, before);
  EXPECT_LT(rare->staleness(), milliseconds(4'500));  // the lease lasts 3 s, give or take one
}

TEST_P(TierFleet, writers_on_all_machines_agree_on_sum) {
  TieredFleet fleet(GetParam(), seconds(1));
  const std::vector<TieredMachine> machines = fleet.open_many(4);
  std::vector<std::thread> threads;
  for (const TieredMachine& machine : machines) {
    threads.emplace_back([&] {
      for (int i = 0; i < 50; ++i) machine->add("sum", 1);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const TieredMachine& machine : machines) {
    machine->update();
    EXPECT_EQ(machine->get("sum"), "200");
    EXPECT_EQ(machine->digest(), machines[0]->digest());
  }
}

TEST_P(TierFleet, update_too_large_for_tier_is_read_from_log) {
  TieredFleet fleet(GetParam(), confirm_never);
  TieredMachine berlin = fleet.open("berlin");
  TieredMachine tokyo = fleet.open("tokyo");
  tokyo->update();
  const std::string large = incompressible_bytes(1'020'000, 1);

  EXPECT_EQ(berlin->set("large", large), 1U);
  EXPECT_EQ(tokyo->update(), 1U);
  EXPECT_TRUE(tokyo->get("large") == large);
}

TEST_P(TierItemLimit, update_above_server_item_limit_is_read_from_log) {
  TieredFleet fleet(GetParam(), confirm_never);
  fleet.replace_servers({"-I", "512k"});
  TieredMachine berlin = fleet.open("berlin");
  TieredMachine tokyo = fleet.open("tokyo");
  tokyo->update();
  for (UpdateId id = 1; id <= 5; ++id) {
    const std::string value = incompressible_bytes(id * 190'000, id);
    EXPECT_EQ(berlin->set("key", value), id);
    EXPECT_EQ(tokyo->update(), id);
    EXPECT_TRUE(tokyo->get("key") == value) << id;
  }
}

TEST_P(TierFleet, follower_continues_without_rebuild_after_rewrite) {
  TieredFleet fleet(GetParam(), seconds(1));
  TieredMachine berlin = fleet.open("berlin");
  TieredMachine tokyo = fleet.open("tokyo");
  for (int i = 0; i < 20; ++i) berlin->set("key", std::to_string(i));
  tokyo->update();

  EXPECT_EQ(berlin->rewrite_history(), 20U);
  EXPECT_EQ(berlin->set("key", "after"), 21U);
  EXPECT_EQ(tokyo->update(), 21U);
  EXPECT_EQ(tokyo->get("key"), "after");
  for (int i = 0; i < 20; ++i) {
    EXPECT_EQ(tokyo->update(), 21U);
    std::this_thread::sleep_for(milliseconds(100));
  }
  EXPECT_EQ(tokyo->counters().rebuilds_behind_base + tokyo->counters().rebuilds_diverged, 0U);
}

TEST_P(TierFleet, follower_behind_base_rebuilds_state) {
  TieredFleet fleet(GetParam(), seconds(1));
  TieredMachine berlin = fleet.open("berlin");
  TieredMachine tokyo = fleet.open("tokyo");
  berlin->set("erased", "1");
  tokyo->update();
  berlin->erase("erased");
  for (int i = 0; i < 5000; ++i) static_cast<void>(berlin->set_async("key", std::to_string(i)));
  berlin->set("key", "last");
  berlin->rewrite_history();
  fleet.server().flush_all();
  berlin->set("key", "after");

  EXPECT_TRUE(
      poll_until(tokyo, fleet.staleness_max(), [&] { return tokyo->get("key") == "after"; }));
  EXPECT_EQ(contents(*tokyo.cache), contents(*berlin.cache));
  EXPECT_EQ(tokyo->counters().rebuilds_behind_base, 1U);
}

TEST_P(TierFleet, delete_all_history_empties_every_machine) {
  TieredFleet fleet(GetParam(), seconds(1));
  TieredMachine berlin = fleet.open("berlin");
  const std::vector<TieredMachine> followers = fleet.open_many(3);
  berlin->set("key", "value");
  warm_up(followers);
  EXPECT_EQ(followers[0]->size(), 1U);

  berlin->delete_all_history();
  for (const TieredMachine& follower : followers) {
    follower->update();
    EXPECT_EQ(follower->size(), 0U);
  }
}

TEST_P(TierFleet, unix_socket_server_delivers_updates) {
  TieredFleet fleet(GetParam(), confirm_never);
  fleet.replace_servers({}, true);
  TieredMachine berlin = fleet.open("berlin");
  TieredMachine tokyo = fleet.open("tokyo");
  tokyo->update();
  const std::uint64_t before = *tokyo.log_calls;
  berlin->set("key", "value");
  EXPECT_EQ(tokyo->update(), 1U);
  EXPECT_EQ(*tokyo.log_calls, before);
}

TEST_P(TierFleet, parent_and_child_write_after_fork) {
  TieredFleet fleet(GetParam(), confirm_never);
  TieredMachine berlin = fleet.open("berlin");
  TieredMachine tokyo = fleet.open("tokyo");
  tokyo->update();
  for (UpdateId id = 1; id <= 3; ++id) {
    expect_success_in_child([&] { EXPECT_EQ(berlin->set("key", std::to_string(id)), 2 * id - 1); });
    tokyo->update();
    EXPECT_EQ(tokyo->get("key"), std::to_string(id));
    EXPECT_EQ(berlin->set("key", "parent"), 2 * id);
  }
}

}  // namespace
}  // namespace whycache::testing
