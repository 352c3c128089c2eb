// The cache. Reads take place at memory speed in a state that all processes of this machine share.
// Writes are durable in a log that all machines share.
//
//   whycache::Cache cache("sqlite:///var/lib/flags.db");
//   cache.set("checkout.enabled", "yes");             // durable, applied here; returns the id
//   if (cache.get("checkout.enabled") == "yes") ...   // no lock, no system call
//   cache.update();                                   // applies what other machines wrote
//   for (auto [key, value] : cache.view()) ...        // as of one update id, in key order
//
// The one rule: the state is the log, applied in order, up to and including the applied id.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <future>
#include <initializer_list>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include <whycache/batch.h>
#include <whycache/changes.h>
#include <whycache/error.h>
#include <whycache/inspection.h>
#include <whycache/lease.h>
#include <whycache/log.h>
#include <whycache/options.h>
#include <whycache/parse.h>
#include <whycache/transaction.h>
#include <whycache/types.h>
#include <whycache/view.h>

namespace whycache {

struct FreshValue {
  std::optional<std::string> value;
  UpdateId id = 0;  // the update id as of which the value was read
  // How long ago the log was last asked, at the time of return.
  std::chrono::nanoseconds staleness{0};
  // The log did not answer in time, so the value may be older than FreshOptions::staleness_max.
  bool stale = false;
};

// A cache on one log and one state of this machine.
//
// Threads: any number of threads can use one object. A thread must not be cancelled
// (pthread_cancel) during a call, and a signal handler must not call anything: nothing here is
// async-signal-safe. Processes: any number of processes, and several objects in one process, can
// share a state. After fork(), every method works in the child; a view that the parent took does
// not. Once its state was deleted through it, an object throws Error(invalid) from every method but
// valid(), state_path(), counters() and the two that close it. An object that was moved from throws
// Error(invalid) from every method but valid().
class WHYCACHE_API Cache {
 public:
  // Opens the state of this machine. If it can be used, opening does not wait for the log: the
  // first update() or write connects. If there is none, builds one from the log (Options::open). A
  // state that was copied from another machine, or is of a log of another name, is compared with
  // the log first. Throws Error of any kind.
  explicit Cache(std::string_view log_url, Options options = {});
  explicit Cache(std::unique_ptr<Log> log, Options options = {});
  // Opens the state at a path for reads alone, without a log or its credentials. The file and its
  // directory may be read-only, and the file may belong to any user: to name the path is to trust
  // its owner. Another process keeps the state up to date; stats() and staleness() say whether it
  // does. A file that no process of this machine has in use, such as a copy, is verified first.
  //
  // update() with `at_least`, or with a staleness_max above 0, waits until others have brought the
  // state there, and throws Error(unavailable) at its deadline. Without either, and when anything
  // is written, the cache throws Error(invalid).
  //
  // Throws Error(unavailable) if there is no usable state (AttachOptions::open); otherwise as the
  // constructors.
  [[nodiscard]] static Cache attach(std::string_view state_path, const AttachOptions& options = {});
  // Asynchronous writes end as below. No other call of this object may be under way.
  ~Cache();
  Cache(Cache&&) noexcept;
  Cache& operator=(Cache&&) noexcept;

  // Reads. Each sees an update as a whole or not at all, and reads never go back to an older update
  // id. As a rule, get() and contains() take no lock and make no system call. All throw
  // Error(corrupt) if the state is damaged; the next update() then rebuilds it. All throw
  // Error(unavailable) if the state was replaced by a file that this process cannot open; or by the
  // state of another log, until update() has asked this cache's log whether it was replaced.

  // Returns a copy of the value, or nullopt if the key is absent.
  [[nodiscard]] std::optional<std::string> get(std::string_view key) const;
  // Copies the value into `value`, whose memory it reuses. Returns false if the key is absent; then
  // the content of `value` is unspecified. `key` must not point into `value`.
  [[nodiscard]] bool get(std::string_view key, std::string& value) const;
  [[nodiscard]] bool contains(std::string_view key) const;
  // Returns the values in the order of `keys`, all as of one update id; nullopt for absent keys.
  [[nodiscard]] std::vector<std::optional<std::string>> get_multi(
      std::span<const std::string_view> keys) const;
  // Copies the value of keys[i] into values[i], whose memory it reuses, or sets it to nullopt. All
  // are as of one update id. Returns how many keys have a value. Throws Error(invalid) unless there
  // are as many values as keys. The keys must not point into the values. With 32 keys at
  // once, each costs a third of a get(). Allocates nothing if the strings are large enough.
  std::size_t get_multi(std::span<const std::string_view> keys,
                        std::span<std::optional<std::string>> values) const;
  [[nodiscard]] std::vector<std::optional<std::string>> get_multi(
      std::initializer_list<std::string_view> keys) const {
    return get_multi(std::span(keys.begin(), keys.size()));
  }
  // Takes any range of strings or views of them; batch.h says which.
  template <detail::RangeOfKeys R>
  [[nodiscard]] std::vector<std::optional<std::string>> get_multi(R&& keys) const {
    return get_multi(detail::CollectedKeys(keys).span());
  }
  template <detail::RangeOfTemporariesOrNoKeys R>
  detail::CollectTheStringsInAContainerFirst get_multi(R&& keys) const = delete;
  // Calls update() with the bound of the options, then reads. If the log does not answer in time,
  // throws Error(unavailable), or returns the value marked as stale (FreshOptions::serve_stale).
  [[nodiscard]] FreshValue get_fresh(std::string_view key, const FreshOptions& options = {});
  // Returns the value as a number or truth value, as View::get_as() says; nullopt if the key is
  // absent. Throws Error(invalid), which names the key, if the value is none.
  template <ParsedValue T>
  [[nodiscard]] std::optional<T> get_as(std::string_view key) const {
    std::string value;
    if (!get(key, value)) return std::nullopt;
    return detail::parse_value<T>(key, value);
  }
  // Returns a copy of the value and its version, for set_if_version(); nullopt if the key is
  // absent. Opens a view.
  [[nodiscard]] std::optional<VersionedValue> get_versioned(std::string_view key) const;
  // Returns the number of keys.
  [[nodiscard]] std::size_t size() const;
  // Returns the number of keys in a range, as View::count(). Opens a view.
  [[nodiscard]] std::size_t count(const KeyRange& range) const;

  // Returns the dataset as of one update id, without a copy, in key order. Holds one lock of the
  // kernel for all views of the process; a process that seldom opens one pays some 3 us for it.
  [[nodiscard]] View view() const;
  [[nodiscard]] Keys keys(KeyRange range = {}) const { return view().keys(std::move(range)); }
  [[nodiscard]] Values values(KeyRange range = {}) const { return view().values(std::move(range)); }
  [[nodiscard]] Items items(KeyRange range = {}) const { return view().items(std::move(range)); }

  // Returns the changes of all updates beyond `from` to keys of the range (changes.h). First come
  // those that this machine has applied, then each further one once this machine applies it. `from`
  // 0 means everything that the log has. For the changes of other machines to arrive, some process
  // has to follow the log (Options::follow, whycache follow) or call update(). The feed asks the
  // log only for what the ring beside the state no longer has. A cache that is attached to a state
  // reads the ring alone.
  //
  // The feed begins with a `reset` if it cannot know all changes since `from`: if history up to
  // there was rewritten, the log was restored or replaced, or the log does not reach to `from`. A
  // restored log that has grown past `from` again cannot be recognized by the id alone.
  [[nodiscard]] Changes changes(UpdateId from, KeyRange range = {},
                                const ChangesOptions& options = {}) const;

  // Writes. When a write returns an id, the update is durable in the log and visible to every
  // process of this machine. Every other machine applies it at its next update(). If a batch
  // changes a key more than once, only the last change counts. An empty batch appends nothing and
  // returns the applied id. Concurrent writes of one process share an append.
  //
  // They throw Error(invalid), Error(limit) or Error(refused) before anything is written, and
  // Error(unavailable) if nothing was written. They throw Error(uncertain) if the write may be in
  // the log, in full or in part; the message says what is known, and update() and get() show the
  // rest.
  UpdateId set(std::string_view key, std::string_view value, const WriteOptions& options = {});
  UpdateId set_multi(std::span<const Item> items, const WriteOptions& options = {});
  UpdateId set_multi(std::initializer_list<Item> items, const WriteOptions& options = {}) {
    return set_multi(std::span(items.begin(), items.size()), options);
  }
  // Takes a std::map, a vector of pairs, the items of a view, and so on; batch.h says which.
  template <detail::RangeOfItems R>
  UpdateId set_multi(R&& items, const WriteOptions& options = {}) {
    return set_multi(detail::CollectedItems(items).span(), options);
  }
  template <detail::RangeOfTemporariesOrNoItems R>
  detail::CollectTheStringsInAContainerFirst set_multi(R&& items,
                                                       const WriteOptions& options = {}) = delete;
  UpdateId erase(std::string_view key, const WriteOptions& options = {});
  // Erases all keys of a range, or all that start with a prefix, by one update: none of them is
  // present as of it, whatever other machines wrote before. Returns the id of the update, or an id
  // as of which the range was empty. Throws Error(limit) if the update exceeds update_bytes_max
  // (delete_all_history() erases any number of keys).
  UpdateId erase(const KeyRange& range, const WriteOptions& options = {});
  UpdateId erase_prefix(std::string_view prefix, const WriteOptions& options = {}) {
    return erase(KeyRange::prefix(prefix), options);
  }
  UpdateId erase_multi(std::span<const std::string_view> keys, const WriteOptions& options = {});
  UpdateId erase_multi(std::initializer_list<std::string_view> keys,
                       const WriteOptions& options = {}) {
    return erase_multi(std::span(keys.begin(), keys.size()), options);
  }
  template <detail::RangeOfKeys R>
  UpdateId erase_multi(R&& keys, const WriteOptions& options = {}) {
    return erase_multi(detail::CollectedKeys(keys).span(), options);
  }
  template <detail::RangeOfTemporariesOrNoKeys R>
  detail::CollectTheStringsInAContainerFirst erase_multi(R&& keys,
                                                         const WriteOptions& options = {}) = delete;
  // Sets every item that `next` returns, until it returns nullopt. Writes as many updates as that
  // takes, in order, each atomic, with memory for two of them. The bytes of an item must stay valid
  // until the next call of `next`. The deadline applies to each update. Returns the id of the last.
  //
  // If an update fails, the earlier ones stay, and the message says how many items they had. An
  // exception of `next` passes through unchanged; the items since the last update are not written.
  UpdateId fill(const std::function<std::optional<Item>()>& next, const WriteOptions& options = {});
  // Sets and erases in one batch. If it has to be split, returns the id of the last update.
  UpdateId write(std::span<const Change> changes, const WriteOptions& options = {});
  UpdateId write(std::initializer_list<Change> changes, const WriteOptions& options = {}) {
    return write(std::span(changes.begin(), changes.size()), options);
  }

  // Asynchronous writes. Each copies its data and returns; a thread of this cache does the write.
  // The future has the id, or throws what the blocking form would throw. The writes enter the log
  // in the order of the calls, and many of them share an append.
  //
  // They throw invalid, limit and refused at once, and Error(limit) if too much is waiting
  // (Options::queue_bytes_max). Writes still waiting when the cache is closed or destroyed fail
  // with Error(unavailable). An append under way then has some 25 ms to finish; after that its
  // writes fail with Error(uncertain) if they may be in the log, else with Error(unavailable). In a
  // forked child, a future of the parent never becomes ready.
  [[nodiscard]] std::future<UpdateId> set_async(std::string_view key, std::string_view value,
                                                const WriteOptions& options = {});
  [[nodiscard]] std::future<UpdateId> set_multi_async(std::span<const Item> items,
                                                      const WriteOptions& options = {});
  [[nodiscard]] std::future<UpdateId> set_multi_async(std::initializer_list<Item> items,
                                                      const WriteOptions& options = {}) {
    return set_multi_async(std::span(items.begin(), items.size()), options);
  }
  template <detail::RangeOfItems R>
  [[nodiscard]] std::future<UpdateId> set_multi_async(R&& items, const WriteOptions& options = {}) {
    return set_multi_async(detail::CollectedItems(items).span(), options);
  }
  template <detail::RangeOfTemporariesOrNoItems R>
  detail::CollectTheStringsInAContainerFirst set_multi_async(
      R&& items, const WriteOptions& options = {}) = delete;
  [[nodiscard]] std::future<UpdateId> erase_async(std::string_view key,
                                                  const WriteOptions& options = {});
  [[nodiscard]] std::future<UpdateId> erase_multi_async(std::span<const std::string_view> keys,
                                                        const WriteOptions& options = {});
  [[nodiscard]] std::future<UpdateId> erase_multi_async(
      std::initializer_list<std::string_view> keys, const WriteOptions& options = {}) {
    return erase_multi_async(std::span(keys.begin(), keys.size()), options);
  }
  template <detail::RangeOfKeys R>
  [[nodiscard]] std::future<UpdateId> erase_multi_async(R&& keys,
                                                        const WriteOptions& options = {}) {
    return erase_multi_async(detail::CollectedKeys(keys).span(), options);
  }
  template <detail::RangeOfTemporariesOrNoKeys R>
  detail::CollectTheStringsInAContainerFirst erase_multi_async(
      R&& keys, const WriteOptions& options = {}) = delete;
  [[nodiscard]] std::future<UpdateId> write_async(std::span<const Change> changes,
                                                  const WriteOptions& options = {});
  [[nodiscard]] std::future<UpdateId> write_async(std::initializer_list<Change> changes,
                                                  const WriteOptions& options = {}) {
    return write_async(std::span(changes.begin(), changes.size()), options);
  }

  // Runs the function and appends what it writes through the transaction as one update. If any
  // machine has changed what the function read, runs it again instead. The function must therefore
  // be safe to repeat, and must not write to a cache in another way. Transactions are serializable.
  //
  // Returns the id of the update. If the function wrote nothing, returns the id at which it read,
  // which is this machine's and may be old. An exception of the function passes through, and
  // nothing is written. Throws Error(conflict) if the attempts or the deadline run out; otherwise
  // as set().
  UpdateId transact(const std::function<void(Transaction&)>& function,
                    const TransactOptions& options = {});
  // The same for a function that returns a value: returns it with the id. The value must not refer
  // to bytes of the transaction, as std::string_view or Item do; return std::string instead.
  //
  //   auto [id, seats] = cache.transact([](Transaction& t) { return t.add("seats", -1); });
  template <detail::ReturnsResult Function>
  auto transact(Function&& function, const TransactOptions& options = {}) {
    using Value = std::remove_cv_t<detail::ResultInTransaction<Function>>;
    std::optional<Value> value;
    const std::function<void(Transaction&)> run = [&](Transaction& transaction) {
      value.emplace(std::invoke(function, transaction));
    };
    const UpdateId id = transact(run, options);
    return TransactResult<Value>{id, std::move(*value)};
  }
  template <detail::ReturnsBytesOfTransaction Function>
  detail::ReturnAStdStringInstead transact(Function&& function,
                                           const TransactOptions& options = {}) = delete;

  // Writes if the current value of the key equals `expected` (nullopt: the key is absent). Returns
  // the id of the update, or nullopt if the value differed at some point in the log during the
  // call. Throws as set().
  [[nodiscard]] std::optional<UpdateId> set_if(std::string_view key,
                                               std::optional<std::string_view> expected,
                                               std::string_view value,
                                               const WriteOptions& options = {});
  [[nodiscard]] std::optional<UpdateId> erase_if(std::string_view key, std::string_view expected,
                                                 const WriteOptions& options = {});
  // Writes if the current version of the key's value is `expected` (0: the key is absent). Returns
  // the id of the update, which is the new version, or nullopt if the version differed at some
  // point in the log during the call. A version matches only if the key has had the same value
  // since it was read, and no update has set it. It may fail to match without that: after a
  // rewrite of history, machines that build their states again give all keys newer versions. Read
  // again then. Versions end with their history: discard them when the log is restored from a
  // backup or replaced. Throws as set().
  [[nodiscard]] std::optional<UpdateId> set_if_version(std::string_view key, UpdateId expected,
                                                       std::string_view value,
                                                       const WriteOptions& options = {});
  [[nodiscard]] std::optional<UpdateId> erase_if_version(std::string_view key, UpdateId expected,
                                                         const WriteOptions& options = {});
  // Adds `delta` to an integer stored as decimal digits; an absent key counts as 0. Returns the
  // sum. Throws Error(invalid) if the value is not an integer, Error(limit) if the sum exceeds 64
  // bits; otherwise as set().
  std::int64_t add(std::string_view key, std::int64_t delta, const WriteOptions& options = {});

  // Acquires the lease of a key for the time `ttl`: no other call returns it again before it is
  // released or has expired. Returns nullopt if another holder has it, or another call of this one.
  // lease.h says what clocks this relies on, and what the token is for. Asks the log. Throws
  // Error(invalid) if the key has a value that is not a lease, or ttl is not between 1 ms and a
  // year. After Error(uncertain) the lease may be taken until it expires. Otherwise throws as
  // set().
  [[nodiscard]] std::optional<Lease> acquire(std::string_view key, std::chrono::milliseconds ttl,
                                             const LeaseOptions& options = {});
  // Begins the ttl of the lease again. Returns false, and changes nothing, if the lease was
  // released or another holder has taken it after it had expired. Throws as set().
  [[nodiscard]] bool renew(Lease& lease, const LeaseOptions& options = {});
  // Erases the key if it still has this lease. Returns false if it does not. Throws as set().
  bool release(const Lease& lease, const LeaseOptions& options = {});

  // Applies the updates that the log has beyond the applied id. Returns the applied id. Concurrent
  // calls on this machine share one read of the log. A call within its staleness bound costs
  // nanoseconds.
  //
  // Throws Error(unavailable) if the log does not answer, or if the state was replaced by a file
  // that this process cannot open. Throws Error(corrupt) if an update is damaged or missing; the
  // state then stays at the previous id. Throws Error(limit) if an update does not fit into the
  // state, Error(invalid) if this process may not write to the state and there is something to
  // apply.
  UpdateId update(const UpdateOptions& options = {});

  // Waits until a process of this machine has applied an update beyond `after`: by update(), by a
  // write, or by a process that follows (`whycache follow`). Does not ask the log itself. Returns
  // the applied id. It is greater than `after`, unless the deadline has passed, a stop was
  // requested, or the state went back to an earlier update during the call, because the log was
  // restored or replaced.
  //
  //   for (UpdateId id = cache.applied_id();;) reload(id = cache.wait(id));
  //
  // Sleeps in the kernel and is woken by the process that applies, some tens of microseconds after
  // it has. If that process is killed between the two, the wait ends with the next update, or half
  // a minute later. While there is no state (OpenMode::now), looks for one ten times a second. Any
  // thread may call it, and a cache that was attached to a state can, too. Throws
  // Error(unavailable) if the cache is closed meanwhile; otherwise as the reads do.
  UpdateId wait(UpdateId after, const WaitOptions& options = {}) const;
  // Returns a descriptor for poll(2), epoll and the event loops that are made of them. It becomes
  // readable when an update was applied since the last read of it, as by wait(). Read 8 bytes from
  // it first, then the state; the value of the bytes has no meaning, and a read of an unreadable
  // one fails with EAGAIN. It may become readable without an update. All calls return the same
  // descriptor, an eventfd that belongs to the cache: never close it. It is closed with the cache,
  // before which it becomes readable once more. A forked child calls this again and gets another.
  //
  // The first call starts a thread, which sleeps until there is an update. Throws Error(limit) if
  // there is no descriptor or thread to be had, Error(invalid) in a callback of this cache;
  // otherwise as the reads do.
  [[nodiscard]] int notify_fd() const;

  // Replaces the updates up to an id by the items as of it, the new base. Returns the base. Takes
  // time in proportion to the dataset; reads and writes continue meanwhile.
  //
  // Throws Error(unavailable) if the log does not answer, or was restored or failed over meanwhile;
  // the history is then unchanged. Throws Error(uncertain) if history may have been rewritten, or
  // if the keys that `keep` refuses are erased and the rest was not done. Otherwise as set().
  UpdateId rewrite_history(const RewriteOptions& options = {});
  // Empties the dataset on every machine: appends one update that erases everything, then rewrites
  // history. Keeps the guards of the log. Before it erases anything, asks the log whether this
  // process may rewrite it (Log::check_may_rewrite). Throws Error(uncertain) if the update was
  // appended and the rewrite was not, or may not have been, done. Otherwise as set().
  UpdateId delete_all_history(const WriteOptions& options = {});

  // The guards of the log are stored in it, as the item with the key log_guards_key, so that
  // they apply from the next update on, on every machine. A write that violates one throws
  // Error(refused): it is checked against the state that its update follows, so no write can slip
  // past a guard that another machine has set. A call that needs several updates is checked as a
  // whole before the first one; guards set while it runs stop it midway, with Error(uncertain).
  // An asynchronous write may also be refused by its future.
  //
  // Other writes may set the key to the text of valid guards, as a copy of another log does. No
  // other write can erase it: by key, that is refused; by range or as a whole, it stays.

  // Returns the guards as of the applied id. Throws Error(refused) if a newer version of the
  // library has set guards that this one does not know. It then refuses to erase anything.
  [[nodiscard]] LogGuards log_guards() const;
  // Replaces the guards; the default ones mean none. Returns the id of the update, or of the state
  // that had them already. Throws Error(invalid) if the share is not within 0 to 1, otherwise as
  // set().
  UpdateId set_log_guards(const LogGuards& guards, const WriteOptions& options = {});

  // Returns the id of the last update in the state. Costs some nanoseconds: no lock, no system
  // call. While it is the same, so are all values, unless the log was restored from a backup
  // meanwhile: then the digest differs. To keep what you have parsed, compare it
  // (docs/guide/views.md).
  [[nodiscard]] UpdateId applied_id() const;
  // Returns how long ago a process of this machine last asked the log (CLOCK_BOOTTIME), or
  // nanoseconds::max() if none has since the machine started.
  [[nodiscard]] std::chrono::nanoseconds staleness() const;
  // Returns the digest of the items. Two machines at the same update id have equal digests.
  [[nodiscard]] Digest digest() const;
  // Returns false once the state was deleted through this object, or the object was moved from.
  [[nodiscard]] bool valid() const noexcept;
  // Returns whether this machine has a state that can be read. False only after OpenMode::now, or
  // while another process has deleted the state.
  [[nodiscard]] bool ready() const;
  // Returns the absolute path of the state.
  [[nodiscard]] std::string state_path() const;
  // Returns what this object counted; never what other processes did.
  [[nodiscard]] Counters counters() const;
  // Returns the state of health, for checks and metrics. Costs microseconds and no round trip.
  // Throws as the reads do.
  [[nodiscard]] Stats stats() const;
  // Returns what the state file holds in detail. Visits every segment: some milliseconds per GiB.
  [[nodiscard]] StateInspection inspect() const;

  // Writes the state to disk and closes this object. The file can then be copied to another machine
  // and opened there. Other processes can continue to use it. Asynchronous writes end as said
  // above, so closing waits for no log that does not answer. Calls of other threads finish. Those
  // that an unresponsive log keeps waiting end at their deadline, or earlier if they share an
  // append with an asynchronous write, and are not repeated. Views stay valid. A second call does
  // nothing. The next call of any other method opens the state again, like the constructor. Throws
  // Error if the disk fails; the object is closed anyway.
  void close_shared_state();
  // Removes the state of this machine and closes this object for good. Other processes of the
  // machine notice, and build a new state at their next update().
  void delete_shared_state();

 private:
  std::optional<UpdateId> write_if_version(const Change& change, UpdateId expected,
                                           const WriteOptions& options);

  friend class CacheInternal;  // src/client/cache_internal.h
  class Impl;
  explicit Cache(std::unique_ptr<Impl> impl);
  // Throws Error(invalid) if the object was moved from.
  Impl& impl() const;
  std::unique_ptr<Impl> impl_;
};

}  // namespace whycache
