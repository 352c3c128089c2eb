// Transactions: optimistic, validated by value, appended as the very next update after the one they
// were validated at.
//
//   pin the state at r; run the function: it reads at r, what it reads and writes is recorded
//   take StateLock::append, see that the state is as new as the log was a moment ago
//     does all that was read say the same at the applied id n?   no: follow, run the function again
//     log: insert n+1 if absent                                  taken: follow, compare again with n+1
//
// Since the log takes update n+1 only if nobody else has it, the transaction stands in the log
// right behind the state it was validated at: all that committed are serializable, in the order of
// their ids, across machines. Comparing what was read, not whether it was written, lets a
// transaction pass whose keys were set to what they had been: it would have done the same again.
// (Kung, Robinson: On Optimistic Methods for Concurrency Control, 1981; backward validation.)
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

// What a transaction has read and written.
class Transaction::Record {
 public:
  explicit Record(View view) : view_(std::move(view)) {}

  const View& view() const { return view_; }
  std::optional<std::string_view> get(std::string_view key);
  std::vector<Item> items(const KeyRange& range);
  void write(const Change& change);

  // Whether all that was read says the same at `now`.
  bool reads_are_valid_at(const View& now) const;
  // What was written, each key once; the views point into this.
  std::vector<Change> changes() const;

 private:
  const View view_;
  std::set<std::string, std::less<>> keys_read_;
  std::vector<KeyRange> ranges_read_;
  std::map<std::string, std::optional<std::string>, std::less<>> written_;  // nullopt: erased
};

UpdateId transact(Session& session, Appender& appender,
                  const std::function<void(Transaction&)>& function,
                  const TransactOptions& options);

// One key, looked at and written in one. `decide(value)` says what to do given the value it has;
// nullopt: nothing. It is called again when somebody else was first. nullopt: it decided to do
// nothing, given what the log held at some moment during the call.
using Decide = std::function<std::optional<Change>(std::optional<std::string_view> value)>;
std::optional<UpdateId> read_modify_write(Session& session, Appender& appender,
                                          std::string_view key, const Decide& decide,
                                          const WriteOptions& options);

}  // namespace whycache
