// Transactions: optimistic, validated by value, appended as the very next update after the state at
// which they were validated.
//
//   pin the state at r; run the function: it reads at r; record what it reads and writes
//   take StateLock::append, follow the log if this machine has not read it just now
//     does everything that was read have the same value at the applied id n?
//                                   no: follow, run the function again
//     log: insert n+1 if absent     taken: follow, compare again with n+1
//
// The log accepts update n+1 only if no other writer has that id. A transaction thus directly
// follows the state at which it was validated. All that commit are serializable in the order of
// their ids, across machines.
//
// Validation compares values, not whether a key was written. A transaction passes if a key was set
// to the value that it had: it would have done the same again. (Kung, Robinson: On Optimistic
// Methods for Concurrency Control, 1981; backward validation.)
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include <whycache/cache.h>
#include <whycache/transaction.h>

#include "client/appender.h"
#include "client/session.h"

namespace whycache {

// The reads and writes of one transaction.
class Transaction::Record {
 public:
  explicit Record(View view) : view_(std::move(view)) {}

  const View& view() const { return view_; }
  std::optional<std::string_view> get(std::string_view key);
  std::vector<Item> items(const KeyRange& range);
  void write(const Change& change);
  void erase(const KeyRange& range);

  // Whether every key and range that was read has the same contents at `now`.
  bool reads_are_valid_at(const View& now) const;
  // Returns the writes, one change for each key. The views in it point into this record.
  std::vector<Change> changes() const;

 private:
  const View view_;
  std::set<std::string, std::less<>> keys_read_;
  std::vector<KeyRange> ranges_read_;
  std::map<std::string, std::optional<std::string>, std::less<>> written_;  // nullopt: erased
};

// Runs a transaction as Cache::transact() says.
UpdateId transact(Session& session, Appender& appender,
                  const std::function<void(Transaction&)>& function,
                  const TransactOptions& options);

// Throws Error(invalid) if no key can be like this one. Reads need not call it: such a key is
// absent.
void check_key(std::string_view key);

// Returns the sum of an integer in decimal digits (nullopt: 0) and `delta`. Throws Error(invalid)
// or Error(limit), as Cache::add() says.
std::int64_t sum_of(std::optional<std::string_view> number, std::int64_t delta);

// Reads the state and writes in one atomic step. `decide(view)` returns the changes to make, given
// the newest state; they may point into the view. If another writer was first, it is called again.
// Returns the id of the update. Returns nullopt if `decide` returned no changes, given the state as
// of some point in the log during the call.
using DecideOnView = std::function<std::vector<Change>(const View& view)>;
std::optional<UpdateId> write_decided(Session& session, Appender& appender,
                                      const DecideOnView& decide, const WriteOptions& options);

// The same, without a check of the guards.
std::optional<UpdateId> write_unguarded(Session& session, Appender& appender,
                                        const DecideOnView& decide, const WriteOptions& options);

// Erases all keys of a range, as Cache::erase() says.
UpdateId erase_range(Session& session, Appender& appender, const KeyRange& range,
                     const WriteOptions& options);

// Reads one key and writes it in one atomic step. `decide(value)` returns the change to make, given
// the current value (nullopt: the key is absent), or nullopt to write nothing. If another writer
// was first, it is called again. Returns the id of the update. Returns nullopt if `decide` wrote
// nothing, given the value at some point in the log during the call.
using Decide = std::function<std::optional<Change>(std::optional<std::string_view> value)>;
std::optional<UpdateId> read_modify_write(Session& session, Appender& appender,
                                          std::string_view key, const Decide& decide,
                                          const WriteOptions& options);

}  // namespace whycache
