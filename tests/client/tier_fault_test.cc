// A tier that is dead, empty, evicting, paused or returning wrong data, and logs that are restored
// or replaced beneath it. Each of these costs log reads and some seconds, but never causes
// a wrong value, a missed update or a failed write.
#include <gtest/gtest.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/hash.h"
#include "client/tiered_fleet.h"
#include "support/seed.h"
#include "update/update.h"

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

std::chrono::milliseconds measure_duration(const std::function<void()>& work) {
  const auto began = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration_cast<milliseconds>(std::chrono::steady_clock::now() - began);
}

// A writer and a follower, both at update 3, which the tier holds.
class TierFaults : public ::testing::TestWithParam<TierKind> {
 protected:
  explicit TierFaults(seconds confirm = seconds(1), milliseconds timeout = milliseconds(2'000))
      : fleet(GetParam(), confirm, seconds(600), timeout) {
    for (int i = 1; i <= 3; ++i) write();
    tokyo->update();
    tokyo->update();
  }

  // Update `id` sets the key to `id`, so any other value is wrong.
  UpdateId write() {
    const UpdateId id = berlin->applied_id() + 1;
    EXPECT_EQ(berlin->set("key", std::to_string(id)), id);
    return id;
  }
  void expect_right_value() {
    const UpdateId id = tokyo->applied_id();
    EXPECT_EQ(tokyo->get("key"), std::to_string(id));
  }
  // Expects one update() of the follower to reach update `id`, with the right value.
  void expect_applied_id(UpdateId id) {
    EXPECT_EQ(tokyo->update(), id);
    expect_right_value();
  }
  // Expects the follower to reach update `id` within staleness_max(), and no wrong value before.
  void expect_applied_id_soon(UpdateId id) {
    EXPECT_TRUE(poll_until(tokyo, fleet.staleness_max(), [&] {
      expect_right_value();
      return tokyo->applied_id() == id;
    }));
  }
  // Returns the bytes of a valid update of another history.
  static std::string forged_update(UpdateId id, std::uint64_t previous_chain,
                                   const std::string& value) {
    Draft draft(Authorship{});
    draft.add(Change::set("key", value), 1 << 20);
    return std::string(draft.seal(id, previous_chain));
  }
  std::string bytes_in_log(UpdateId id) const {
    std::string found;
    fleet.fleet().log()->read(id, id, [&](UpdateId, std::string_view bytes) {
      found = bytes;
      return true;
    });
    return found;
  }

  TieredFleet fleet;
  TieredMachine berlin = fleet.open("berlin");
  TieredMachine tokyo = fleet.open("tokyo");
};

// Machines read the log only if the tier returns wrong data.
class TierWrongData : public TierFaults {
 protected:
  TierWrongData() : TierFaults(confirm_never) {}
};

class TierPaused : public TierFaults {
 protected:
  TierPaused() : TierFaults(seconds(1), milliseconds(100)) {}
};

// As TierWrongData, with a short timeout, so that a paused tier delays no call for long.
class TierUnreachable : public TierFaults {
 protected:
  TierUnreachable() : TierFaults(confirm_never, milliseconds(100)) {}
};

// Tiers that may consist of several servers.
class TierServers : public TierFaults {};

// A build may have no tier.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(TierFaults);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(TierWrongData);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(TierPaused);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(TierUnreachable);
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(TierServers);
INSTANTIATE_TEST_SUITE_P(Tiers, TierFaults, ::testing::ValuesIn(tier_kinds()), name_of_kind);
INSTANTIATE_TEST_SUITE_P(Tiers, TierWrongData, ::testing::ValuesIn(tier_kinds()), name_of_kind);
INSTANTIATE_TEST_SUITE_P(Tiers, TierPaused, ::testing::ValuesIn(tier_kinds()), name_of_kind);
INSTANTIATE_TEST_SUITE_P(Tiers, TierUnreachable, ::testing::ValuesIn(tier_kinds()), name_of_kind);
INSTANTIATE_TEST_SUITE_P(Tiers, TierServers, ::testing::ValuesIn(only(TierKind::memcached)),
                         name_of_kind);

// --- Dead, empty, evicting, paused. ---

TEST_P(TierFaults, caches_work_with_tier_dead_at_open) {
  fleet.server().kill();
  TieredMachine paris = fleet.open("paris");
  EXPECT_EQ(paris->update(), 3U);
  EXPECT_EQ(paris->set("key", "4"), 4U);
  EXPECT_EQ(tokyo->get_fresh("key").value, "4");
  EXPECT_EQ(paris->set("key", "5"), 5U);
  expect_applied_id_soon(5);
}

TEST_P(TierFaults, follower_catches_up_after_tier_restarts_empty) {
  for (int round = 0; round < 2; ++round) {  // also one that was dead before
    fleet.server().kill();
    for (int i = 0; i < 5; ++i) write();
    expect_applied_id_soon(berlin->applied_id());
    fleet.server().start();
    for (int i = 0; i < 5; ++i) {
      write();
      std::this_thread::sleep_for(milliseconds(500));
      tokyo->update();
      expect_right_value();
    }
    EXPECT_TRUE(poll_until(tokyo, fleet.staleness_max(),
                           [&] { return tokyo->applied_id() == berlin->applied_id(); }));
  }
  EXPECT_GT(fleet.server().item_count(), 0U);  // the tier is used again
}

TEST_P(TierFaults, follower_catches_up_despite_repeated_flushes) {
  for (int i = 0; i < 30; ++i) {
    if (i % 3 == 0) write();
    fleet.server().flush_all();
    if (i % 3 == 1) write();
    tokyo->update();
    expect_right_value();
    std::this_thread::sleep_for(milliseconds(50));
  }
  EXPECT_TRUE(poll_until(tokyo, fleet.staleness_max(),
                         [&] { return tokyo->applied_id() == berlin->applied_id(); }));
}

TEST_P(TierFaults, evicted_updates_are_read_from_log) {
  fleet.replace_servers(
      GetParam() == TierKind::memcached
          ? std::vector<std::string>{"-m", "2"}
          : std::vector<std::string>{"--maxmemory", "4mb", "--maxmemory-policy", "allkeys-lru"});
  TieredMachine paris = fleet.open("paris");
  TieredMachine rome = fleet.open("rome");
  rome->update();
  for (int i = 0; i < 400; ++i) {
    paris->set("key " + std::to_string(i % 50),
               incompressible_bytes(20'000, static_cast<std::uint64_t>(i)));
    if (i % 40 == 0) rome->update();
  }
  EXPECT_GT(fleet.server().evictions(), 0U);
  EXPECT_TRUE(poll_until(rome, fleet.staleness_max(),
                         [&] { return rome->applied_id() == paris->applied_id(); }));
  EXPECT_EQ(rome->digest(), paris->digest());
}

TEST_P(TierPaused, paused_tier_delays_calls_only_briefly) {
  fleet.server().pause();
  EXPECT_LT(measure_duration([&] { write(); }), milliseconds(900));
  EXPECT_LT(measure_duration([&] { tokyo->update(); }), milliseconds(900));
  EXPECT_LT(measure_duration([&] { EXPECT_EQ(tokyo->get_fresh("key").value, "4"); }),
            milliseconds(900));
  // After a timeout, requests are left out for a while.
  EXPECT_LT(measure_duration([&] {
              for (int i = 0; i < 5; ++i) write();
            }),
            milliseconds(900));
  expect_applied_id_soon(berlin->applied_id());
  fleet.server().resume();
  std::this_thread::sleep_for(milliseconds(2'100));
  const UpdateId id = write();
  EXPECT_TRUE(poll_until(tokyo, fleet.staleness_max(), [&] { return tokyo->applied_id() == id; }));
  expect_right_value();
}

TEST_P(TierServers, follower_catches_up_while_one_of_two_servers_is_dead) {
  fleet.add_server();
  TieredMachine paris = fleet.open("paris");
  TieredMachine rome = fleet.open("rome");
  rome->update();
  for (const std::size_t dying : {0U, 1U}) {
    fleet.server(dying).kill();
    for (int i = 0; i < 10; ++i) {
      const UpdateId id = paris->set("key", "x");
      std::this_thread::sleep_for(milliseconds(100));
      rome->update();
      EXPECT_LE(rome->applied_id(), id);
    }
    EXPECT_TRUE(poll_until(rome, fleet.staleness_max(),
                           [&] { return rome->applied_id() == paris->applied_id(); }));
    fleet.server(dying).start();
    EXPECT_TRUE(poll_until(rome, fleet.staleness_max(),
                           [&] { return rome->applied_id() == paris->applied_id(); }));
  }
}

// --- Wrong data. ---

TEST_P(TierWrongData, random_update_bytes_are_replaced_from_log) {
  const UpdateId id = write();
  fleet.set_update(id, incompressible_bytes(100, id));
  expect_applied_id(id);
  // The follower has replaced the wrong bytes.
  EXPECT_EQ(fleet.update(id), bytes_in_log(id));
}

TEST_P(TierWrongData, corrupted_updates_are_read_from_log) {
  std::mt19937_64 random(test_seed());
  SCOPED_TRACE(seed_note());
  for (int i = 0; i < 60; ++i) {
    const UpdateId id = write();
    std::string bytes = bytes_in_log(id);
    bytes[random() % bytes.size()] ^= static_cast<char>(1U << random() % 8);
    if (i % 3 == 0) bytes.resize(random() % bytes.size());
    fleet.set_update(id, bytes);
    expect_applied_id(id);
  }
}

TEST_P(TierWrongData, forged_update_before_real_one_is_rejected) {
  // Given a valid update that is not the one in the log, followed by one that is,
  const std::uint64_t chain = peek_header(bytes_in_log(3))->chain;
  write();
  const UpdateId last = write();
  fleet.set_update(4, forged_update(4, chain, "forged"));

  // then the follower never applies the forged update, not even briefly.
  expect_applied_id(last);
}

TEST_P(TierWrongData, forged_last_update_is_rejected) {
  const std::uint64_t chain = peek_header(bytes_in_log(3))->chain;
  write();
  fleet.set_update(4, forged_update(4, chain, "forged"));
  expect_applied_id(4);
}

TEST_P(TierWrongData, swapped_updates_are_rejected) {
  write();
  write();
  fleet.set_update(4, bytes_in_log(5));
  fleet.set_update(5, bytes_in_log(4));
  expect_applied_id(5);
}

TEST_P(TierWrongData, low_head_record_is_ignored_by_caught_up_follower) {
  const std::string before = *fleet.head();
  expect_applied_id(write());
  expect_applied_id(write());
  fleet.set_head(before);
  expect_applied_id(5);
  expect_applied_id(write());
}

TEST_P(TierWrongData, low_head_record_is_corrected_by_zero_staleness_update) {
  const std::string before = *fleet.head();
  const UpdateId id = write();
  fleet.set_head(before);
  tokyo->update();
  expect_right_value();
  EXPECT_EQ(tokyo->update({.staleness_max = milliseconds(0)}), id);
  expect_applied_id(id);
}

TEST_P(TierWrongData, foreign_or_malformed_head_record_is_ignored) {
  TieredFleet other(GetParam(), confirm_never);
  TieredMachine elsewhere = other.open("elsewhere");
  for (int i = 0; i < 10; ++i) elsewhere->set("key", "of another log");
  for (const std::string& wrong_head :
       {*other.head(), std::string(), std::string("head"), incompressible_bytes(48, 1),
        incompressible_bytes(5'000, 2)}) {
    fleet.set_head(wrong_head);
    expect_applied_id(berlin->applied_id());
    fleet.set_head(wrong_head);
    expect_applied_id(write());
  }
}

TEST_P(TierWrongData, high_head_record_is_corrected_from_log) {
  // Given a well-formed head record of an update that is not in the log,
  const std::string head = *fleet.head();
  const std::uint64_t chain = peek_header(bytes_in_log(3))->chain;
  std::string record;
  for (UpdateId id : {UpdateId{4}, UpdateId{5}, UpdateId{1} << 40, ~UpdateId{0}}) {
    record = head;
    record.replace(8, 8, std::string(reinterpret_cast<const char*>(&id), 8));
    record.replace(16, 8, std::string(reinterpret_cast<const char*>(&chain), 8));
    const std::uint64_t hash = hash64(std::string_view(record).substr(0, 40));
    record.replace(40, 8, std::string(reinterpret_cast<const char*>(&hash), 8));
    fleet.set_head(record);
    fleet.remove_fill_lease(4);
    // then the follower finds no such update in the tier, reads the log, and replaces the record.
    expect_applied_id(3);
    EXPECT_NE(fleet.head(), record);
  }
  expect_applied_id(write());
}

TEST_P(TierWrongData, unchanged_head_record_is_trusted_at_most_ask_s) {
  TieredFleet low_ask(GetParam(), confirm_never, seconds(2));
  TieredMachine paris = low_ask.open("paris");
  TieredMachine stranger = low_ask.open("stranger", false);
  paris->update();
  stranger->set("key", "new");
  EXPECT_TRUE(poll_until(paris, milliseconds(2'500), [&] { return paris->get("key") == "new"; }));
}

TEST_P(TierFaults, random_wrong_data_never_yields_wrong_value) {
  std::mt19937_64 random(test_seed());
  SCOPED_TRACE(seed_note());
  std::vector<std::string> heads;
  for (int i = 0; i < 400; ++i) {
    const UpdateId id = write();
    heads.push_back(fleet.head().value_or(""));
    const UpdateId wrong_id = id - random() % 3;
    switch (random() % 8) {
      case 0: fleet.set_update(wrong_id, incompressible_bytes(random() % 200, id)); break;
      case 1: fleet.set_update(wrong_id, bytes_in_log(1 + random() % id)); break;
      case 2: fleet.remove_update(wrong_id); break;
      case 3: fleet.set_head(heads[random() % heads.size()]); break;
      case 4: fleet.remove_head(); break;
      case 5: fleet.server().flush_all(); break;
      default: break;
    }
    if (random() % 2 == 0) tokyo->update();
    expect_right_value();
  }
  EXPECT_TRUE(poll_until(tokyo, fleet.staleness_max(),
                         [&] { return tokyo->applied_id() == berlin->applied_id(); }));
  EXPECT_EQ(contents(*tokyo.cache), contents(*berlin.cache));
  EXPECT_EQ(tokyo->counters().rebuilds_diverged + tokyo->counters().rebuilds_replaced, 0U);
}

// --- Logs that are restored, replaced, unavailable. ---

TEST_P(TierFaults, follower_rebuilds_after_log_restore) {
  for (int i = 0; i < 5; ++i) expect_applied_id(write());

  // When a backup as of update 4 is restored, and another machine appends to it,
  fleet.database().run("DELETE FROM whycache_updates_default WHERE id > 4");
  TieredMachine paris = fleet.open("paris");
  EXPECT_EQ(paris->set("key", "after the restore"), 5U);

  // then the follower, which has update 8 of the lost tail, rebuilds once and keeps the new
  // history.
  EXPECT_TRUE(poll_until(tokyo, fleet.staleness_max(),
                         [&] { return tokyo->get("key") == "after the restore"; }));
  for (int i = 0; i < 10; ++i) {
    tokyo->update();
    EXPECT_EQ(tokyo->applied_id(), 5U);
    EXPECT_EQ(tokyo->digest(), paris->digest());
    std::this_thread::sleep_for(milliseconds(100));
  }
  EXPECT_EQ(tokyo->counters().rebuilds_diverged, 1U);
  EXPECT_EQ(paris->counters().rebuilds_diverged, 0U);
}

TEST_P(TierFaults, follower_rebuilds_after_restored_log_outgrows_lost_tail) {
  for (int i = 0; i < 5; ++i) expect_applied_id(write());
  fleet.database().run("DELETE FROM whycache_updates_default WHERE id > 4");
  TieredMachine paris = fleet.open("paris", false);  // writes past the tier
  for (int i = 0; i < 20; ++i) paris->set("key", "after the restore");

  EXPECT_TRUE(poll_until(tokyo, fleet.staleness_max(), [&] { return tokyo->applied_id() == 24; }));
  EXPECT_EQ(tokyo->digest(), paris->digest());
}

TEST_P(TierFaults, follower_of_quiet_restored_log_stays_at_restored_head) {
  for (int i = 0; i < 5; ++i) expect_applied_id(write());
  fleet.database().run("DELETE FROM whycache_updates_default WHERE id > 4");
  EXPECT_TRUE(poll_until(tokyo, fleet.staleness_max(), [&] { return tokyo->applied_id() == 4; }));
  EXPECT_EQ(tokyo->get("key"), "4");
  // No machine applies the lost updates again, though the tier still holds them.
  TieredMachine paris = fleet.open("paris");
  for (int i = 0; i < 10; ++i) {
    EXPECT_EQ(tokyo->update(), 4U);
    EXPECT_EQ(paris->update(), 4U);
    std::this_thread::sleep_for(milliseconds(200));
  }
}

TEST_P(TierUnreachable, resumed_tier_does_not_undo_missed_restore) {
  // Given updates 4 and 5 and their head record, none of which the follower has read,
  write();
  write();

  // when the log loses them, and the follower reads it while the tier is paused,
  fleet.database().run("DELETE FROM whycache_updates_default WHERE id > 3");
  fleet.server().pause();
  EXPECT_EQ(tokyo->update({.staleness_max = milliseconds(0)}), 3U);
  fleet.server().resume();
  std::this_thread::sleep_for(milliseconds(2'200));

  // then the updates left in the tier are not applied,
  for (int i = 0; i < 3; ++i) expect_applied_id(3);

  // and later updates come from the tier as before.
  EXPECT_EQ(tokyo->update({.staleness_max = milliseconds(0)}), 3U);
  TieredMachine paris = fleet.open("paris");
  EXPECT_EQ(paris->set("key", "4"), 4U);
  const std::uint64_t before = *tokyo.log_calls;
  expect_applied_id(4);
  EXPECT_EQ(*tokyo.log_calls, before);
}

TEST_P(TierFaults, writer_after_restore_appends_to_restored_history) {
  for (int i = 0; i < 5; ++i) expect_applied_id(write());
  fleet.database().run("DELETE FROM whycache_updates_default WHERE id > 4");
  TieredMachine paris = fleet.open("paris", false);
  for (int i = 0; i < 4; ++i) paris->set("key", "after the restore");
  std::this_thread::sleep_for(milliseconds(150));

  // Given that update 8 of the log differs from the writer's, and the tier reports no change.
  berlin->set("other", "written");
  const std::unique_ptr<Log> log = fleet.fleet().log();
  std::uint64_t chain = chain_start(log->extent().uuid);
  log->read(1, 100, [&](UpdateId id, std::string_view bytes) {
    chain = verify_chain(bytes, id, chain);
    return true;
  });
  EXPECT_EQ(berlin->get("key"), "after the restore");
}

TEST_P(TierWrongData, writer_reads_log_despite_fresh_head_record) {
  for (int i = 0; i < 5; ++i) expect_applied_id(write());
  berlin->update();
  fleet.database().run("DELETE FROM whycache_updates_default WHERE id > 4");
  TieredMachine paris = fleet.open("paris", false);
  for (int i = 0; i < 4; ++i) paris->set("key", "after the restore");
  std::this_thread::sleep_for(milliseconds(150));

  // Given a head record that claims a confirmation just now, with the lost update 8,
  for (std::uint64_t number : {1U, 2U}) {
    std::string record = *fleet.head();
    record.replace(0, 8, std::string(reinterpret_cast<const char*>(&number), 8));
    const std::uint64_t hash = hash64(std::string_view(record).substr(0, 40));
    record.replace(40, 8, std::string(reinterpret_cast<const char*>(&hash), 8));
    fleet.set_head(record);
    berlin->update();
  }
  ASSERT_EQ(berlin->get("key"), "8");

  // then the writer reads the log anyway, and its update continues the history of the log.
  EXPECT_EQ(berlin->set("other", "written"), 9U);
  EXPECT_EQ(berlin->get("key"), "after the restore");
  EXPECT_EQ(fleet.open("late")->digest(), berlin->digest());
}

TEST_P(TierFaults, follower_rebuilds_after_log_is_replaced) {
  const std::string file = fleet.fleet().directory().file("log.db");
  for (const char* suffix : {"", "-journal", "-wal", "-shm"})
    std::filesystem::remove(file + suffix);
  TieredMachine paris = fleet.open("paris");
  paris->set("key", "in another log");

  const auto end = std::chrono::steady_clock::now() + fleet.staleness_max();
  while (tokyo->get("key") != "in another log" && std::chrono::steady_clock::now() < end) {
    tokyo->update();
    std::this_thread::sleep_for(milliseconds(20));
  }
  EXPECT_EQ(tokyo->get("key"), "in another log");
  EXPECT_EQ(tokyo->counters().rebuilds_replaced, 1U);
}

TEST_P(TierFaults, unavailable_log_is_reported_despite_tier) {
  fleet.database().run("ALTER TABLE whycache_updates_default RENAME TO away");
  const auto end = std::chrono::steady_clock::now() + fleet.staleness_max() + milliseconds(500);
  std::optional<Error> error;
  while (!error && std::chrono::steady_clock::now() < end) {
    error = thrown_error([&] { tokyo->update({.deadline = milliseconds(100)}); });
    expect_right_value();
    std::this_thread::sleep_for(milliseconds(50));
  }
  EXPECT_TRUE(error.has_value());
  EXPECT_GT(tokyo->staleness(), seconds(0));
  fleet.database().run("ALTER TABLE away RENAME TO whycache_updates_default");
  EXPECT_TRUE(
      poll_until(tokyo, fleet.staleness_max(), [&] { return tokyo->staleness() < seconds(2); }));
}

}  // namespace
}  // namespace whycache::testing
