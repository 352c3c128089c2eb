// A transaction: reads as of one update id, and writes that enter the log only if nothing it read
// has changed since. Cache::transact() passes it to the function that it runs.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <type_traits>
#include <vector>

#include <whycache/batch.h>
#include <whycache/lease.h>
#include <whycache/types.h>
#include <whycache/view.h>

namespace whycache {

// Use it only on the thread that runs the function, and only while the function runs.
class WHYCACHE_API Transaction {
 public:
  // The update id as of which it reads.
  [[nodiscard]] UpdateId id() const noexcept;

  // Reads as of id(), with this transaction's own writes on top. get() returns nullopt if the key
  // is absent. Values are not copied: they are valid while the function runs, or until this
  // transaction writes the key again.
  //
  // The transaction records every key and range it reads, absent keys too, and compares them when
  // it commits. A range costs time in proportion to its items, at the read and again at the commit.
  // Throw Error(corrupt) if the state is damaged.
  std::optional<std::string_view> get(std::string_view key);
  bool contains(std::string_view key) { return get(key).has_value(); }
  // Returns the values in the order of `keys`; nullopt for absent keys.
  std::vector<std::optional<std::string_view>> get_multi(std::span<const std::string_view> keys);
  std::vector<std::optional<std::string_view>> get_multi(
      std::initializer_list<std::string_view> keys) {
    return get_multi(std::span(keys.begin(), keys.size()));
  }
  template <detail::RangeOfKeys R>
  std::vector<std::optional<std::string_view>> get_multi(R&& keys) {
    return get_multi(detail::CollectedKeys(keys).span());
  }
  template <detail::RangeOfTemporariesOrNoKeys R>
  detail::CollectTheStringsInAContainerFirst get_multi(R&& keys) = delete;
  std::vector<Item> items(const KeyRange& range);

  // Buffer the write until the function returns. All writes then become one update. Throw
  // Error(invalid) if the key is empty or too long, Error(limit) if the value is too large.
  void set(std::string_view key, std::string_view value);
  void erase(std::string_view key);
  // Erases every key of a range: those that it reads there, and those that it has set. The
  // transaction runs again if others add keys to the range meanwhile, or change its values.
  void erase(const KeyRange& range);
  // Adds `delta` to an integer stored as decimal digits, as Cache::add(). Returns the sum.
  std::int64_t add(std::string_view key, std::int64_t delta);

  // Returns whether the lease is held, expired or not. The transaction then commits only if no
  // other holder has taken it. Reads the lease's key.
  [[nodiscard]] bool holds(const Lease& lease);

  class Record;  // src/client/transact.h
  explicit Transaction(Record& record) : record_(&record) {}
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;

 private:
  Record* record_;
};

// Cache::transact() returns this if the function returns a value.
template <typename T>
struct TransactResult {
  UpdateId id = 0;  // as of the transaction without a result
  T value;          // of the run that was committed
};

namespace detail {

// Whether a result would refer to bytes that are valid only while the transaction runs.
template <typename T>
struct RefersToTransaction : std::bool_constant<std::is_reference_v<T>> {};
template <>
struct RefersToTransaction<std::string_view> : std::true_type {};
template <>
struct RefersToTransaction<Item> : std::true_type {};
template <>
struct RefersToTransaction<Change> : std::true_type {};
template <typename T, std::size_t n>
struct RefersToTransaction<std::span<T, n>> : std::true_type {};
template <template <typename...> typename Template, typename... T>
struct RefersToTransaction<Template<T...>>
    : std::bool_constant<(RefersToTransaction<std::remove_cv_t<T>>::value || ...)> {};

// The result of a deleted overload: compilers show it with the error.
struct ReturnAStdStringInstead;

template <typename Function>
using ResultInTransaction = std::invoke_result_t<Function&, Transaction&>;
template <typename Function>
concept ReturnsResult =
    !std::is_void_v<ResultInTransaction<Function>> &&
    !RefersToTransaction<std::remove_cv_t<ResultInTransaction<Function>>>::value;
template <typename Function>
concept ReturnsBytesOfTransaction =
    RefersToTransaction<std::remove_cv_t<ResultInTransaction<Function>>>::value;

}  // namespace detail
}  // namespace whycache
