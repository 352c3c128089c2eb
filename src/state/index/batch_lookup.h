// The look-ups of several keys, step by step for all of them, so that their cache misses overlap.
// For pinned reads, and for a process that keeps others from writing. The writer keeps whatever was
// in the index at or after the pinned update, so what a step found there is still in place at the
// next step.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "state/file/layout.h"
#include "state/file/mapping.h"
#include "state/index/lookup.h"

namespace whycache {

// One key's look-up. The steps are called in the order find_bucket(), find_entry(), look_up().
// Whatever they do not expect (a displaced word, several versions, a file that grew) ends in the
// result `undecided`: take the slow path.
class BatchedLookup {
 public:
  // Finds the key's home bucket, and prefetches it.
  [[gnu::always_inline]] void find_bucket(const DirectoryCache& cache, std::string_view key) {
    place_ = nullptr;
    is_absent_ = false;
    if (key.size() > EntryWord::narrow_key_bytes_max) [[unlikely]]
      return;
    const std::uint64_t hash = fits_two_words(key.size())
                                   ? cache.key_hash.hash(TwoWords::load(key.data(), key.size()))
                                   : cache.key_hash(key);
    const std::uint64_t page = index_page_offset(cache.slot(hash).load(std::memory_order_acquire));
    if (page > cache.page_offset_max) [[unlikely]]
      return;
    tag_ = tag_of(hash);
    place_ = cache.base + page + home_offset(hash);
    __builtin_prefetch(place_);
  }

  // Finds the only entry in the bucket that can be the key's, and prefetches it.
  [[gnu::always_inline]] void find_entry(const DirectoryCache& cache) {
    if (place_ == nullptr) [[unlikely]]
      return;
    const Bucket bucket(reinterpret_cast<const IndexWord*>(place_));
    place_ = nullptr;
    const std::uint32_t matches = bucket.tag_matches(tag_);
    if (matches == 0) [[unlikely]] {
      is_absent_ = bucket.has_empty();
      return;
    }
    const std::uint64_t offset = word_offset(bucket.first_match(matches));
    if (offset > cache.entry_offset_max || offset < header_page_bytes) [[unlikely]]
      return;
    place_ = cache.base + offset;
    __builtin_prefetch(place_);
    prefetch_entry_tail(reinterpret_cast<const char*>(place_));
  }

  // `max_entry_word` is EntryWord::max_at() of the pinned update.
  [[gnu::always_inline]] FastResult look_up(const DirectoryCache& cache, std::string_view key,
                                            std::uint64_t max_entry_word,
                                            LookupResult& result) const {
    if (place_ == nullptr) [[unlikely]]
      return is_absent_ ? FastResult::not_found : FastResult::undecided;
    const EntryWord word(
        __atomic_load_n(reinterpret_cast<const std::uint64_t*>(place_), __ATOMIC_RELAXED));
    const char* const key_in_entry = reinterpret_cast<const char*>(place_) + sizeof(EntryWord);
    if (!word.is_narrow_with(key.size()) || word.word() > max_entry_word ||
        !equal_keys(key_in_entry, key.data(), key.size())) [[unlikely]]
      return FastResult::undecided;
    result = {
        LookupStatus::found, {key_in_entry + key.size(), word.narrow_value_bytes()}, key_in_entry};
    return is_value_mapped(cache, result.value) ? FastResult::found : FastResult::undecided;
  }

 private:
  const std::byte* place_ = nullptr;  // first the bucket, then the entry; null: none
  std::uint64_t tag_ = 0;
  bool is_absent_ = false;
};

}  // namespace whycache
