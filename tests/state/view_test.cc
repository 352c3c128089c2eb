// Views and the ranges made from them: what they hand out, in which order, and for how long.
#include <whycache/view.h>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
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
#include "support/thrown_error.h"

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

template <typename V>
concept HandsOutItems = requires(V&& view) {
  std::forward<V>(view).first();
}
|| requires(V&& view) { std::forward<V>(view).last(); };
static_assert(HandsOutItems<const View&> && !HandsOutItems<View>);

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

// --- Descending order, ends and counts ---

std::vector<std::string> strings(const auto& range) {
  std::vector<std::string> all;
  for (const std::string_view text : range) all.emplace_back(text);
  return all;
}

std::vector<KeyRange> some_ranges() {
  return {KeyRange::all(),
          KeyRange::prefix("user:"),
          KeyRange::prefix("user:29"),
          KeyRange::prefix("none"),
          KeyRange::from("user:5"),
          KeyRange::from("z"),
          KeyRange::from("x"),
          KeyRange::between("1", "2"),
          KeyRange::between("2", "1"),
          KeyRange::between("", "1"),
          KeyRange::between("1", "1"),
          KeyRange::between("user:1", "user:10"),
          KeyRange::between("a", "user:0")};
}

TEST_F(ViewTest, reversed_ranges_have_the_same_items_in_descending_order) {
  state_.apply(changes_of(items_));
  const View view = state_.view();
  state_.apply({}, true);
  for (const KeyRange& range : some_ranges()) {
    const std::string what = range.begin + " to " + range.end.value_or("the end");
    std::vector<std::string> keys = strings(view.keys(range));
    std::vector<std::string> values = strings(view.values(range));
    std::ranges::reverse(keys);
    std::ranges::reverse(values);

    EXPECT_EQ(strings(view.keys(range).reversed()), keys) << what;
    EXPECT_EQ(strings(view.values(range).reversed()), values) << what;
    EXPECT_EQ(strings(view.keys(range).reversed().reversed()), strings(view.keys(range))) << what;
    std::size_t i = 0;
    for (const auto& [key, value] : view.items(range).reversed()) {
      ASSERT_LT(i, keys.size()) << what;
      EXPECT_EQ(key, keys[i]);
      EXPECT_EQ(value, values[i++]);
    }
    EXPECT_EQ(i, keys.size()) << what;
  }
}

TEST_F(ViewTest, keys_of_a_reversed_range_stay_valid_as_long_as_the_view) {
  state_.apply(changes_of(items_));
  const View view = state_.view();
  std::vector<std::string_view> keys;
  for (const std::string_view key : view.keys().reversed()) keys.push_back(key);
  std::ranges::reverse(keys);

  EXPECT_TRUE(std::ranges::equal(keys, keys_of(items_)));
}

TEST_F(ViewTest, first_last_and_count_agree_with_the_items_of_the_range) {
  state_.apply(changes_of(items_));
  const View view = state_.view();
  for (const KeyRange& range : some_ranges()) {
    const std::string what = range.begin + " to " + range.end.value_or("the end");
    std::vector<Item> items;
    for (const Item& item : view.items(range)) items.push_back(item);

    EXPECT_EQ(view.count(range), items.size()) << what;
    if (items.empty()) {
      EXPECT_EQ(view.first(range), std::nullopt) << what;
      EXPECT_EQ(view.last(range), std::nullopt) << what;
    } else {
      EXPECT_EQ(view.first(range), items.front()) << what;
      EXPECT_EQ(view.last(range), items.back()) << what;
    }
  }
}

TEST_F(ViewTest, ranges_of_an_empty_state_are_empty) {
  const View view = state_.view();
  EXPECT_EQ(view.first(), std::nullopt);
  EXPECT_EQ(view.last(), std::nullopt);
  EXPECT_EQ(view.count(KeyRange::from("a")), 0U);
  EXPECT_TRUE(strings(view.keys().reversed()).empty());
}

// --- Values as numbers ---

TEST_F(ViewTest, get_as_parses_whole_values) {
  state_.apply({{"int", "-42"},
                {"max", "18446744073709551615"},
                {"real", "-0.5e3"},
                {"yes", "Yes"},
                {"off", "OFF"},
                {"one", "1"}});
  const View view = state_.view();
  EXPECT_EQ(view.get_as<int>("int"), -42);
  EXPECT_EQ(view.get_as<std::int8_t>("int"), std::int8_t{-42});
  EXPECT_EQ(view.get_as<std::int64_t>("int"), -42);
  EXPECT_EQ(view.get_as<double>("int"), -42.0);
  EXPECT_EQ(view.get_as<std::uint64_t>("max"), UINT64_MAX);
  EXPECT_EQ(view.get_as<double>("real"), -500.0);
  EXPECT_EQ(view.get_as<float>("real"), -500.0F);
  EXPECT_EQ(view.get_as<long double>("real"), -500.0L);
  EXPECT_EQ(view.get_as<bool>("yes"), true);
  EXPECT_EQ(view.get_as<bool>("off"), false);
  EXPECT_EQ(view.get_as<bool>("one"), true);
  EXPECT_EQ(view.get_as<unsigned>("one"), 1U);
  EXPECT_EQ(view.get_as<int>("absent"), std::nullopt);
  EXPECT_EQ(view.get_as<bool>("absent"), std::nullopt);
}

TEST_F(ViewTest, get_as_accepts_every_word_for_a_truth_value) {
  for (const std::string word : {"true", "1", "yes", "on", "TRUE", "Yes", "oN"})
    EXPECT_TRUE(detail::parse_value<bool>("key", word)) << word;
  for (const std::string word : {"false", "0", "no", "off", "False", "NO", "oFF"})
    EXPECT_FALSE(detail::parse_value<bool>("key", word)) << word;
  for (const std::string word : {"", "2", "y", "t", "nope", "true ", " true", "falsehood", "01"})
    testing::expect_error(
        ErrorKind::invalid, [&] { detail::parse_value<bool>("key", word); }, "key=key");
}

TEST_F(ViewTest, get_as_of_another_value_throws_invalid_and_names_the_key) {
  state_.apply({{"word", "seven"},
                {"empty", ""},
                {"plus", "+1"},
                {"space", "1 "},
                {"hex", "0x10"},
                {"300", "300"},
                {"minus", "-1"},
                {"big", "99999999999999999999"},
                {std::string("a\0b", 3), "x"}});
  const View view = state_.view();
  for (const std::string key : {"word", "empty", "plus", "space", "hex", "big"}) {
    testing::expect_error(
        ErrorKind::invalid, [&] { static_cast<void>(view.get_as<int>(key)); }, "key=" + key);
    if (key == "big") continue;
    testing::expect_error(
        ErrorKind::invalid, [&] { static_cast<void>(view.get_as<double>(key)); }, "key=" + key);
  }
  testing::expect_error(
      ErrorKind::invalid, [&] { static_cast<void>(view.get_as<std::uint8_t>("300")); },
      "out of range", "0..255");
  testing::expect_error(
      ErrorKind::invalid, [&] { static_cast<void>(view.get_as<unsigned>("minus")); },
      "unsigned integer of 32 bits");
  testing::expect_error(
      ErrorKind::invalid, [&] { static_cast<void>(view.get_as<int>(std::string_view("a\0b", 3))); },
      "key=a\\x00b");
}

template <typename T>
concept HasGetAs = requires(const View& view) {
  view.get_as<T>("key");
};
static_assert(HasGetAs<bool> && HasGetAs<signed char> && HasGetAs<long long> && HasGetAs<float>);
static_assert(!HasGetAs<char> && !HasGetAs<char8_t> && !HasGetAs<std::string> &&
              !HasGetAs<const int> && !HasGetAs<int*>);

// --- Versions ---

TEST_F(ViewTest, version_is_the_update_that_wrote_the_value) {
  const std::string long_key(key_bytes_max, 'k');
  const std::string long_value(100'000, 'v');
  state_.apply({{"a", "1"}, {"b", "1"}, {long_key, "1"}, {"empty", ""}});
  state_.apply({{"b", "2"}, {"long value", long_value}});
  const View before = state_.view();
  state_.apply({{"a", "3"}, {long_key, "3"}, {"empty", std::nullopt}, {"long value", long_value}});
  state_.apply({{"b", "2"}});  // the same value again
  const View after = state_.view();

  EXPECT_EQ(before.version("a"), 1U);
  EXPECT_EQ(before.version("b"), 2U);
  EXPECT_EQ(before.version(long_key), 1U);
  EXPECT_EQ(before.version("empty"), 1U);
  EXPECT_EQ(before.version("long value"), 2U);
  EXPECT_EQ(before.version("absent"), std::nullopt);
  EXPECT_EQ(after.version("a"), 3U);
  EXPECT_EQ(after.version("b"), 4U);
  EXPECT_EQ(after.version(long_key), 3U);
  EXPECT_EQ(after.version("empty"), std::nullopt);
  EXPECT_EQ(after.version("long value"), 3U);
}

TEST_F(ViewTest, version_of_a_value_survives_segment_cleaning) {
  state_.apply({{"kept", "1"}});
  for (int i = 0; i < 200; ++i) {  // garbage around the entry, so that it is copied
    std::vector<TestChange> changes;
    for (int key = 0; key < 20; ++key)
      changes.push_back({"filling" + std::to_string(key), std::string(2000, 'f')});
    state_.apply(changes);
  }
  EXPECT_EQ(state_.view().version("kept"), 1U);
}

TEST_F(ViewTest, items_of_a_base_have_its_id_as_version) {
  const auto builder = state_->begin_build(testing::test_uuid, "test:");
  const Item items[] = {{"a", "1"}, {"b", "2"}};
  builder->load(items, 70);
  builder->finish_load(70, 77);
  state_->install(*builder);
  state_.apply({{"b", "3"}});
  const View view = state_.view();

  EXPECT_EQ(view.version("a"), 70U);
  EXPECT_EQ(view.version("b"), 71U);
  EXPECT_EQ(state_.check(), std::vector<std::string>{});
}

// --- Objects that were moved from, and iterators at the end ---

TEST_F(ViewTest, moved_from_view_throws_invalid_and_can_be_assigned_to) {
  state_.apply({{"a", "1"}});
  View view = state_.view();
  const View other = std::move(view);
  const auto expect_invalid = [&](const auto& call) {
    testing::expect_error(ErrorKind::invalid, call, "moved from");
  };
  // NOLINTBEGIN(bugprone-use-after-move): that is the question
  expect_invalid([&] { static_cast<void>(view.get("a")); });
  expect_invalid([&] { static_cast<void>(view.contains("a")); });
  expect_invalid([&] { static_cast<void>(view.get_as<int>("a")); });
  expect_invalid([&] { static_cast<void>(view.version("a")); });
  expect_invalid([&] { static_cast<void>(view.id()); });
  expect_invalid([&] { static_cast<void>(view.size()); });
  expect_invalid([&] { static_cast<void>(view.digest()); });
  expect_invalid([&] { static_cast<void>(view.count()); });
  expect_invalid([&] { static_cast<void>(view.count(KeyRange::prefix("a"))); });
  expect_invalid([&] { static_cast<void>(view.first()); });
  expect_invalid([&] { static_cast<void>(view.last()); });
  expect_invalid([&] { static_cast<void>(view.begin()); });
  Items items = other.items();
  const Items other_items = std::move(items);
  expect_invalid([&] { static_cast<void>(items.begin()); });
  // NOLINTEND(bugprone-use-after-move)
  EXPECT_EQ((*other_items.begin()).value, "1");
  view = other;
  EXPECT_EQ(view.get("a"), "1");
}

TEST_F(ViewTest, iterator_that_is_at_the_end_stays_there) {
  state_.apply({{"a", "1"}});
  const View view = state_.view();
  auto item = view.begin();
  for (int i = 0; i < 3; ++i) {
    ++item;
    EXPECT_TRUE(item == view.end());
  }
}

}  // namespace
}  // namespace whycache
