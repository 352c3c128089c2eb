// A memo: decoded values of a cache, kept until they change.
//
//   whycache::Memo<Plan> plans(cache, [](std::string_view bytes) { return parse_plan(bytes); });
//   std::shared_ptr<const Plan> plan = plans.get("plan");   // null if the key is absent
//
// A hit compares the version of the value, which the state knows, and reads no value.
#pragma once

#include <concepts>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <string_view>
#include <type_traits>
#include <utility>

#include <whycache/cache.h>
#include <whycache/types.h>

namespace whycache {

struct MemoOptions {
  // The most objects that are kept. Beyond it, one that was not used lately makes room for another.
  std::size_t entries_max = 10'000;
  // Whether get() returns the object of an earlier value of the key, if there is one, when the
  // present value cannot be decoded. MemoCounters::decode_failures counts these values.
  bool keep_last_good = false;
};

struct MemoCounters {
  std::uint64_t hits = 0;             // calls that decoded nothing
  std::uint64_t decodes = 0;          // calls of the function, those that failed included
  std::uint64_t decode_failures = 0;  // calls of the function that threw
  std::uint64_t entries = 0;          // objects that are kept now
};

namespace detail {

// All memos share this, whatever the type of their objects.
class WHYCACHE_API MemoTable {
 public:
  using Decode = std::function<std::shared_ptr<const void>(std::string_view value)>;
  MemoTable(const Cache& cache, Decode decode, const MemoOptions& options);
  ~MemoTable();
  MemoTable(const MemoTable&) = delete;
  MemoTable& operator=(const MemoTable&) = delete;

  std::shared_ptr<const void> get(std::string_view key);
  void clear();
  MemoCounters counters() const;

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace detail

// Keeps decoded objects of a cache, by key.
//
// Threads: any number of threads may call at once. Two that need the same new value at the same
// time may both decode it. The function therefore runs on any thread, and must be safe to run on
// several at once. It may read the cache, and must not call this memo. Processes: the objects are
// private to the process. A forked child starts without any.
//
// The cache must stay where it is, and open, as long as the memo exists.
template <typename T>
class Memo {
 public:
  // `decode` makes an object of the bytes of a value, which are valid while it runs. Throws
  // Error(invalid) if entries_max is 0.
  template <typename Function>
  requires std::convertible_to<std::invoke_result_t<const Function&, std::string_view>, T> Memo(
      const Cache& cache, Function decode, const MemoOptions& options = {})
      : table_(
            cache,
            [decode = std::move(decode)](std::string_view value) -> std::shared_ptr<const void> {
              return std::make_shared<const T>(decode(value));
            },
            options) {}

  // Returns the object of the key's present value, or null if the key is absent. Decodes the value
  // only if the key was set since the last call, if the object had to make room, or if this
  // machine's state was built again, as after the log was restored or replaced. A hit makes no
  // system call unless it meets another thread. It takes about as long as Cache::get() into a new
  // string. It takes two to four times as long if any key was set since this key's last hit, and
  // somewhat longer if the objects do not fit the processor's caches. Threads that use the same
  // object at once slow each other down: they count references in the same place.
  //
  // Passes on what `decode` throws, unless MemoOptions::keep_last_good applies; the next call then
  // decodes again. Throws as Cache::get().
  std::shared_ptr<const T> get(std::string_view key) {
    return std::static_pointer_cast<const T>(table_.get(key));
  }

  // Drops all objects. Callers keep those that they have.
  void clear() { table_.clear(); }
  MemoCounters counters() const { return table_.counters(); }

 private:
  detail::MemoTable table_;
};

}  // namespace whycache
