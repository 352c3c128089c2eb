// The ranges that functions of many keys accept, refuse and copy. The refused ones would leave
// views of strings that no longer exist.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <array>
#include <cstddef>
#include <functional>
#include <initializer_list>
#include <iterator>
#include <list>
#include <map>
#include <ranges>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "client/fleet.h"

namespace whycache::testing {
namespace {

// --- What compiles ---

template <typename R>
concept TakenAsKeys = requires(Cache cache, R&& keys) {
  cache.get_multi(std::forward<R>(keys));
  cache.erase_multi(std::forward<R>(keys));
  cache.erase_multi_async(std::forward<R>(keys));
};
template <typename R>
concept TakenAsKeysBySome = requires(Cache cache, R&& keys) {
  cache.get_multi(std::forward<R>(keys));
}
|| requires(Cache cache, R&& keys) { cache.erase_multi(std::forward<R>(keys)); }
|| requires(Cache cache, R&& keys) { cache.erase_multi_async(std::forward<R>(keys)); };
template <typename R>
concept TakenAsItems = requires(Cache cache, R&& items) {
  cache.set_multi(std::forward<R>(items));
  cache.set_multi_async(std::forward<R>(items));
};
template <typename R>
concept TakenAsItemsBySome = requires(Cache cache, R&& items) {
  cache.set_multi(std::forward<R>(items));
}
|| requires(Cache cache, R&& items) { cache.set_multi_async(std::forward<R>(items)); };

// A range that can be read again, and makes each element by a function that returns `T`, as
// std::views::transform does.
template <typename T>
class Made {
 public:
  class Iterator {
   public:
    using value_type = std::remove_cvref_t<T>;
    using difference_type = std::ptrdiff_t;
    using iterator_concept = std::forward_iterator_tag;

    Iterator() = default;
    Iterator(const Made* range, int index) : range_(range), index_(index) {}
    T operator*() const { return range_->make_(index_); }
    Iterator& operator++() {
      ++index_;
      return *this;
    }
    Iterator operator++(int) {
      Iterator before(*this);
      ++*this;
      return before;
    }
    friend bool operator==(const Iterator& a, const Iterator& b) { return a.index_ == b.index_; }

   private:
    const Made* range_ = nullptr;
    int index_ = 0;
  };

  Made(int count, std::function<T(int)> make) : count_(count), make_(std::move(make)) {}
  Iterator begin() const { return {this, 0}; }
  Iterator end() const { return {this, count_}; }

 private:
  int count_;
  std::function<T(int)> make_;
};
static_assert(std::ranges::forward_range<Made<std::string>>);

// The same, but can be read only once, like a coroutine that yields.
template <typename T>
class Once {
 public:
  class Iterator {
   public:
    using value_type = std::remove_cvref_t<T>;
    using difference_type = std::ptrdiff_t;
    using iterator_concept = std::input_iterator_tag;

    explicit Iterator(Once* range) : range_(range) {}
    T operator*() const { return range_->element(); }
    Iterator& operator++() {
      ++range_->index_;
      return *this;
    }
    void operator++(int) { ++*this; }
    friend bool operator==(const Iterator& it, std::default_sentinel_t) {
      return it.range_->is_read();
    }

   private:
    Once* range_;
  };

  Once(int count, T (*make)(Once&, int)) : count_(count), make_(make) {}
  Iterator begin() { return Iterator(this); }
  std::default_sentinel_t end() const { return {}; }
  bool is_read() const { return index_ == count_; }

  std::remove_cvref_t<T> frame;  // what an element refers to until the next one

 private:
  T element() { return make_(*this, index_); }

  int index_ = 0;
  int count_;
  T (*make_)(Once&, int);
};
static_assert(std::ranges::input_range<Once<const std::string&>> &&
              !std::ranges::forward_range<Once<const std::string&>>);

struct ProxyOfReferences {
  const std::string& first;
  std::string_view second;
};
struct ProxyOfStrings {
  std::string first;
  std::string second;
};
struct ConvertsToView {  // as a proxy of vector<bool> converts to bool
  operator std::string_view() const { return bytes; }
  std::string bytes;
};

using Strings = std::vector<std::string>;
using StringPair = std::pair<std::string, std::string>;
using ViewPair = std::pair<std::string_view, std::string_view>;

static_assert(TakenAsKeys<Strings&> && TakenAsKeys<const Strings&> && TakenAsKeys<Strings>);
static_assert(TakenAsKeys<std::list<std::string>> && TakenAsKeys<std::array<const char*, 2>>);
static_assert(TakenAsKeys<std::vector<std::string_view>> && TakenAsKeys<std::span<std::string>>);
static_assert(TakenAsKeys<std::span<std::string_view>>);
static_assert(TakenAsKeys<std::initializer_list<std::string>>);
static_assert(TakenAsKeys<std::initializer_list<std::string_view>>);
static_assert(TakenAsKeys<Made<std::string_view>> && TakenAsKeys<Made<const char*>>);
static_assert(TakenAsKeys<Made<const std::string&>> && TakenAsKeys<Made<std::string&>>);
static_assert(TakenAsKeys<std::vector<ConvertsToView>&>);
static_assert(TakenAsKeys<Keys> && TakenAsKeys<Values&>);
static_assert(TakenAsKeys<Once<const std::string&>> && TakenAsKeys<Once<std::string_view>>);

static_assert(!TakenAsKeysBySome<Made<std::string>>);
static_assert(!TakenAsKeysBySome<Made<const std::string>>);
static_assert(!TakenAsKeysBySome<Made<std::string&&>>);
static_assert(!TakenAsKeysBySome<Made<ConvertsToView>>);
static_assert(!TakenAsKeysBySome<Once<std::string>>);
static_assert(!TakenAsKeysBySome<std::vector<bool>> && !TakenAsKeysBySome<std::vector<int>&>);
static_assert(!TakenAsKeysBySome<std::map<std::string, std::string>&>);
static_assert(!TakenAsKeysBySome<std::string> && !TakenAsKeysBySome<const char (&)[4]>);

static_assert(TakenAsItems<std::map<std::string, std::string>&>);
static_assert(TakenAsItems<const std::map<std::string, std::string>&>);
static_assert(TakenAsItems<std::map<std::string, std::string>>);
static_assert(TakenAsItems<std::unordered_map<std::string, std::string>&>);
static_assert(TakenAsItems<std::unordered_map<std::string_view, const char*>>);
static_assert(TakenAsItems<std::vector<StringPair>&> && TakenAsItems<std::vector<ViewPair>>);
static_assert(TakenAsItems<std::vector<std::tuple<std::string, std::string>>&>);
static_assert(TakenAsItems<std::vector<std::array<std::string, 2>>&>);
static_assert(TakenAsItems<std::vector<ProxyOfStrings>&>);
static_assert(TakenAsItems<std::initializer_list<StringPair>>);
static_assert(TakenAsItems<std::initializer_list<Item>> && TakenAsItems<std::vector<Item>&>);
static_assert(TakenAsItems<std::list<Item>> && TakenAsItems<Made<Item>>);
static_assert(TakenAsItems<Made<ViewPair>>);
static_assert(TakenAsItems<Made<std::pair<const std::string&, std::string&>>>);
static_assert(TakenAsItems<Made<std::tuple<const std::string&, const char*>>>);
static_assert(TakenAsItems<Made<const StringPair&>>);
static_assert(TakenAsItems<Made<ProxyOfReferences>>);
static_assert(TakenAsItems<Items> && TakenAsItems<Once<const StringPair&>>);

static_assert(!TakenAsItemsBySome<Made<StringPair>>);
static_assert(!TakenAsItemsBySome<Made<const StringPair>>);
static_assert(!TakenAsItemsBySome<Made<StringPair&&>>);
static_assert(!TakenAsItemsBySome<Made<std::pair<std::string_view, std::string>>>);
static_assert(!TakenAsItemsBySome<Made<std::pair<std::string, std::string_view>>>);
static_assert(!TakenAsItemsBySome<Made<std::tuple<std::string, const char*>>>);
static_assert(!TakenAsItemsBySome<Made<std::array<std::string, 2>>>);
static_assert(!TakenAsItemsBySome<Made<ProxyOfStrings>>);
static_assert(!TakenAsItemsBySome<Once<StringPair>>);
static_assert(!TakenAsItemsBySome<std::map<std::string, int>&>);
static_assert(!TakenAsItemsBySome<std::vector<Change>&>);  // it may be an erase
static_assert(!TakenAsItemsBySome<std::vector<bool>> && !TakenAsItemsBySome<Strings&>);

// clang cannot compile the views of this standard library before version 16.
#if !defined(__clang__) || __clang_major__ >= 16
template <typename T>
using Transformed = std::ranges::transform_view<std::ranges::iota_view<int, int>, T (*)(int)>;

static_assert(TakenAsKeys<Transformed<std::string_view>> && TakenAsItems<Transformed<ViewPair>>);
static_assert(!TakenAsKeysBySome<Transformed<std::string>>);
static_assert(!TakenAsItemsBySome<Transformed<StringPair>>);
using KeysOfMap = decltype(std::declval<std::map<std::string, int>&>() | std::views::keys);
static_assert(TakenAsKeys<KeysOfMap>);
using KeysOfTemporaries = decltype(std::declval<Transformed<StringPair>>() | std::views::keys);
static_assert(!TakenAsKeysBySome<KeysOfTemporaries>);
using FilteredMap = decltype(std::declval<std::map<std::string, std::string>&>() |
                             std::views::filter([](const auto&) { return true; }));
static_assert(TakenAsItems<FilteredMap>);
using FirstKeysOfView = decltype(std::declval<Keys>() | std::views::take(2));
static_assert(TakenAsKeys<FirstKeysOfView>);
#endif

// --- What the accepted ranges write and read ---

constexpr const char* long_text = " of more bytes than a string keeps within itself";

std::string key_of(int i) { return "key " + std::to_string(i) + long_text; }
std::string value_of(int i) { return "value " + std::to_string(i) + long_text; }

Contents numbered(int count) {
  Contents all;
  for (int i = 0; i < count; ++i) all[key_of(i)] = value_of(i);
  return all;
}

class Batch : public ::testing::Test {
 protected:
  // Sets the items with both functions, and expects each to write exactly numbered(3).
  template <typename R>
  void expect_sets_three(R&& items) {
    cache_.set_multi(items);
    EXPECT_EQ(contents(cache_), numbered(3));
    clear();
    cache_.set_multi_async(items).get();
    EXPECT_EQ(contents(cache_), numbered(3));
    clear();
  }
  // Reads the keys of numbered(3), then erases them with both functions.
  template <typename R>
  void expect_takes_three_keys(R&& keys) {
    cache_.set_multi(numbered(3));
    EXPECT_THAT(cache_.get_multi(keys),
                ::testing::ElementsAre(value_of(0), value_of(1), value_of(2)));
    cache_.erase_multi(keys);
    EXPECT_EQ(cache_.size(), 0U);
    cache_.set_multi(numbered(3));
    cache_.erase_multi_async(keys).get();
    EXPECT_EQ(cache_.size(), 0U);
  }
  void clear() { cache_.delete_all_history(); }

  Fleet fleet_;
  Fleet other_fleet_;
  Cache cache_ = fleet_.open("berlin");
};

TEST_F(Batch, items_of_containers_are_set) {
  const Contents expected = numbered(3);
  expect_sets_three(expected);
  expect_sets_three(std::unordered_map<std::string, std::string>(expected.begin(), expected.end()));
  expect_sets_three(std::vector<StringPair>(expected.begin(), expected.end()));
  expect_sets_three(std::vector<ViewPair>(expected.begin(), expected.end()));
  const std::array<std::string, 2> first{key_of(0), value_of(0)};
  const std::array<std::string, 2> second{key_of(1), value_of(1)};
  const std::array<std::string, 2> third{key_of(2), value_of(2)};
  expect_sets_three(std::list<std::array<std::string, 2>>{first, second, third});
  const std::initializer_list<StringPair> list{
      {key_of(0), value_of(0)}, {key_of(1), value_of(1)}, {key_of(2), value_of(2)}};
  expect_sets_three(list);
}

TEST_F(Batch, items_of_views_and_proxies_are_set) {
  const Strings keys{key_of(0), key_of(1), key_of(2)};
  const Strings values{value_of(0), value_of(1), value_of(2)};
  const auto at = [](int i) { return static_cast<std::size_t>(i); };
  // Two vectors read in step, as std::views::zip of C++23 does.
  using References = std::tuple<const std::string&, const std::string&>;
  expect_sets_three(
      Made<References>(3, [&](int i) { return References(keys[at(i)], values[at(i)]); }));
  expect_sets_three(Made<ViewPair>(3, [&](int i) { return ViewPair(keys[at(i)], values[at(i)]); }));
  expect_sets_three(Made<Item>(3, [&](int i) { return Item{keys[at(i)], values[at(i)]}; }));
  expect_sets_three(Made<ProxyOfReferences>(3, [&](int i) {
    return ProxyOfReferences{keys[at(i)], values[at(i)]};
  }));
  Cache other = other_fleet_.open("tokyo");
  other.set_multi(numbered(3));
  expect_sets_three(other.view().items());
  expect_sets_three(other.items().reversed());
}

TEST_F(Batch, keys_of_containers_and_views_are_taken) {
  const Strings keys{key_of(0), key_of(1), key_of(2)};
  expect_takes_three_keys(keys);
  expect_takes_three_keys(std::list<std::string>(keys.begin(), keys.end()));
  expect_takes_three_keys(
      std::array<const char*, 3>{keys[0].c_str(), keys[1].c_str(), keys[2].c_str()});
  expect_takes_three_keys(Made<std::string_view>(
      3, [&](int i) { return std::string_view(keys[static_cast<std::size_t>(i)]); }));
  Cache other = other_fleet_.open("tokyo");
  other.set_multi(numbered(3));
  expect_takes_three_keys(other.view().keys());
  expect_takes_three_keys(other.keys());
}

// Each element is in the frame of the range, which the next one overwrites.
TEST_F(Batch, elements_of_a_range_read_once_are_copied) {
  const auto key = [](Once<const std::string&>& range, int i) -> const std::string& {
    range.frame = key_of(i);
    return range.frame;
  };
  const auto item = [](Once<const StringPair&>& range, int i) -> const StringPair& {
    range.frame = {key_of(i), value_of(i)};
    return range.frame;
  };

  cache_.set_multi(Once<const StringPair&>(3, item));

  EXPECT_EQ(contents(cache_), numbered(3));
  EXPECT_THAT(cache_.get_multi(Once<const std::string&>(2, key)),
              ::testing::ElementsAre(value_of(0), value_of(1)));
  cache_.erase_multi_async(Once<const std::string&>(2, key)).get();
  EXPECT_EQ(contents(cache_), (Contents{{key_of(2), value_of(2)}}));
}

}  // namespace
}  // namespace whycache::testing
