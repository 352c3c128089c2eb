// Memo: decoded values, kept until they change.
#include <gtest/gtest.h>

#include <whycache/memo.h>

#include <atomic>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "client/cache_internal.h"
#include "client/fleet.h"
#include "support/child_process.h"
#include "support/thrown_error.h"

namespace whycache::testing {
namespace {

// Decodes decimal digits.
int to_number(std::string_view value) { return std::stoi(std::string(value)); }

TEST(Memo, decodes_again_only_when_its_key_was_set) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  Memo<int> memo(cache, to_number);
  EXPECT_EQ(memo.get("key"), nullptr);
  cache.set("key", "7");
  cache.set("other", "1");

  const std::shared_ptr<const int> first = memo.get("key");
  ASSERT_NE(first, nullptr);
  EXPECT_EQ(*first, 7);
  EXPECT_EQ(memo.get("key"), first);
  cache.set("other", "2");
  EXPECT_EQ(memo.get("key"), first);
  EXPECT_EQ(memo.counters().decodes, 1U);
  EXPECT_EQ(memo.counters().hits, 2U);

  cache.set("key", "8");
  EXPECT_EQ(*memo.get("key"), 8);
  EXPECT_EQ(*first, 7);
  EXPECT_EQ(memo.counters().decodes, 2U);
  cache.erase("key");
  EXPECT_EQ(memo.get("key"), nullptr);
  EXPECT_EQ(memo.counters().entries, 0U);
  cache.set("key", "9");
  EXPECT_EQ(*memo.get("key"), 9);
}

// Short and long keys and values take different paths through a read.
TEST(Memo, keys_and_values_of_all_sizes_are_kept) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  std::vector<std::string> keys;
  for (const std::size_t key_bytes : {1, 7, 8, 16, 17, 100, 254, 255, 1024})
    keys.emplace_back(key_bytes, 'k');
  Memo<std::size_t> memo(cache, [](std::string_view value) { return value.size(); });
  for (const std::size_t value_bytes : {0, 1, 100, 600, 65'535, 65'536, 300'000}) {
    for (const std::string& key : keys) cache.set(key, std::string(value_bytes, 'v'));
    const std::uint64_t decodes = memo.counters().decodes;
    for (int round = 0; round < 3; ++round) {
      for (const std::string& key : keys) EXPECT_EQ(*memo.get(key), value_bytes) << key.size();
      cache.set("other", std::to_string(round));
    }
    EXPECT_EQ(memo.counters().decodes, decodes + keys.size()) << value_bytes;
  }
}

TEST(Memo, restored_log_with_the_same_version_is_decoded_again) {
  Fleet fleet("sqlite");
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  cache.close_shared_state();
  const std::string backup = fleet.directory().file("backup.db");
  const std::string log = fleet.directory().file("log.db");
  std::filesystem::copy_file(log, backup);
  cache.set("key", "7");
  Memo<int> memo(cache, to_number);
  EXPECT_EQ(*memo.get("key"), 7);
  const UpdateId version = cache.get_versioned("key")->version;
  cache.close_shared_state();
  for (const char* const suffix : {"-wal", "-shm"}) std::filesystem::remove(log + suffix);
  std::filesystem::copy_file(backup, log, std::filesystem::copy_options::overwrite_existing);
  Cache tokyo = fleet.open("tokyo");
  tokyo.set("key", "8");

  Cache again = fleet.open("berlin");
  again.update();

  ASSERT_EQ(again.get_versioned("key")->version, version);
  EXPECT_EQ(*memo.get("key"), 8);
}

TEST(Memo, failed_decoding_throws_unless_the_last_good_object_is_to_be_kept) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  Memo<int> strict(cache, to_number);
  Memo<int> lenient(cache, to_number, {.keep_last_good = true});
  cache.set("key", "damaged");
  EXPECT_THROW(static_cast<void>(strict.get("key")), std::invalid_argument);
  EXPECT_THROW(static_cast<void>(lenient.get("key")), std::invalid_argument);
  cache.set("key", "1");
  EXPECT_EQ(*strict.get("key"), 1);
  EXPECT_EQ(*lenient.get("key"), 1);

  cache.set("key", "damaged again");

  EXPECT_THROW(static_cast<void>(strict.get("key")), std::invalid_argument);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(*lenient.get("key"), 1);
  EXPECT_EQ(lenient.counters().decode_failures, 2U);  // once per value
  cache.set("other", "");
  EXPECT_EQ(*lenient.get("key"), 1);
  EXPECT_EQ(lenient.counters().decode_failures, 2U);
  cache.set("key", "2");
  EXPECT_EQ(*lenient.get("key"), 2);
}

TEST(Memo, keeps_as_many_entries_as_allowed_and_those_in_use) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  std::vector<std::string> keys;
  for (int i = 0; i < 200; ++i) keys.push_back("key" + std::to_string(i));
  for (const std::string& key : keys) cache.set(key, "1");
  Memo<int> all(cache, to_number, {.entries_max = 200});
  Memo<int> some(cache, to_number, {.entries_max = 50});
  for (int round = 0; round < 2; ++round) {
    for (const std::string& key : keys) {
      EXPECT_EQ(*all.get(key), 1);
      EXPECT_EQ(*some.get(key), 1);
    }
  }
  EXPECT_EQ(all.counters().decodes, 200U);
  EXPECT_EQ(all.counters().entries, 200U);
  EXPECT_EQ(some.counters().entries, 50U);
  all.clear();
  EXPECT_EQ(all.counters().entries, 0U);
  EXPECT_THROW(Memo<int>(cache, to_number, {.entries_max = 0}), Error);
}

TEST(Memo, threads_see_no_older_object_than_the_state_had) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("key", "0");
  Memo<int> memo(cache, to_number, {.entries_max = 4});
  std::atomic<int> written{0};
  std::atomic<bool> failed{false};
  std::vector<std::jthread> readers;
  for (int i = 0; i < 3; ++i) {
    readers.emplace_back([&](const std::stop_token& stop) {
      for (int round = 0; !stop.stop_requested(); ++round) {
        const int at_least = written.load();
        if (*memo.get("key") < at_least) failed = true;
        static_cast<void>(memo.get("filler" + std::to_string(round % 10)));
        if (round % 100 == 0) memo.clear();
      }
    });
  }
  for (int i = 1; i <= 2000; ++i) {
    cache.set("key", std::to_string(i));
    written = i;
    cache.set("filler" + std::to_string(i % 10), "1");
  }
  readers.clear();
  EXPECT_FALSE(failed);
}

TEST(Memo, forked_child_decodes_for_itself) {
  Fleet fleet("sqlite");
  Cache cache = fleet.open("berlin");
  cache.set("key", "7");
  Memo<int> memo(cache, to_number);
  EXPECT_EQ(*memo.get("key"), 7);

  ChildProcess child([&]() -> std::string {
    if (*memo.get("key") != 7 || memo.counters().decodes != 1) return "it kept its parent's";
    cache.set("key", "8");
    return *memo.get("key") == 8 ? "" : "it missed its own write";
  });

  EXPECT_EQ(child.wait(), "");
  EXPECT_EQ(*memo.get("key"), 8);
}

TEST(Versions, view_returns_value_and_version_as_of_its_update) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("key", "1");
  const View view = cache.view();
  cache.set("key", "2");

  EXPECT_EQ(view.get_versioned("key")->value, "1");
  EXPECT_EQ(view.get_versioned("key")->version, 1U);
  EXPECT_EQ(cache.view().get_versioned("key")->version, 2U);
  EXPECT_EQ(view.get_versioned("absent"), std::nullopt);
}

}  // namespace
}  // namespace whycache::testing
