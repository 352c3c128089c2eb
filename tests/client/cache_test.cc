// The public interface of the cache, on one machine and on two.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <filesystem>
#include <functional>
#include <limits>
#include <map>
#include <string>
#include <thread>
#include <vector>

#include "client/cache_internal.h"
#include "client/fleet.h"
#include "support/thrown_error.h"

namespace whycache::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Optional;

std::vector<std::string> strings(const auto& range) {
  std::vector<std::string> all;
  for (const std::string_view text : range) all.emplace_back(text);
  return all;
}

TEST(Cache, get_returns_value_that_was_set) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");

  EXPECT_EQ(cache.set("checkout.enabled", "yes"), 1U);

  EXPECT_EQ(cache.get("checkout.enabled"), "yes");
  EXPECT_TRUE(cache.contains("checkout.enabled"));
  EXPECT_EQ(cache.size(), 1U);
  EXPECT_EQ(cache.applied_id(), 1U);
}

TEST(Cache, get_of_absent_key_returns_nullopt) {
  Fleet fleet;
  const Cache cache = fleet.open("berlin");

  EXPECT_EQ(cache.get("nothing"), std::nullopt);
  EXPECT_FALSE(cache.contains("nothing"));
  std::string value = "unchanged";
  EXPECT_FALSE(cache.get("nothing", value));
  EXPECT_EQ(value, "unchanged");
}

TEST(Cache, get_into_existing_string_stores_value) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("key", "value");

  std::string value;
  EXPECT_TRUE(cache.get("key", value));
  EXPECT_EQ(value, "value");
}

TEST(Cache, set_overwrites_and_erase_removes_value) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  cache.set("a", "2");
  EXPECT_EQ(cache.get("a"), "2");

  EXPECT_EQ(cache.erase("a"), 3U);

  EXPECT_EQ(cache.get("a"), std::nullopt);
  EXPECT_EQ(cache.size(), 0U);
}

TEST(Cache, keys_and_values_preserve_arbitrary_bytes) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  const std::string key("\0k\xff\n", 4);
  std::string value;
  for (int byte = 0; byte < 256; ++byte) value += static_cast<char>(byte);

  cache.set(key, value);

  EXPECT_EQ(cache.get(key), value);
  EXPECT_EQ(fleet.open("tokyo").get(key), value);
}

TEST(Cache, multi_key_write_appends_one_update) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");

  EXPECT_EQ(cache.set_multi({{"a", "1"}, {"b", "2"}, {"c", "3"}}), 1U);
  EXPECT_EQ(cache.erase_multi({"a", "b"}), 2U);
  EXPECT_EQ(cache.write({Change::set("d", "4"), Change::erase("c")}), 3U);

  EXPECT_EQ(contents(cache), (Contents{{"d", "4"}}));
}

TEST(Cache, multi_key_calls_accept_maps_vectors_and_string_types) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");

  cache.set_multi(std::map<std::string, std::string>{{"a", "1"}, {"b", "2"}, {"c", "3"}});
  cache.set_multi(std::vector<std::pair<std::string_view, const char*>>{{"d", "4"}});
  cache.set_multi(std::vector<Item>{{"e", "5"}});
  cache.erase_multi(std::vector<std::string>{"a"});
  cache.erase_multi(std::array<const char*, 1>{"b"});
  cache.erase_multi(std::vector<std::string_view>{"c"});

  EXPECT_THAT(cache.get_multi({"a", "d"}), ElementsAre(std::nullopt, Optional(std::string("4"))));
  EXPECT_THAT(cache.get_multi(std::vector<std::string>{"e", "b"}),
              ElementsAre(Optional(std::string("5")), std::nullopt));
  EXPECT_TRUE(cache.get_multi(std::vector<std::string_view>{}).empty());
}

TEST(Cache, several_values_are_copied_into_strings_of_the_caller) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set_multi(std::map<std::string, std::string>{{"a", "1"}, {"c", std::string(100, '3')}});

  std::vector<std::optional<std::string>> values(3);
  values[1] = "left from before";
  values[2] = std::string(200, 'x');
  const char* const memory = values[2]->data();
  const std::array<std::string_view, 3> keys = {"a", "b", "c"};
  EXPECT_EQ(cache.get_multi(keys, values), 2U);
  EXPECT_THAT(values, ElementsAre(Optional(std::string("1")), std::nullopt,
                                  Optional(std::string(100, '3'))));
  EXPECT_EQ(values[2]->data(), memory) << "its memory is used again";

  EXPECT_EQ(
      cache.get_multi(std::span<const std::string_view>(), std::span<std::optional<std::string>>()),
      0U);
  expect_error(ErrorKind::invalid, [&] { cache.get_multi(keys, std::span(values).first(2)); });
}

TEST(Cache, last_change_of_key_in_batch_wins) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("b", "old");

  cache.write({Change::set("a", "1"), Change::erase("b"), Change::set("a", "2"),
               Change::set("b", "new"), Change::erase("c"), Change::set("d", "1"),
               Change::erase("d")});

  EXPECT_EQ(contents(cache), (Contents{{"a", "2"}, {"b", "new"}}));
}

TEST(Cache, empty_batch_appends_nothing) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");

  EXPECT_EQ(cache.set_multi(std::vector<Item>{}), 1U);
  EXPECT_EQ(cache.erase_multi(std::vector<std::string_view>{}), 1U);
  EXPECT_EQ(cache.write(std::vector<Change>{}), 1U);

  EXPECT_EQ(fleet.log()->extent().head, 1U);
}

TEST(Cache, keys_values_and_items_iterate_in_key_order) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set_multi({{"b", "2"}, {"ab", "1b"}, {"a", "1"}, {"c", "3"}});

  EXPECT_THAT(strings(cache.keys()), ElementsAre("a", "ab", "b", "c"));
  EXPECT_THAT(strings(cache.values()), ElementsAre("1", "1b", "2", "3"));
  EXPECT_THAT(strings(cache.keys(KeyRange::prefix("a"))), ElementsAre("a", "ab"));
  EXPECT_THAT(strings(cache.keys(KeyRange::between("ab", "c"))), ElementsAre("ab", "b"));
  EXPECT_THAT(strings(cache.keys(KeyRange::from("b"))), ElementsAre("b", "c"));
  std::vector<Item> items;
  const View view = cache.view();
  for (const Item item : view.items()) items.push_back(item);
  EXPECT_EQ(items.size(), 4U);
  EXPECT_EQ(items.front(), (Item{"a", "1"}));
}

TEST(Cache, get_as_returns_numbers_and_truth_values) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set_multi({{"port", "8080"}, {"rate", "0.25"}, {"enabled", "on"}, {"name", "x"}});

  EXPECT_EQ(cache.get_as<int>("port"), 8080);
  EXPECT_EQ(cache.get_as<double>("rate"), 0.25);
  EXPECT_EQ(cache.get_as<bool>("enabled"), true);
  EXPECT_EQ(cache.get_as<bool>("absent").value_or(false), false);
  expect_error(
      ErrorKind::invalid, [&] { static_cast<void>(cache.get_as<int>("name")); }, "key=name");
  expect_error(
      ErrorKind::invalid, [&] { static_cast<void>(cache.get_as<std::int8_t>("port")); },
      "out of range", "-128..127", "key=port");
}

TEST(Cache, count_returns_number_of_keys_in_range) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set_multi({{"a", ""}, {"b1", ""}, {"b2", ""}, {"c", ""}});

  EXPECT_EQ(cache.count(KeyRange::prefix("b")), 2U);
  EXPECT_EQ(cache.count(KeyRange::from("b2")), 2U);
  EXPECT_EQ(cache.count(KeyRange::all()), 4U);
  EXPECT_THAT(strings(cache.keys(KeyRange::prefix("b")).reversed()), ElementsAre("b2", "b1"));
}

TEST(Cache, calls_that_can_never_succeed_throw_invalid) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  const std::string long_key(key_bytes_max + 1, 'k');
  for (const std::string_view key : {std::string_view(), std::string_view(long_key)}) {
    EXPECT_FALSE(cache.contains(key)) << "a read finds no such key";
    const std::vector<std::function<void()>> writes{
        [&] { cache.set(key, "1"); },
        [&] { cache.erase(key); },
        [&] { static_cast<void>(cache.set_async(key, "1")); },
        [&] { static_cast<void>(cache.set_if(key, "1", "2")); },
        [&] { static_cast<void>(cache.erase_if(key, "1")); },
        [&] { static_cast<void>(cache.set_if_version(key, 7, "2")); },
        [&] { static_cast<void>(cache.erase_if_version(key, 7)); },
        [&] { cache.add(key, 1); },
        [&] { static_cast<void>(cache.acquire(key, std::chrono::seconds(1))); },
        [&] { cache.transact([&](Transaction& transaction) { transaction.erase(key); }); }};
    for (const std::function<void()>& write : writes)
      expect_error(ErrorKind::invalid, write, "key");
  }
  expect_error(
      ErrorKind::invalid, [&] { cache.transact(std::function<void(Transaction&)>()); },
      "no function");
  expect_error(
      ErrorKind::invalid, [&] { cache.fill({}); }, "no function");
  for (const double share : {-0.1, 1.5, std::numeric_limits<double>::quiet_NaN()}) {
    Options options;
    options.guards.erased_share_max = share;
    expect_error(
        ErrorKind::invalid, [&] { fleet.open("berlin", options); }, "erased_share_max");
  }
  Options options;
  options.state_path = fleet.state_path("berlin") + std::string("\0x", 2);
  expect_error(
      ErrorKind::invalid, [&] { Cache(fleet.url(), options); }, "zero byte");
  EXPECT_EQ(cache.applied_id(), 0U);
}

TEST(Cache, view_stays_unchanged_while_updates_are_applied) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  const View before = cache.view();

  cache.write({Change::set("a", "2"), Change::set("b", "3")});

  EXPECT_EQ(before.id(), 1U);
  EXPECT_EQ(before.get("a"), "1");
  EXPECT_EQ(contents(before), (Contents{{"a", "1"}}));
  EXPECT_EQ(contents(cache), (Contents{{"a", "2"}, {"b", "3"}}));
}

TEST(Cache, update_applies_writes_of_other_machine) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  const UpdateId id = berlin.set("a", "1");
  EXPECT_EQ(tokyo.get("a"), std::nullopt);

  EXPECT_EQ(tokyo.update(), id);

  EXPECT_EQ(tokyo.get("a"), "1");
  EXPECT_EQ(tokyo.digest(), berlin.digest());
}

TEST(Cache, new_machine_opens_with_complete_state) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  for (int i = 0; i < 100; ++i) berlin.set("key" + std::to_string(i), std::to_string(i));

  const Cache tokyo = fleet.open("tokyo");

  EXPECT_EQ(tokyo.applied_id(), 100U);
  EXPECT_EQ(contents(tokyo), contents(berlin));
  EXPECT_EQ(tokyo.counters().rebuilds_damaged, 0U);
}

TEST(Cache, reopened_state_needs_no_log_read) {
  Fleet fleet;
  {
    Cache cache = fleet.open("berlin");
    cache.set("a", "1");
  }
  auto script = std::make_shared<Script>();

  const Cache cache = fleet.open("berlin", script);

  EXPECT_EQ(cache.get("a"), "1");
  EXPECT_EQ(script->read_count, 0) << "the state was complete";
}

TEST(Cache, caches_sharing_state_see_writes_immediately) {
  Fleet fleet;
  Cache first = fleet.open("berlin");
  Cache second = fleet.open("berlin");

  first.set("a", "1");
  EXPECT_EQ(second.get("a"), "1");
  second.set("a", "2");
  EXPECT_EQ(first.get("a"), "2");
  EXPECT_EQ(first.set("b", "3"), 3U);
}

TEST(Cache, get_returns_values_of_any_sequence_of_sizes) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  const std::vector<std::size_t> sizes{0, 1, 15, 16, 100, 128, 129, 1000, 100'000};
  for (const std::size_t bytes : sizes)
    cache.set("value of " + std::to_string(bytes), std::string(bytes, 'v'));
  const auto expect_value = [&](std::size_t bytes) {
    EXPECT_EQ(cache.get("value of " + std::to_string(bytes)), std::string(bytes, 'v'));
  };
  for (const std::size_t first : sizes) {
    for (const std::size_t second : sizes) {
      for (int i = 0; i < 3; ++i) expect_value(first);
      EXPECT_EQ(cache.get("absent key"), std::nullopt);
      expect_value(second);
      expect_value(first);
    }
  }
}

TEST(Cache, moved_cache_stays_usable) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");

  Cache moved = std::move(cache);
  EXPECT_FALSE(cache.valid());  // NOLINT: tests the moved-from object
  std::string value;
  const auto moved_from = [](auto&& call) { expect_error(ErrorKind::invalid, call, "moved from"); };
  moved_from([&] { static_cast<void>(cache.get("a")); });
  moved_from([&] { static_cast<void>(cache.get("a", value)); });
  moved_from([&] { static_cast<void>(cache.contains("a")); });
  EXPECT_EQ(moved.get("a"), "1");
  moved = fleet.open("tokyo");
  EXPECT_EQ(moved.get("a"), "1");
}

TEST(Cache, counters_report_written_and_applied_updates) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  berlin.set("a", "1");
  berlin.set("b", "1");
  tokyo.update();

  EXPECT_EQ(berlin.counters().updates_written, 2U);
  EXPECT_EQ(tokyo.counters().updates_written, 0U);
  EXPECT_EQ(tokyo.counters().updates_applied, 2U);
}

TEST(Cache, update_stores_writer_name_and_note) {
  Fleet fleet;
  Options options;
  options.writer_name = "importer";
  Cache cache = fleet.open("berlin", options);
  cache.set("a", "1", {.note = "nightly import", .deadline = {}});

  std::string row;
  fleet.log()->read(1, 1, [&](UpdateId, std::string_view bytes) {
    row = bytes;
    return true;
  });

  EXPECT_THAT(row, HasSubstr("importer"));
  EXPECT_THAT(row, HasSubstr("nightly import"));
}

// --- Limits ---

TEST(CacheLimits, empty_or_oversized_key_throws_invalid) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");

  expect_error(
      ErrorKind::invalid, [&] { cache.set("", "value"); }, "key is empty");
  expect_error(
      ErrorKind::invalid, [&] { cache.erase(""); }, "key is empty");
  expect_error(
      ErrorKind::invalid, [&] { cache.set(std::string(1025, 'k'), "value"); }, "bytes=1025",
      "key_bytes_max=1024");
  cache.set(std::string(1024, 'k'), "value");

  EXPECT_EQ(cache.get(std::string(1024, 'k')), "value");
  EXPECT_EQ(fleet.log()->extent().head, 1U);
}

TEST(CacheLimits, oversized_value_throws_limit_before_any_append) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  const std::string too_large((1U << 20) + 1, 'v');

  expect_error(
      ErrorKind::limit,
      [&] {
        cache.set_multi({{"a", "1"}, {"b", too_large}, {"c", "3"}});
      },
      "value_bytes=1048577", "update_bytes_max=1048576");

  EXPECT_EQ(cache.size(), 0U);
  EXPECT_EQ(fleet.log()->extent().head, 0U);
}

TEST(CacheLimits, larger_update_bytes_max_accepts_larger_values) {
  Fleet fleet;
  Options options;
  options.update_bytes_max = 32U << 20;
  Cache cache = fleet.open("berlin", options);
  const std::string largest(value_bytes_max, 'v');

  cache.set("largest", largest);
  expect_error(
      ErrorKind::limit, [&] { cache.set("larger", largest + "v"); }, "value_bytes_max");

  EXPECT_EQ(fleet.open("tokyo").get("largest"), largest);
}

TEST(CacheLimits, oversized_batch_is_split_into_ordered_updates) {
  Fleet fleet;
  Options options;
  options.update_bytes_max = 4096;
  Cache cache = fleet.open("berlin", options);
  std::map<std::string, std::string> batch;
  for (int i = 0; i < 100; ++i) batch["key" + std::to_string(1000 + i)] = std::string(200, 'v');

  const UpdateId last = cache.set_multi(batch);

  EXPECT_GE(last, 5U);
  EXPECT_EQ(last, fleet.log()->extent().head);
  EXPECT_EQ(contents(cache), Contents(batch.begin(), batch.end()));
  fleet.log()->read(1, last, [](UpdateId id, std::string_view bytes) {
    EXPECT_LE(bytes.size(), 4096U) << id;
    return true;
  });
}

TEST(CacheLimits, oversized_batch_throws_limit_without_split_updates) {
  Fleet fleet;
  Options options;
  options.update_bytes_max = 4096;
  options.split_updates = false;
  Cache cache = fleet.open("berlin", options);
  const std::string value(3000, 'v');

  expect_error(
      ErrorKind::limit,
      [&] {
        cache.set_multi({{"a", value}, {"b", value}});
      },
      "update_bytes_max=4096", "split_updates");

  EXPECT_EQ(fleet.log()->extent().head, 0U);
}

TEST(CacheLimits, invalid_options_throw_invalid) {
  Fleet fleet;
  const auto refused = [&](auto&& change, const char* word) {
    Options options = fleet.options("berlin");
    change(options);
    expect_error(
        ErrorKind::invalid, [&] { Cache(fleet.url(), options); }, word);
  };
  refused([](Options& options) { options.update_bytes_max = 10; }, "update_bytes_max");
  refused([](Options& options) { options.update_bytes_max = 1U << 30; }, "update_bytes_max");
  refused([](Options& options) { options.deadline = std::chrono::milliseconds(-1); }, "deadline");
  refused([](Options& options) { options.writer_name = std::string(256, 'w'); }, "writer_name");
  refused([](Options& options) { options.state_mode = 0777; }, "state_mode");
  refused([](Options& options) { options.state_mode = 0; }, "state_mode");
  refused([](Options& options) { options.name = "../escape"; }, "name");
  expect_error(
      ErrorKind::invalid, [&] { Cache(std::unique_ptr<Log>(), fleet.options("berlin")); },
      "no log");
  expect_error(ErrorKind::invalid, [&] { Cache("gopher://host/", fleet.options("berlin")); });
}

TEST(CacheLimits, note_over_255_bytes_throws_invalid) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  expect_error(
      ErrorKind::invalid,
      [&] { cache.set("a", "1", {.note = std::string(256, 'n'), .deadline = {}}); }, "note");
  EXPECT_EQ(fleet.log()->extent().head, 0U);
}

// --- Closing ---

TEST(CacheClosing, deleted_cache_throws_except_for_path_and_counters) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  const std::string path = cache.state_path();
  EXPECT_TRUE(cache.valid());

  cache.delete_shared_state();
  cache.delete_shared_state();
  cache.close_shared_state();

  EXPECT_FALSE(cache.valid());
  EXPECT_EQ(cache.state_path(), path);
  EXPECT_EQ(cache.counters().updates_written, 1U);
  const auto closed = [](auto&& call) { expect_error(ErrorKind::invalid, call, "closed"); };
  std::string value;
  closed([&] { static_cast<void>(cache.get("a")); });
  closed([&] { static_cast<void>(cache.get("a", value)); });
  closed([&] { static_cast<void>(cache.contains("a")); });
  closed([&] { static_cast<void>(cache.get_multi({"a"})); });
  closed([&] { static_cast<void>(cache.size()); });
  closed([&] { static_cast<void>(cache.view()); });
  closed([&] { static_cast<void>(cache.keys()); });
  closed([&] { cache.set("a", "2"); });
  closed([&] { cache.set_multi({{"a", "2"}}); });
  closed([&] { cache.set_multi(std::vector<Item>{}); });
  closed([&] { cache.erase("a"); });
  closed([&] { cache.erase_multi({"a"}); });
  closed([&] { cache.write({Change::erase("a")}); });
  closed([&] { cache.update(); });
  closed([&] {
    cache.update({.staleness_max = std::chrono::hours(1), .at_least = 0, .deadline = {}});
  });
  closed([&] { cache.rewrite_history(); });
  closed([&] { cache.delete_all_history(); });
  closed([&] { static_cast<void>(cache.applied_id()); });
  closed([&] { static_cast<void>(cache.staleness()); });
  closed([&] { static_cast<void>(cache.digest()); });
  closed([&] { CacheInternal::log(cache); });
  closed([&] { CacheInternal::state(cache); });
  EXPECT_EQ(fleet.open("berlin").get("a"), "1");
}

TEST(CacheClosing, closed_cache_is_opened_again_by_next_call) {
  Fleet fleet("sqlite");
  Events events;
  Options options;
  options.on_event = events.listener();
  Cache cache = fleet.open("berlin", options);
  for (int i = 0; i < 3; ++i) {
    cache.set_async("a", std::to_string(i)).get();
    cache.close_shared_state();
    cache.close_shared_state();
    EXPECT_TRUE(cache.valid());
    EXPECT_EQ(cache.get("a"), std::to_string(i));
    cache.close_shared_state();
    const UpdateId id = cache.set("b", "1");
    EXPECT_EQ(cache.applied_id(), id);
    cache.close_shared_state();
  }
  EXPECT_EQ(events.count(Event::Kind::rebuilt), 0) << "the state stayed as it was";
}

// Each kind of read that no longer tests whether the cache is closed, with keys of each size that
// the fast path tells apart.
TEST(CacheClosing, any_point_read_opens_closed_cache_again) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  std::string value;
  for (const std::string& key : {std::string("a"), std::string("checkout.on"), std::string(40, 'k'),
                                 std::string(300, 'k')}) {
    cache.set(key, "1");
    const std::vector<std::function<void()>> reads{
        [&] { EXPECT_EQ(cache.get(key), "1"); }, [&] { EXPECT_TRUE(cache.get(key, value)); },
        [&] { EXPECT_TRUE(cache.contains(key)); }, [&] { EXPECT_FALSE(cache.contains(key + '?')); },
        [&] { EXPECT_FALSE(cache.get(key + '?', value)); }};
    for (const std::function<void()>& read : reads) {
      cache.close_shared_state();
      EXPECT_EQ(CacheInternal::state_if_open(cache), nullptr);
      read();
      EXPECT_NE(CacheInternal::state_if_open(cache), nullptr);
    }
  }
}

TEST(CacheClosing, read_after_many_misses_opens_closed_cache) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("checkout.on", "1");
  for (int i = 0; i < 100; ++i) EXPECT_FALSE(cache.contains("absent." + std::to_string(i)));
  cache.close_shared_state();
  EXPECT_FALSE(cache.contains("checkout.off"));
  EXPECT_NE(CacheInternal::state_if_open(cache), nullptr);
}

// As when a machine gets a copy from another one.
TEST(CacheClosing, closed_cache_opens_file_that_was_put_in_place) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  berlin.set("a", "1");
  tokyo.set("b", "2");
  berlin.close_shared_state();
  tokyo.close_shared_state();
  const std::string copy = fleet.state_path("copy");
  std::filesystem::copy_file(fleet.state_path("tokyo"), copy);
  std::filesystem::rename(copy, fleet.state_path("berlin"));
  EXPECT_EQ(contents(berlin), (Contents{{"a", "1"}, {"b", "2"}}));
}

TEST(CacheClosing, closed_cache_rebuilds_state_that_was_removed) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  cache.close_shared_state();
  std::filesystem::remove(fleet.state_path("berlin"));
  EXPECT_EQ(cache.get("a"), "1");
}

TEST(CacheClosing, view_stays_readable_after_close) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  const View view = cache.view();

  cache.close_shared_state();

  EXPECT_EQ(view.get("a"), "1");
}

TEST(CacheClosing, close_during_reads_fails_no_read) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  std::atomic<int> reads{0};
  std::atomic<bool> done{false};
  std::thread reader([&] {
    while (!done) {
      EXPECT_EQ(cache.get("a"), "1");
      ++reads;
    }
  });
  for (int i = 0; i < 100; ++i) {
    const int before = reads;
    while (reads == before) std::this_thread::yield();
    cache.close_shared_state();
  }
  done = true;
  reader.join();
}

TEST(CacheClosing, delete_shared_state_makes_other_cache_rebuild) {
  Fleet fleet;
  Events events;
  Options options;
  options.on_event = events.listener();
  Cache deleter = fleet.open("berlin");
  Cache other = fleet.open("berlin", options);
  deleter.set("a", "1");

  deleter.delete_shared_state();
  EXPECT_FALSE(std::filesystem::exists(fleet.state_path("berlin")));
  EXPECT_FALSE(deleter.valid());
  EXPECT_EQ(other.get("a"), "1") << "reads continue";

  EXPECT_EQ(other.update(), 1U);
  EXPECT_TRUE(std::filesystem::exists(fleet.state_path("berlin")));
  EXPECT_EQ(other.get("a"), "1");
  EXPECT_EQ(other.set("a", "2"), 2U);
  EXPECT_EQ(other.get("a"), "2");
  EXPECT_EQ(fleet.open("berlin").get("a"), "2");
  EXPECT_THAT(events.messages(Event::Kind::rebuilt), HasSubstr("removed"));
}

// The file has another hard link, as root, whom no permission stops, refuses it as well.
TEST(CacheClosing, reads_writes_and_updates_throw_unavailable_for_unusable_new_state) {
  Fleet fleet;
  Cache deleter = fleet.open("berlin");
  Cache other = fleet.open("berlin");
  deleter.set("a", "1");
  deleter.delete_shared_state();
  fleet.open("berlin").set("a", "2");
  const std::string second_name = fleet.state_path("berlin") + ".link";
  std::filesystem::create_hard_link(fleet.state_path("berlin"), second_name);

  const std::string path = "path=" + fleet.state_path("berlin");
  const std::vector<std::function<void()>> calls{[&] { static_cast<void>(other.get("a")); },
                                                 [&] { static_cast<void>(other.view()); },
                                                 [&] { other.update(); },
                                                 [&] { other.set("b", "1"); },
                                                 [&] { other.add("c", 1); },
                                                 [&] { other.set_async("b", "1").get(); }};
  for (const std::function<void()>& call : calls)
    expect_error(ErrorKind::unavailable, call, "state was replaced", path, "(");

  std::filesystem::remove(second_name);
  EXPECT_EQ(other.get("a"), "2");
  EXPECT_EQ(other.update(), 2U);
}

TEST(CacheClosing, write_after_state_deletion_rebuilds_state) {
  Fleet fleet;
  Cache deleter = fleet.open("berlin");
  Cache other = fleet.open("berlin");
  deleter.set("a", "1");
  deleter.delete_shared_state();

  EXPECT_EQ(other.set("b", "2"), 2U);

  EXPECT_EQ(contents(other), (Contents{{"a", "1"}, {"b", "2"}}));
}

}  // namespace
}  // namespace whycache::testing
