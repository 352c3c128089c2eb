// A transaction: reads that see one update id, and writes that get into the log only if nothing it
// has read has changed by then. It is handed to the function given to Cache::transact().
#pragma once

#include <memory>
#include <optional>
#include <string_view>
#include <vector>

#include <whycache/types.h>
#include <whycache/view.h>

namespace whycache {

// Used by the one thread that runs the function, and only while that runs.
class WHYCACHE_API Transaction {
 public:
  // The update id all of it sees.
  UpdateId id() const noexcept;

  // What is there at that id, with what this transaction has written on top. No copy: valid while
  // the function runs, or until this transaction writes the key again. What was read is remembered,
  // absent keys too; a range costs as much as it holds, once now and once when the transaction is
  // committed. Throw Error corrupt.
  std::optional<std::string_view> get(std::string_view key);
  bool contains(std::string_view key) { return get(key).has_value(); }
  std::vector<Item> items(const KeyRange& range);

  // Kept until the function has returned; then all of it becomes one update. Throw Error invalid
  // for a key, limit for a value that no update can hold.
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
