// Erasing the keys of a range by one update, beside writers of other machines.
#include <gtest/gtest.h>

#include <atomic>
#include <string>
#include <thread>

#include "client/cache_internal.h"
#include "client/fleet.h"

namespace whycache::testing {
namespace {

TEST(EraseRange, range_is_erased_by_one_update) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set_multi({{"a", "1"}, {"b", "2"}, {"b.1", "3"}, {"b.2", "4"}, {"c", "5"}, {"d", "6"}});

  EXPECT_EQ(cache.erase_prefix("b."), 2U);
  EXPECT_EQ(contents(cache), (Contents{{"a", "1"}, {"b", "2"}, {"c", "5"}, {"d", "6"}}));
  EXPECT_EQ(cache.erase(KeyRange::between("b", "d")), 3U);
  EXPECT_EQ(contents(cache), (Contents{{"a", "1"}, {"d", "6"}}));
  EXPECT_EQ(cache.erase(KeyRange::from("b")), 4U);
  EXPECT_EQ(contents(fleet.open("tokyo")), (Contents{{"a", "1"}}));
  EXPECT_EQ(cache.erase(KeyRange::all()), 5U);
  EXPECT_EQ(cache.size(), 0U);
}

TEST(EraseRange, empty_range_appends_nothing) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");

  EXPECT_EQ(cache.erase_prefix("b"), 1U);

  EXPECT_EQ(CacheInternal::log(cache).extent().head, 1U);
}

// This machine's own state has no key of the range.
TEST(EraseRange, keys_that_only_the_log_has_are_erased) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  tokyo.set("p/1", "1");

  EXPECT_EQ(berlin.erase_prefix("p/"), 2U);

  tokyo.update();
  EXPECT_EQ(tokyo.size(), 0U);
}

// Another machine takes the id that the erasing update wants, with a key in the range.
TEST(EraseRange, keys_that_others_add_before_the_update_are_erased) {
  Fleet fleet;
  Cache tokyo = fleet.open("tokyo");
  tokyo.set_multi({{"p/1", "1"}, {"q", "2"}});
  const auto script = std::make_shared<Script>();
  std::atomic<int> additions{3};
  script->before_append = [&](UpdateId) {
    if (const int n = additions--; n > 0) tokyo.set("p/new" + std::to_string(n), "1");
  };
  Cache berlin = fleet.open("berlin", script);

  EXPECT_EQ(berlin.erase_prefix("p/"), 5U);

  EXPECT_EQ(contents(berlin), (Contents{{"q", "2"}}));
  tokyo.update();
  EXPECT_EQ(contents(tokyo), (Contents{{"q", "2"}}));
}

TEST(EraseRange, no_key_of_the_range_survives_beside_concurrent_writers) {
  Fleet fleet("sqlite");
  Cache tokyo = fleet.open("tokyo");
  Cache berlin = fleet.open("berlin");
  std::atomic<bool> stop{false};
  std::thread writer([&] {
    for (int i = 0; !stop; ++i) tokyo.set("p/" + std::to_string(i), "1");
  });
  for (int i = 0; i < 20; ++i) {
    const UpdateId id = berlin.erase_prefix("p/");
    const View view = berlin.view();
    for (const Item& item : view.items(KeyRange::prefix("p/"))) {
      EXPECT_GT(view.version(item.key), id) << item.key;
    }
  }
  stop = true;
  writer.join();
}

TEST(EraseRange, range_beyond_one_update_throws_limit) {
  Fleet fleet;
  Options options;
  options.update_bytes_max = 4096;
  Cache cache = fleet.open("berlin", options);
  std::map<std::string, std::string> items;
  for (int i = 0; i < 3000; ++i) items["key " + std::to_string(i)] = "";
  const UpdateId before = cache.set_multi(items);

  expect_error(
      ErrorKind::limit, [&] { cache.erase(KeyRange::all()); }, "changes=3000", "update_bytes_max");
  expect_error(
      ErrorKind::limit, [&] { cache.erase_prefix("key 1"); }, "changes=1111", "update_bytes_max");

  EXPECT_EQ(cache.size(), 3000U);
  EXPECT_EQ(cache.applied_id(), before);
  EXPECT_EQ(cache.erase_prefix("key 29"), before + 1);
}

TEST(EraseRange, range_beyond_guards_is_refused) {
  Fleet fleet;
  Options options;
  options.guards.erased_keys_max = 1;
  Cache cache = fleet.open("berlin", options);
  cache.set_multi({{"a1", ""}, {"a2", ""}, {"b", ""}});

  expect_error(
      ErrorKind::refused, [&] { cache.erase_prefix("a"); }, "erased_keys_max=1");

  EXPECT_EQ(cache.size(), 3U);
  cache.erase_prefix("b");
  EXPECT_EQ(cache.size(), 2U);
}

}  // namespace
}  // namespace whycache::testing
