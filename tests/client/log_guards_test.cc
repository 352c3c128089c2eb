// Guards that live in the log: every writer obeys them, whatever it knew when its call began.
#include <gtest/gtest.h>

#include <whycache/cache.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "client/fleet.h"
#include "client/guards.h"
#include "update/update.h"

namespace whycache::testing {
namespace {

void fill(Cache& cache, int count) {
  std::vector<std::pair<std::string, std::string>> items;
  for (int i = 0; i < count; ++i) items.emplace_back("key" + std::to_string(i), "value");
  cache.set_multi(items);
}

std::vector<std::string> keys_up_to(int count) {
  std::vector<std::string> keys;
  for (int i = 0; i < count; ++i) keys.push_back("key" + std::to_string(i));
  return keys;
}

TEST(LogGuards, are_seen_by_every_machine_and_removed_by_default_ones) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  const LogGuards guards{.clear_allowed = false, .erased_keys_max = 5, .erased_share_max = 0.25};

  const UpdateId id = berlin.set_log_guards(guards);
  EXPECT_EQ(berlin.set_log_guards(guards), id) << "nothing to change";

  tokyo.update();
  EXPECT_EQ(tokyo.log_guards(), guards);
  EXPECT_EQ(tokyo.get(log_guards_key), "clear=no erased_keys_max=5 erased_share_max=0.25");
  tokyo.set_log_guards({});
  berlin.update();
  EXPECT_EQ(berlin.log_guards(), LogGuards{});
  EXPECT_EQ(berlin.size(), 0U);
}

TEST(LogGuards, stop_each_way_to_erase_too_many_keys) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  fill(cache, 10);
  const UpdateId head = cache.set_log_guards({.erased_keys_max = 3});
  const auto refused = [&](const std::function<void()>& call) {
    expect_error(ErrorKind::refused, call, "guards of the log", "erased_keys_max=3");
    EXPECT_EQ(cache.applied_id(), head);
  };

  refused([&] { cache.erase_multi(keys_up_to(4)); });
  refused([&] { static_cast<void>(cache.erase_multi_async(keys_up_to(4)).get()); });
  refused([&] { cache.erase_prefix("key"); });
  refused([&] { cache.transact([](Transaction& t) { t.erase(KeyRange::prefix("key")); }); });
  refused([&] { cache.rewrite_history({.keep = [](auto, auto) { return false; }}); });
  refused([&] { cache.delete_all_history(); });

  cache.erase_multi(keys_up_to(3));
  cache.erase_multi({"absent1", "absent2", "absent3", "absent4"});
  EXPECT_EQ(cache.count(KeyRange::prefix("key")), 7U);
}

TEST(LogGuards, count_share_of_all_keys_but_their_own) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  fill(cache, 10);
  cache.set_log_guards({.erased_share_max = 0.2});

  cache.erase_multi(keys_up_to(2));
  expect_error(
      ErrorKind::refused,
      [&] {
        cache.erase_multi({"key2", "key3"});
      },
      "25%", "keys=8");
  for (const char* key : {"key2", "key3", "key4", "key5", "key6"}) cache.erase(key);
  cache.erase("key7");  // a third of the keys, but a single one
}

TEST(LogGuards, forbid_to_clear_by_any_call) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  fill(cache, 3);
  cache.set_log_guards({.clear_allowed = false});

  for (const std::function<void()>& clear : std::vector<std::function<void()>>{
           [&] { cache.delete_all_history(); }, [&] { cache.erase_prefix(""); },
           [&] { cache.erase_multi(keys_up_to(3)); },
           [&] { cache.rewrite_history({.keep = [](auto, auto) { return false; }}); }}) {
    expect_error(ErrorKind::refused, clear, "forbid to clear", "keys=3");
  }
  cache.erase_multi(keys_up_to(2));
  cache.erase("key2");  // a single key
  EXPECT_EQ(cache.size(), 1U);
}

TEST(LogGuards, of_another_machine_stop_a_write_that_had_begun) {
  Fleet fleet;
  Cache tokyo = fleet.open("tokyo");
  fill(tokyo, 10);
  const auto script = std::make_shared<Script>();
  bool is_first = true;
  script->before_append = [&](UpdateId) {
    if (std::exchange(is_first, false)) tokyo.set_log_guards({.erased_keys_max = 3});
  };
  Cache berlin = fleet.open("berlin", script);

  expect_error(
      ErrorKind::refused, [&] { berlin.erase_multi(keys_up_to(4)); }, "erased_keys_max=3");

  EXPECT_EQ(script->append_count, 1);
  tokyo.update();
  EXPECT_EQ(tokyo.count(KeyRange::prefix("key")), 10U);
}

TEST(LogGuards, count_all_updates_of_one_call) {
  Fleet fleet;
  const auto script = std::make_shared<Script>();
  Options options;
  options.update_bytes_max = 4096;
  Cache tokyo = fleet.open("tokyo");
  fill(tokyo, 2000);
  Cache berlin = fleet.open("berlin", script, options);
  tokyo.set_log_guards({.erased_keys_max = 1500});
  berlin.update();
  expect_error(
      ErrorKind::refused, [&] { berlin.erase_multi(keys_up_to(1501)); }, "erased=1501");
  EXPECT_EQ(script->append_count, 0);

  // Guards that get into the log while the call runs count from then on.
  tokyo.set_log_guards({});
  berlin.update();
  const UpdateId start = berlin.applied_id();
  script->before_append = [&](UpdateId id) {
    if (id == start + 1) tokyo.set_log_guards({.erased_keys_max = 700});
  };
  expect_error(
      ErrorKind::uncertain, [&] { berlin.erase_multi(keys_up_to(2000)); }, "stopped midway",
      "erased_keys_max=700");
  EXPECT_GE(berlin.count(KeyRange::prefix("key")), 1300U);
}

TEST(LogGuards, stop_only_the_batch_of_a_group_that_violates_them) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  fill(cache, 10);
  cache.set_log_guards({.erased_keys_max = 3});
  std::vector<std::future<UpdateId>> erased;
  for (int first = 0; first < 9; first += 3) {
    std::vector<std::string> keys;
    for (int i = first; i < first + 3; ++i) keys.push_back("key" + std::to_string(i));
    erased.push_back(cache.erase_multi_async(keys));
  }
  for (std::future<UpdateId>& id : erased) EXPECT_NO_THROW(id.get());
  EXPECT_EQ(cache.count(KeyRange::prefix("key")), 1U);
}

TEST(LogGuards, survive_clearing_rewriting_and_rebuilding) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  fill(berlin, 5);
  const LogGuards guards{.erased_keys_max = 7};
  berlin.set_log_guards(guards);

  const UpdateId base = berlin.delete_all_history();
  EXPECT_EQ(base, berlin.applied_id());
  EXPECT_EQ(berlin.size(), 1U);
  Cache tokyo = fleet.open("tokyo");  // from the base
  EXPECT_EQ(tokyo.log_guards(), guards);
  EXPECT_EQ(tokyo.digest(), berlin.digest());

  fill(berlin, 5);
  berlin.rewrite_history({.keep = [](auto, auto) { return false; }});
  EXPECT_EQ(fleet.open("osaka").log_guards(), guards);
  EXPECT_EQ(berlin.erase_prefix(""), berlin.applied_id());
  EXPECT_EQ(berlin.log_guards(), guards);
}

TEST(LogGuards, other_writes_may_copy_them_and_nothing_else) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  const std::string key(log_guards_key);

  cache.set(key, "erased_keys_max=9");
  EXPECT_EQ(cache.log_guards(), LogGuards{.erased_keys_max = 9});
  expect_error(
      ErrorKind::refused, [&] { cache.erase(key); }, key, "guard --remove");
  expect_error(
      ErrorKind::refused, [&] { cache.transact([&](Transaction& t) { t.erase(key); }); }, key);
  for (const char* text : {"no", "clear", "clear=yes", "erased_keys_max=-1", "erased_keys_max=1x",
                           "erased_share_max=1.5", "erased_share_max=nan",
                           "erased_keys_max=1 erased_keys_max=2", "erased_keys_max=1  clear=no"}) {
    expect_error(
        ErrorKind::invalid, [&] { cache.set(key, text); }, "reserved", key);
  }
  EXPECT_EQ(cache.log_guards(), LogGuards{.erased_keys_max = 9});
}

// Appends an update as another version might write it.
void append_change(Log& log, const Cache& cache, const Change& change) {
  Draft draft(Authorship{});
  ASSERT_TRUE(draft.add(change, 4096));
  const StateInfo info = cache.inspect().info;
  ASSERT_EQ(log.append(info.applied_id + 1, draft.seal(info.applied_id + 1, info.chain)),
            Log::Appended::yes);
}

TEST(LogGuards, of_a_newer_version_let_nothing_be_erased) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  fill(cache, 3);
  append_change(*fleet.log(), cache, Change::set(log_guards_key, "clear=no moon_phase=full"));
  cache.update();

  expect_error(
      ErrorKind::refused, [&] { cache.erase("key0"); }, "not ones that this version knows");
  expect_error(
      ErrorKind::refused, [&] { static_cast<void>(cache.log_guards()); }, "newer");
  cache.set("key0", "b");
  cache.set_log_guards({});
  cache.erase("key0");
}

TEST(LogGuards, round_trip_through_their_text) {
  for (const LogGuards& guards :
       {LogGuards{}, LogGuards{.clear_allowed = false}, LogGuards{.erased_keys_max = 0},
        LogGuards{.clear_allowed = false, .erased_keys_max = UINT64_MAX, .erased_share_max = 0.1},
        LogGuards{.erased_share_max = 1e-9}}) {
    EXPECT_EQ(decode_log_guards(encode_log_guards(guards)), guards) << encode_log_guards(guards);
  }
}

}  // namespace
}  // namespace whycache::testing
