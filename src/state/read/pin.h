// A pinned update, and the mapping that the view reads. A view and all iterators made from it share
// one Pin.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "base/byte_arena.h"
#include "base/fork_handlers.h"
#include "state/file/layout.h"
#include "state/file/mapping.h"
#include "state/index/batch_lookup.h"
#include "state/index/lookup.h"

namespace whycache::detail {

class Pin {
 public:
  enum class Writers : std::uint8_t {
    any,  // the update is pinned
    none  // no process changes the file while the Pin lives
  };
  // Pins the newest update of `mapping`. Throws what Pins::add() throws.
  explicit Pin(std::shared_ptr<const Mapping> mapping, Writers writers = Writers::any);
  ~Pin();
  Pin(const Pin&) = delete;
  Pin& operator=(const Pin&) = delete;

  const Mapping& mapping() const { return *mapping_; }
  UpdateId id() const { return block_.id; }
  const PublishedBlock& block() const { return block_; }

  // find(), version_of() and get_many() throw Error(corrupt) if the file is damaged, Error(invalid)
  // in a forked child. find() returns the value, or a view without data if the key is absent.
  std::string_view find(std::string_view key) const { return find_(*this, key); }
  // The same, and sets `version` to the update id that the entry of the value has.
  std::string_view find(std::string_view key, UpdateId& version) const;
  // Returns the update id that the entry of the key's value has, or nullopt if the key is absent.
  std::optional<UpdateId> version_of(std::string_view key) const;
  // Calls `on_found(i, item)` for each key that is present, in order. Overlaps the cache misses of
  // several look-ups.
  template <typename OnFound>
  void get_many(std::span<const std::string_view> keys, const OnFound& on_found) const;
  void check_not_forked() const;
  // Memory for the keys that cursors return. They live as long as the pin.
  ByteArena& key_arena() const { return key_arena_; }

 private:
  static constexpr std::size_t lookup_batch_size = 32;
  // find() with the bucket search that this processor is best at. Keys of any size, but those of 8
  // to 16 bytes (`two_words`) are expected.
  using FindFunction = std::string_view(const Pin& pin, std::string_view key);
  template <bool two_words>
  static FindFunction find_portable;
  static FindFunction find_avx2;
  static FindFunction find_any_size_avx2;
  static FindFunction* select_find();
  struct ViewValue;
  // Reads load it first. In a forked child, it matches no directory: slow_find() decides.
  [[gnu::always_inline]] const DirectoryCache& directory_cache() const {
    return *node_.directory_cache.load(std::memory_order_acquire);
  }
  void renew_directory_cache() const;
  // Finds the entry wherever it is and however the file has grown, and the key within it.
  [[gnu::noinline]] std::string_view slow_find(std::string_view key,
                                               const char** key_in_entry = nullptr) const;

  std::shared_ptr<const Mapping> mapping_;
  Pins* pins_ = nullptr;  // of the mapping; null if nothing is pinned
  // Its directory cache is renewed by reads that needed another one.
  mutable PinNode node_;
  FindFunction* const find_ = select_find();
  std::uint64_t fork_count_;
  PublishedBlock block_{};
  std::uint64_t max_entry_word_ = 0;  // EntryWord::max_at() of its id
  mutable ByteArena key_arena_;
};

template <typename OnFound>
void Pin::get_many(std::span<const std::string_view> keys, const OnFound& on_found) const {
  check_not_forked();
  const DirectoryCache* cache =
      mapping_->directory_cache(mapping_->header().index_directory.load(std::memory_order_acquire));
  if (cache == nullptr) cache = &mapping_->empty_directory_cache();  // then slow_find() decides
  BatchedLookup lookups[lookup_batch_size];
  for (std::size_t first = 0; first < keys.size(); first += lookup_batch_size) {
    const std::size_t end = std::min(first + lookup_batch_size, keys.size());
    for (std::size_t i = first; i < end; ++i) lookups[i - first].find_bucket(*cache, keys[i]);
    for (std::size_t i = first; i < end; ++i) lookups[i - first].find_entry(*cache);
    for (std::size_t i = first; i < end; ++i) {
      LookupResult result;
      switch (lookups[i - first].look_up(*cache, keys[i], max_entry_word_, result)) {
        case FastResult::found: on_found(i, result); break;
        case FastResult::not_found: break;
        case FastResult::undecided:
          result.value = slow_find(keys[i], &result.key);
          result.status = LookupStatus::found;
          if (result.value.data() != nullptr) on_found(i, result);
          break;
      }
    }
  }
}

}  // namespace whycache::detail
