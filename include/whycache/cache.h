// The cache: reads at memory speed from a state all processes of this machine share, writes that
// are guaranteed by a log all machines share.
//
//   whycache::Cache cache("sqlite:///var/lib/flags.db", {.name = "flags"});
//   cache.set("checkout.enabled", "yes");                // durable, applied here; returns the update id
//   if (cache.get("checkout.enabled") == "yes") ...      // no lock, no system call
//   cache.update();                                      // what others wrote
//   for (auto [key, value] : cache.view()) ...           // held still at one update id, in key order
//
// The one rule: the state is the log, applied in order, up to and including the applied id.
#pragma once

#include <chrono>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <initializer_list>
#include <memory>
#include <optional>
#include <ranges>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <vector>

#include <whycache/error.h>
#include <whycache/log.h>
#include <whycache/options.h>
#include <whycache/transaction.h>
#include <whycache/types.h>
#include <whycache/view.h>

namespace whycache {

struct FreshValue {
  std::optional<std::string> value;
  UpdateId id = 0;  // as of which
  // How long ago the log was last asked, when this was returned.
  std::chrono::nanoseconds staleness{0};
  // The log did not answer: older than was asked for.
  bool stale = false;
};

// What this Cache object has seen and done since it was opened.
struct Counters {
  std::uint64_t updates_applied = 0;  // by this process; others of this machine apply too
  std::uint64_t updates_written = 0;
  std::uint64_t append_conflicts = 0;  // somebody else was first, and we tried the next id
  std::uint64_t log_retries = 0;
  std::uint64_t rebuilds_behind_base = 0;
  std::uint64_t rebuilds_diverged = 0;  // the log was restored, forked or lost its tail
  std::uint64_t rebuilds_replaced = 0;  // the log has another uuid
  std::uint64_t rebuilds_damaged = 0;   // the state could not be used
  std::uint64_t recoveries = 0;         // taken over from a writer that died midway
};

namespace detail {

// A range of strings that is not one of std::string_view already.
template <typename T>
concept Strings = std::ranges::input_range<const T> &&
                  !std::convertible_to<const T&, std::span<const std::string_view>> &&
                  std::convertible_to<std::ranges::range_reference_t<const T>, std::string_view> &&
                  std::is_lvalue_reference_v<std::ranges::range_reference_t<const T>>;
template <typename T>
concept PairsOfStrings = std::ranges::input_range<const T> &&
    requires(std::ranges::range_reference_t<const T> pair) {
  { pair.first } -> std::convertible_to<std::string_view>;
  { pair.second } -> std::convertible_to<std::string_view>;
  requires std::is_lvalue_reference_v<decltype((pair))>;
};

template <Strings Keys>
std::vector<std::string_view> string_views(const Keys& keys) {
  return {std::ranges::begin(keys), std::ranges::end(keys)};
}

}  // namespace detail

// Safe from any number of threads. Several objects on one state in one process are fine. In a
// forked child every method works; views taken before the fork do not.
class WHYCACHE_API Cache {
 public:
  // Opens the log and this machine's state, making and filling the state if it is not there. With a
  // usable state, opening succeeds although the log is away. Throws Error of every kind.
  explicit Cache(std::string_view log_url, Options options = {});
  explicit Cache(std::unique_ptr<Log> log, Options options = {});
  ~Cache();
  Cache(Cache&&) noexcept;
  Cache& operator=(Cache&&) noexcept;

  // Reads. They see one whole update or none of it, never go backwards, and make no system call.
  // They throw Error corrupt if the state is damaged (the next update() then builds a new one),
  // invalid if it was closed.
  std::optional<std::string> get(std::string_view key) const;
  // Into a string you keep, which spares the allocation. False: not there; `value` holds nothing in
  // particular then. `key` must not lie in `value`.
  bool get(std::string_view key, std::string& value) const;
  bool contains(std::string_view key) const;
  // All as of one update id, in the order of `keys`.
  std::vector<std::optional<std::string>> get_multi(std::span<const std::string_view> keys) const;
  std::vector<std::optional<std::string>> get_multi(
      std::initializer_list<std::string_view> keys) const {
    return get_multi(std::span(keys.begin(), keys.size()));
  }
  template <detail::Strings Keys>
  std::vector<std::optional<std::string>> get_multi(const Keys& keys) const {
    return get_multi(std::span<const std::string_view>(detail::string_views(keys)));
  }
  // Not older than asked for, or it says so: update() with that bound, then a get.
  FreshValue get_fresh(std::string_view key, const FreshOptions& options = {});
  // Number of keys.
  std::size_t size() const;

  // Held still at one update id, zero-copy, in key order. Throws Error limit when all reader slots
  // are taken.
  View view() const;
  Keys keys(KeyRange range = {}) const { return view().keys(std::move(range)); }
  Values values(KeyRange range = {}) const { return view().values(std::move(range)); }
  Items items(KeyRange range = {}) const { return view().items(std::move(range)); }

  // Writes. When one returns an id, the update is durable in the log and visible to every process
  // of this machine; every other machine will apply it. Of several changes to one key the last one
  // counts. An empty batch appends nothing and returns the applied id. Errors: invalid and limit
  // before anything is written; unavailable: nothing was written; uncertain: the message says what
  // is known, update() and get() find out the rest. Concurrent writes of one process share an
  // append.
  UpdateId set(std::string_view key, std::string_view value, const WriteOptions& options = {});
  UpdateId set_multi(std::span<const Item> items, const WriteOptions& options = {});
  UpdateId set_multi(std::initializer_list<Item> items, const WriteOptions& options = {}) {
    return set_multi(std::span(items.begin(), items.size()), options);
  }
  // From a std::map, a vector of pairs ...
  template <detail::PairsOfStrings Pairs>
  UpdateId set_multi(const Pairs& pairs, const WriteOptions& options = {}) {
    std::vector<Item> items;
    for (const auto& [key, value] : pairs) items.push_back({key, value});
    return set_multi(std::span<const Item>(items), options);
  }
  UpdateId erase(std::string_view key, const WriteOptions& options = {});
  UpdateId erase_multi(std::span<const std::string_view> keys, const WriteOptions& options = {});
  UpdateId erase_multi(std::initializer_list<std::string_view> keys,
                       const WriteOptions& options = {}) {
    return erase_multi(std::span(keys.begin(), keys.size()), options);
  }
  template <detail::Strings Keys>
  UpdateId erase_multi(const Keys& keys, const WriteOptions& options = {}) {
    return erase_multi(std::span<const std::string_view>(detail::string_views(keys)), options);
  }
  // Sets all that `next` hands out until it has no more, in as many updates as that takes, in
  // order, each atomic, with memory for two of them however many they are. An item has to stay
  // where it is until the next call. Returns the id of the last update; the deadline is that of
  // each. After an error the updates before it stay: the message says how many items those had.
  // What `next` throws passes unchanged, and what it handed out since the last update is not
  // written.
  UpdateId fill(const std::function<std::optional<Item>()>& next, const WriteOptions& options = {});
  // Sets and erases in one batch. The id returned is that of the last update if it had to be split.
  UpdateId write(std::span<const Change> changes, const WriteOptions& options = {});
  UpdateId write(std::initializer_list<Change> changes, const WriteOptions& options = {}) {
    return write(std::span(changes.begin(), changes.size()), options);
  }

  // The same, without waiting: the data is copied, and a thread of this cache writes it; the future
  // has the id, or throws what the blocking form would. They are in the log in the order of the
  // calls, and many of them share an append. Throw Error at once if the changes are at fault, or
  // limit if too much is waiting (Options::queue_bytes_max). What has not been written when the
  // cache is closed is not written any more (Error unavailable). In a forked child the parent's
  // futures never end.
  std::future<UpdateId> set_async(std::string_view key, std::string_view value,
                                  const WriteOptions& options = {});
  std::future<UpdateId> set_multi_async(std::span<const Item> items,
                                        const WriteOptions& options = {});
  std::future<UpdateId> set_multi_async(std::initializer_list<Item> items,
                                        const WriteOptions& options = {}) {
    return set_multi_async(std::span(items.begin(), items.size()), options);
  }
  std::future<UpdateId> erase_async(std::string_view key, const WriteOptions& options = {});
  std::future<UpdateId> erase_multi_async(std::span<const std::string_view> keys,
                                          const WriteOptions& options = {});
  std::future<UpdateId> erase_multi_async(std::initializer_list<std::string_view> keys,
                                          const WriteOptions& options = {}) {
    return erase_multi_async(std::span(keys.begin(), keys.size()), options);
  }
  std::future<UpdateId> write_async(std::span<const Change> changes,
                                    const WriteOptions& options = {});
  std::future<UpdateId> write_async(std::initializer_list<Change> changes,
                                    const WriteOptions& options = {}) {
    return write_async(std::span(changes.begin(), changes.size()), options);
  }

  // Runs the function; what it writes through the transaction becomes one update, if nothing it
  // read has changed meanwhile, on whichever machine; else it is run again. So it must do nothing
  // that cannot be done twice, and must not write to a cache otherwise. Transactions are
  // serializable. Returns the id of the update, or, if nothing was written, the id at which it
  // read: that is this machine's, and may be old. What the function throws comes out, and nothing
  // is written. Throws Error: conflict when the attempts or the deadline are used up; and as set()
  // does.
  UpdateId transact(const std::function<void(Transaction&)>& function,
                    const TransactOptions& options = {});

  // Writes if the key has the expected value (nullopt: is absent); nullopt: it has not, by what the
  // log held during the call.
  std::optional<UpdateId> set_if(std::string_view key, std::optional<std::string_view> expected,
                                 std::string_view value, const WriteOptions& options = {});
  std::optional<UpdateId> erase_if(std::string_view key, std::string_view expected,
                                   const WriteOptions& options = {});
  // Adds to an integer written in decimal digits; an absent key counts as 0. Returns the sum.
  // Throws Error: invalid if the value is no integer, limit if the sum has more than 64 bits; and
  // as set() does.
  std::int64_t add(std::string_view key, std::int64_t delta, const WriteOptions& options = {});

  // Applies what the log has beyond the applied id; returns the applied id. Concurrent calls of all
  // processes of this machine become one. Throws Error: unavailable, corrupt (an update cannot be
  // believed: the machine stays at the id before it, loudly), limit (it does not fit into the
  // state).
  UpdateId update(const UpdateOptions& options = {});

  // Puts the entries as of an id in place of the updates up to it. Returns the base. Throws Error:
  // unavailable (the log does not answer, or it was restored or failed over meanwhile; the history
  // is as it was), uncertain (it may have been rewritten; or what `keep` refuses is erased, and the
  // rest was not done); as set() does.
  UpdateId rewrite_history(const RewriteOptions& options = {});
  // Empties the dataset on every machine: one update that erases everything, then a rewrite. Throws
  // Error uncertain if the first of these was done and the second was not, or may not have been.
  UpdateId delete_all_history();

  UpdateId applied_id() const;
  // How long ago the log was last asked by a process of this machine (CLOCK_BOOTTIME).
  // nanoseconds::max(): not since the machine was started.
  std::chrono::nanoseconds staleness() const;
  Digest digest() const;
  // False once the state was closed or deleted through this object.
  bool valid() const noexcept;
  // This one and counters() answer after closing, too.
  std::string state_path() const;
  Counters counters() const;

  // Brings the state to the disk and lets go of it; afterwards the file may be copied to another
  // machine and opened there. Other processes may go on using it. Everything else on this object
  // then throws Error invalid. What other threads are in the midst of, and views, come to their
  // end; only who waits for a log that does not answer gives up. Closing again does nothing. Throws
  // Error if the disk fails; the state is let go of all the same.
  void close_shared_state();
  // Removes this machine's state, and closes. Other processes of the machine notice, and build a
  // new one at their next update().
  void delete_shared_state();

 private:
  friend class CacheInternal;  // src/client/cache_internal.h
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace whycache
