// The ranges that functions of many keys or items accept, such as Cache::set_multi().
//
// Accepted are keys and values that are stored somewhere else: strings of a container, or views of
// bytes that outlive the call. A range that makes each string as it is read is refused, since only
// views of the strings are kept until all are collected:
//
//   cache.set_multi(std::map<std::string, std::string>(...));          // pairs of strings
//   cache.get_multi(ids | std::views::transform(&User::name_view));    // std::string_view by value
//   cache.erase_multi(other.view().keys());                            // bytes that a view keeps
//   cache.get_multi(ids | std::views::transform(to_string));           // refused: temporaries
//
// A range that can be read only once (std::ranges::input_range) may change an element when it
// advances: its bytes are copied as it is read. Ranges that can be read again must leave each
// element in place until the call returns.
#pragma once

#include <concepts>
#include <cstddef>
#include <ranges>
#include <span>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <whycache/types.h>

namespace whycache {

template <typename Take>
class Range;  // view.h

namespace detail {

// An expression of type `T` names bytes that outlive it: it refers to an object, or is a pointer or
// a view.
template <typename T>
concept BorrowedBytes = std::convertible_to<T, std::string_view> &&
    (std::is_lvalue_reference_v<T> || std::is_pointer_v<std::remove_cvref_t<T>> ||
     std::ranges::borrowed_range<std::remove_cvref_t<T>>);

template <typename T>
concept HasFirstAndSecond = requires(std::remove_reference_t<T>& pair) {
  pair.first;
  pair.second;
};
template <typename T>
concept TupleOfTwo = requires(std::remove_reference_t<T>& tuple) {
  requires std::tuple_size<std::remove_cvref_t<T>>::value == 2;
  std::get<0>(tuple);
  std::get<1>(tuple);
};
template <typename T>
concept PairLike =
    std::same_as<std::remove_cvref_t<T>, Item> || HasFirstAndSecond<T> || TupleOfTwo<T>;

// The key (0) or value (1) of an item, pair or tuple. Only an lvalue if it outlives `pair`.
template <std::size_t n, PairLike T>
constexpr decltype(auto) member_of(T&& pair) {
  static_assert(n < 2);
  if constexpr (std::same_as<std::remove_cvref_t<T>, Item>) {
    if constexpr (n == 0) return (std::forward<T>(pair).key);
    if constexpr (n == 1) return (std::forward<T>(pair).value);
  } else if constexpr (HasFirstAndSecond<T>) {
    if constexpr (n == 0) return (std::forward<T>(pair).first);
    if constexpr (n == 1) return (std::forward<T>(pair).second);
  } else {
    return std::get<n>(std::forward<T>(pair));
  }
}

template <typename T>
concept BorrowedPair = PairLike<T> && BorrowedBytes<decltype(member_of<0>(std::declval<T>()))> &&
    BorrowedBytes<decltype(member_of<1>(std::declval<T>()))>;

// The ranges that do not convert to the span of the plain overload.
template <typename R>
concept OtherKeyRange =
    std::ranges::input_range<R> && !std::convertible_to<R, std::span<const std::string_view>>;
template <typename R>
concept OtherItemRange =
    std::ranges::input_range<R> && !std::convertible_to<R, std::span<const Item>>;

template <typename R>
concept RangeOfKeys = OtherKeyRange<R> && BorrowedBytes<std::ranges::range_reference_t<R>>;
template <typename R>
concept RangeOfItems = OtherItemRange<R> && BorrowedPair<std::ranges::range_reference_t<R>>;

// Deleted overloads refuse these: ranges of something else, or of temporary strings. Collect the
// strings in a container first, and pass that.
template <typename R>
concept RangeOfTemporariesOrNoKeys = OtherKeyRange<R> && !RangeOfKeys<R>;
template <typename R>
concept RangeOfTemporariesOrNoItems = OtherItemRange<R> && !RangeOfItems<R>;
// The result of the deleted overloads: compilers show it with the error.
struct CollectTheStringsInAContainerFirst;

// Whether the elements stay in place while the range is read to its end.
template <typename R>
inline constexpr bool has_stable_elements = std::ranges::forward_range<R>;
template <typename Take>
inline constexpr bool has_stable_elements<Range<Take>> = true;
template <typename R>
concept StableRange = has_stable_elements<R> || has_stable_elements<std::remove_cvref_t<R>>;

// The keys of a range, and the copies that they point into if it can be read only once.
class CollectedKeys {
 public:
  template <typename R>
  requires RangeOfKeys<R&>
  explicit CollectedKeys(R& keys) {
    if constexpr (StableRange<R>) {
      for (auto&& key : keys) keys_.push_back(std::forward<decltype(key)>(key));
    } else {
      for (auto&& key : keys)
        copies_.emplace_back(std::string_view(std::forward<decltype(key)>(key)));
      keys_.assign(copies_.begin(), copies_.end());
    }
  }
  CollectedKeys(const CollectedKeys&) = delete;
  CollectedKeys& operator=(const CollectedKeys&) = delete;

  std::span<const std::string_view> span() const { return keys_; }

 private:
  std::vector<std::string> copies_;
  std::vector<std::string_view> keys_;
};

// The items of a range, and the copies that they point into if it can be read only once.
class CollectedItems {
 public:
  template <typename R>
  requires RangeOfItems<R&>
  explicit CollectedItems(R& pairs) {
    using Pair = std::ranges::range_reference_t<R>;
    if constexpr (StableRange<R>) {
      for (auto&& pair : pairs)
        items_.push_back(
            {member_of<0>(static_cast<Pair&&>(pair)), member_of<1>(static_cast<Pair&&>(pair))});
    } else {
      for (auto&& pair : pairs) {
        copies_.emplace_back(std::string_view(member_of<0>(static_cast<Pair&&>(pair))));
        copies_.emplace_back(std::string_view(member_of<1>(static_cast<Pair&&>(pair))));
      }
      for (std::size_t i = 0; i < copies_.size(); i += 2)
        items_.push_back({copies_[i], copies_[i + 1]});
    }
  }
  CollectedItems(const CollectedItems&) = delete;
  CollectedItems& operator=(const CollectedItems&) = delete;

  std::span<const Item> span() const { return items_; }

 private:
  std::vector<std::string> copies_;
  std::vector<Item> items_;
};

}  // namespace detail
}  // namespace whycache
