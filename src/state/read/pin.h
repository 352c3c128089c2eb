// What a view and everything made from it share: a reader slot that says which update id is held, and the mapping it is
// held on.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "base/fork_handlers.h"
#include "state/file/layout.h"
#include "state/file/lock_file.h"
#include "state/file/mapping.h"
#include "state/index/lookup.h"

namespace whycache::detail {

class Pin {
 public:
  // Pins the newest update of `mapping`. Throws Error limit when there is no slot.
  Pin(std::shared_ptr<const Mapping> mapping, std::shared_ptr<LockFile> readers);
  // Of a file that only its builder changes, which does not while the pin lives.
  explicit Pin(std::shared_ptr<const Mapping> mapping);
  ~Pin();
  Pin(const Pin&) = delete;
  Pin& operator=(const Pin&) = delete;

  const Mapping& mapping() const { return *mapping_; }
  UpdateId id() const { return block_.id; }
  const PublishedBlock& block() const { return block_; }

  // Throw Error corrupt if the file is damaged, invalid in a forked child.
  // The value; without data if there is none.
  std::string_view find(std::string_view key) const { return find_(*this, key); }
  LookupResult get(std::string_view key) const;
  // The entries of many keys; `found(i, item)` for each that is there, in order. Several look-ups are under way at
  // once.
  template <typename OnFound>
  void get_many(std::span<const std::string_view> keys, const OnFound& on_found) const;
  void check_usable() const;

 private:
  static constexpr std::size_t together = 32;
  // find(), the quick way; on every processor, or on those that have AVX2.
  using Find = std::string_view(const Pin& pin, std::string_view key);
  static Find find_anywhere;
  static Find find_by_avx2;
  static Find find_by_any_key;
  static Find find_thoroughly;
  static Find* quickest_find();
  template <bool two_words>
  std::string_view find_quickly(std::string_view key) const;
  [[gnu::noinline]] LookupResult look_up_slowly(std::string_view key, std::uint64_t hash) const;
  void pin_newest();

  std::shared_ptr<const Mapping> mapping_;
  std::shared_ptr<LockFile> readers_;
  ReaderSlot* slot_ = nullptr;
  Find* const find_ = quickest_find();
  std::uint64_t fork_count_;
  PublishedBlock block_{};
  std::uint64_t greatest_ = 0;  // EntryWord::greatest() of its id
};

// The block of the newest update, of one moment.
PublishedBlock read_published(const Header& header);

template <typename OnFound>
void Pin::get_many(std::span<const std::string_view> keys, const OnFound& on_found) const {
  check_usable();
  const Mapping& mapping = *mapping_;
  const std::uint64_t directory = mapping.header().directory.load(std::memory_order_acquire);
  std::uint64_t hashes[together];
  const IndexWord* parts[together];
  for (std::size_t first = 0; first < keys.size(); first += together) {
    const std::size_t count = std::min(together, keys.size() - first);
    const Bytes bytes(mapping);
    for (std::size_t i = 0; i < count; ++i) {
      hashes[i] = mapping.hash_of(keys[first + i]);
      parts[i] = find_part(bytes, directory, hashes[i]);
      if (parts[i] != nullptr) __builtin_prefetch(home_of(parts[i], hashes[i]));
    }
    for (std::size_t i = 0; i < count; ++i) {
      if (parts[i] != nullptr) prefetch_entry(bytes, parts[i], hashes[i]);
    }
    for (std::size_t i = 0; i < count; ++i) {
      LookupResult result{Found::impossible, {}};
      if (parts[i] != nullptr) result = look_up(bytes, parts[i], hashes[i], keys[first + i], block_.id);
      if (result.found == Found::impossible) result = look_up_slowly(keys[first + i], hashes[i]);
      if (result.found == Found::yes) on_found(first + i, result);
    }
  }
}

}  // namespace whycache::detail
