// A transaction: reads as of one update id, and writes that enter the log only if nothing it read
// has changed since. Cache::transact() passes it to the function that it runs.
#pragma once

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include <whycache/types.h>
#include <whycache/view.h>

namespace whycache {

// Use it only on the thread that runs the function, and only while the function runs.
class WHYCACHE_API Transaction {
 public:
  // The update id as of which it reads.
  UpdateId id() const noexcept;

  // Reads as of id(), with this transaction's own writes on top. get() returns nullopt if the key
  // is absent. Values are not copied: they are valid while the function runs, or until this
  // transaction writes the key again.
  //
  // The transaction records every key and range it reads, absent keys too, and compares them when
  // it commits. A range costs time in proportion to its items, at the read and again at the commit.
  // Throw Error(corrupt) if the state is damaged.
  std::optional<std::string_view> get(std::string_view key);
  bool contains(std::string_view key) { return get(key).has_value(); }
  std::vector<Item> items(const KeyRange& range);

  // Buffer the write until the function returns. All writes then become one update. Throw
  // Error(invalid) if the key is empty or too long, Error(limit) if the value is too large.
  void set(std::string_view key, std::string_view value);
  void erase(std::string_view key);

  class Record;  // src/client/transact.h
  explicit Transaction(Record& record) : record_(&record) {}
  Transaction(const Transaction&) = delete;
  Transaction& operator=(const Transaction&) = delete;

 private:
  Record* record_;
};

}  // namespace whycache
