// Views and the ranges made from them: what they hand out, in which order, and for how long.
#include <whycache/view.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <iterator>
#include <map>
#include <optional>
#include <ranges>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

#include "state/test_state.h"

namespace whycache {
namespace {

using testing::TemporaryDirectory;
using testing::TestChange;
using testing::TestState;

// --- What a temporary view must not hand out ---

template <typename V>
concept HandsOutValue = requires(V&& view) {
  std::forward<V>(view).get("key");
};
template <typename R>
concept HandsOutIterator = requires(R&& range) {
  std::forward<R>(range).begin();
};

static_assert(HandsOutValue<View&> && HandsOutValue<const View&>);
static_assert(!HandsOutValue<View> && !HandsOutValue<const View>);
static_assert(HandsOutIterator<View&> && HandsOutIterator<const Items&>);
static_assert(!HandsOutIterator<View> && !HandsOutIterator<Items> && !HandsOutIterator<const Keys>);
// A range-for loop and the algorithms keep a temporary view or range as long as they need it.
static_assert(std::ranges::input_range<View> && std::ranges::input_range<Values>);

// --- How long keys, values and items are valid ---

using StringMap = std::map<std::string, std::string>;

std::vector<std::string> keys_of(const StringMap& items) {
  std::vector<std::string> keys;
  for (const auto& [key, value] : items) keys.push_back(key);
  return keys;
}
std::vector<std::string> values_of(const StringMap& items) {
  std::vector<std::string> values;
  for (const auto& [key, value] : items) values.push_back(value);
  return values;
}

class ViewTest : public ::testing::Test {
 protected:
  // Keys that fill many leaves, with shared prefixes and without.
  static StringMap many_items() {
    StringMap items;
    for (int i = 0; i < 3000; ++i) {
      items["user:" + std::to_string(i)] = "value " + std::to_string(i);
      items[std::to_string(i * 7919)] = std::to_string(i);
    }
    items[std::string(key_bytes_max, 'x')] = "long key";
    return items;
  }
  static std::vector<TestChange> changes_of(const StringMap& items) {
    std::vector<TestChange> changes;
    for (const auto& [key, value] : items) changes.push_back({key, value});
    return changes;
  }

  const TemporaryDirectory directory_;
  const StringMap items_ = many_items();
  TestState state_{directory_.file("view.state")};
};

TEST_F(ViewTest, keys_stay_valid_as_long_as_the_view) {
  state_.apply(changes_of(items_));
  const View view = state_.view();
  std::vector<std::string_view> keys;
  std::vector<std::string_view> keys_of_items;
  for (const std::string_view key : view.keys()) keys.push_back(key);
  for (const Item& item : view) keys_of_items.push_back(item.key);
  for (int i = 0; i < 5; ++i) {  // other ranges of the view, and writes that reuse space
    for (const std::string_view key : view.keys(KeyRange::prefix("user:1"))) keys.push_back(key);
    keys.resize(items_.size());
    state_.apply(changes_of(items_));
    state_.apply({{"user:" + std::to_string(i), std::nullopt}});
  }

  EXPECT_TRUE(std::ranges::equal(keys, keys_of(items_)));
  EXPECT_TRUE(std::ranges::equal(keys_of_items, keys_of(items_)));
}

TEST_F(ViewTest, keys_stay_valid_while_only_a_range_or_an_iterator_is_left) {
  state_.apply(changes_of(items_));
  std::vector<std::string_view> keys;
  const Keys range = state_.view().keys();
  for (const std::string_view key : range) keys.push_back(key);
  std::vector<std::string_view> values;
  std::optional<Values> value_range(state_.view().values());
  auto value = value_range->begin();
  value_range.reset();
  for (; value != std::default_sentinel; ++value) values.push_back(*value);
  state_.apply({}, true);
  state_.apply(changes_of(items_));

  EXPECT_TRUE(std::ranges::equal(keys, keys_of(items_)));
  EXPECT_TRUE(std::ranges::equal(values, values_of(items_)));
}

TEST_F(ViewTest, threads_read_keys_of_one_view_at_once) {
  state_.apply(changes_of(items_));
  const View view = state_.view();
  std::vector<std::vector<std::string_view>> keys(4);
  std::vector<std::thread> threads;
  for (std::vector<std::string_view>& read : keys) {
    threads.emplace_back([&] {
      for (const std::string_view key : view.keys()) read.push_back(key);
    });
  }
  for (std::thread& thread : threads) thread.join();

  for (const std::vector<std::string_view>& read : keys)
    EXPECT_TRUE(std::ranges::equal(read, keys_of(items_)));
}

}  // namespace
}  // namespace whycache
