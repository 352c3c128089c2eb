// A view: the dataset as of one update id.
//
// While a view exists, its contents do not change, and the bytes it returns stay where they are:
// values, and the keys of items, in shared memory, without a copy. A view keeps the space of what
// is overwritten meanwhile from being reused. Hold it for a request, not for a day.
//
// Everything that a view or a range returns is valid while the view, any copy of it, or any range
// or iterator made from one of them exists.
#pragma once

#include <cstddef>
#include <iterator>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include <whycache/error.h>
#include <whycache/parse.h>
#include <whycache/types.h>

namespace whycache {

// A range of keys, in lexicographic order of their bytes: `begin` inclusive, `end` exclusive.
// Without an `end`, it extends to the last key.
struct KeyRange {
  std::string begin;
  std::optional<std::string> end;

  [[nodiscard]] static KeyRange all() { return {}; }
  [[nodiscard]] static KeyRange from(std::string_view begin) {
    return {std::string(begin), std::nullopt};
  }
  [[nodiscard]] static KeyRange between(std::string_view begin, std::string_view end) {
    return {std::string(begin), std::string(end)};
  }
  // All keys that start with `prefix`.
  [[nodiscard]] WHYCACHE_API static KeyRange prefix(std::string_view prefix);
};

// A value with its version, as View::version() says.
struct VersionedValue {
  std::string value;
  UpdateId version = 0;
};

namespace detail {

// The result of deleted functions of temporaries: compilers show it with the error.
struct KeepTheViewInAVariable;

class Pin;     // the pinned update and the mapping that a view and its ranges share
class Cursor;  // a position in ascending or descending key order

// Moves a cursor and reads the item at its position. The iterators below call into the library only
// through this struct.
struct WHYCACHE_API CursorAccess {
  static std::shared_ptr<Cursor> open(std::shared_ptr<const Pin> pin, const KeyRange& range,
                                      bool with_values, bool descending);
  static bool at_end(const Cursor& cursor) noexcept;
  static void next(Cursor& cursor);
  static const Item& item(const Cursor& cursor) noexcept;
};

struct TakeItem {
  using Value = Item;
  static constexpr bool with_values = true;
  static Value take(const Item& item) { return item; }
};
struct TakeKey {
  using Value = std::string_view;
  static constexpr bool with_values = false;
  static Value take(const Item& item) { return item.key; }
};
struct TakeValue {
  using Value = std::string_view;
  static constexpr bool with_values = true;
  static Value take(const Item& item) { return item.value; }
};

}  // namespace detail

// Keys, values or items in key order, for a range-for loop. It keeps its view alive.
//
//   for (auto [key, value] : view.items(KeyRange::prefix("log.")).reversed()) ...  // newest first
//
// The key index stores keys in parts. Each key that a range of keys returns is therefore put
// together in memory of this process, which is freed with the view. A view whose keys are read
// again and again takes more of it each time; items() copies nothing.
template <typename Take>
class Range {
 public:
  class Iterator {
   public:
    using value_type = typename Take::Value;
    using difference_type = std::ptrdiff_t;
    using iterator_category = std::input_iterator_tag;
    using pointer = void;
    using reference = value_type;

    Iterator() = default;
    explicit Iterator(std::shared_ptr<detail::Cursor> cursor) : cursor_(std::move(cursor)) {}

    value_type operator*() const { return Take::take(detail::CursorAccess::item(*cursor_)); }
    Iterator& operator++() {
      detail::CursorAccess::next(*cursor_);
      return *this;
    }
    void operator++(int) { ++*this; }
    friend bool operator==(const Iterator& it, std::default_sentinel_t) {
      return !it.cursor_ || detail::CursorAccess::at_end(*it.cursor_);
    }

   private:
    std::shared_ptr<detail::Cursor> cursor_;
  };

  Range(std::shared_ptr<const detail::Pin> pin, KeyRange range)
      : pin_(std::move(pin)), range_(std::move(range)) {}

  // The same keys in the opposite order.
  [[nodiscard]] Range reversed() const {
    Range other(*this);
    other.descending_ = !descending_;
    return other;
  }

  // Throws Error(corrupt) if the state is damaged.
  Iterator begin() const& {
    return Iterator(detail::CursorAccess::open(pin_, range_, Take::with_values, descending_));
  }
  // A temporary range does not keep the bytes: keep the range or the view.
  detail::KeepTheViewInAVariable begin() const&& = delete;
  std::default_sentinel_t end() const { return {}; }

 private:
  std::shared_ptr<const detail::Pin> pin_;
  KeyRange range_;
  bool descending_ = false;
};

using Items = Range<detail::TakeItem>;
using Keys = Range<detail::TakeKey>;
using Values = Range<detail::TakeValue>;

// Copies share what they pin. Any number of threads can read a view at once. In a forked child, a
// view of the parent throws Error(invalid); open a new one there. A view, or a range, that was
// moved from throws Error(invalid), too; it can be assigned to.
class WHYCACHE_API View {
 public:
  explicit View(std::shared_ptr<const detail::Pin> pin) : pin_(std::move(pin)) {}

  [[nodiscard]] UpdateId id() const;
  // The number of keys.
  [[nodiscard]] std::size_t size() const;
  [[nodiscard]] Digest digest() const;

  // Returns nullopt if the key is absent. The value is not copied: it stays in shared memory as
  // long as the view exists. Throws Error(corrupt) if the state is damaged.
  [[nodiscard]] std::optional<std::string_view> get(std::string_view key) const& {
    const std::string_view value = find(key);
    if (value.data() == nullptr) return std::nullopt;
    return value;
  }
  // A temporary view does not keep the value: keep the view, or use Cache::get().
  detail::KeepTheViewInAVariable get(std::string_view key) const&& = delete;
  [[nodiscard]] bool contains(std::string_view key) const;
  // Returns the value as a number or truth value, or nullopt if the key is absent. Throws
  // Error(invalid), which names the key, if all of the value is not one that fits into `T`:
  //
  //   bool             true, 1, yes, on; false, 0, no, off; in upper or lower case
  //   integers         decimal digits, and '-' before them if `T` is signed
  //   floating point   as std::from_chars: 1, -0.5, 1e9, inf, nan
  template <ParsedValue T>
  [[nodiscard]] std::optional<T> get_as(std::string_view key) const {
    const std::string_view value = find(key);
    if (value.data() == nullptr) return std::nullopt;
    return detail::parse_value<T>(key, value);
  }
  // Returns the version of the key's value, or nullopt if the key is absent. The version is the id
  // of the update that wrote the value. After history was rewritten, a machine that builds its
  // state again no longer knows ids up to the base; there the version is the base. Either way the
  // key had this value as of that id, and no update has changed it since. Costs more than get().
  [[nodiscard]] std::optional<UpdateId> version(std::string_view key) const;
  // Returns a copy of the value and its version, or nullopt if the key is absent. Costs as
  // version().
  [[nodiscard]] std::optional<VersionedValue> get_versioned(std::string_view key) const;

  // Returns the first, the last item of a range, or nullopt if the range has none.
  [[nodiscard]] std::optional<Item> first(const KeyRange& range = {}) const&;
  detail::KeepTheViewInAVariable first(const KeyRange& range = {}) const&& = delete;
  [[nodiscard]] std::optional<Item> last(const KeyRange& range = {}) const&;
  detail::KeepTheViewInAVariable last(const KeyRange& range = {}) const&& = delete;
  // Returns the number of keys in a range. Takes time in proportion to it, about a hundredth of
  // what reading the keys takes.
  [[nodiscard]] std::size_t count(const KeyRange& range = {}) const;

  [[nodiscard]] Items items(KeyRange range = {}) const { return {pin_, std::move(range)}; }
  [[nodiscard]] Keys keys(KeyRange range = {}) const { return {pin_, std::move(range)}; }
  [[nodiscard]] Values values(KeyRange range = {}) const { return {pin_, std::move(range)}; }

  Items::Iterator begin() const& {
    const Items all = items();
    return all.begin();
  }
  detail::KeepTheViewInAVariable begin() const&& = delete;
  std::default_sentinel_t end() const { return {}; }

 private:
  // Returns a null data pointer if the key is absent. Unlike an optional, two words are returned in
  // registers.
  std::string_view find(std::string_view key) const;
  // Throws Error(invalid) if the object was moved from.
  const detail::Pin& pin() const;

  std::shared_ptr<const detail::Pin> pin_;  // null if the object was moved from
};

}  // namespace whycache
