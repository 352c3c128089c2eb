// Finds a key's value in the mapped file, as of an update id. A hit touches two cache lines that
// are not warm already: the bucket and the entry.
//
// An unpinned reader may be looking at memory that the writer is reusing. It bounds-checks every
// offset and length before use, and discards the result if the reclaim generation has changed
// (OptimisticRead below, read/point_read.h).
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include "state/index/cpu.h"

#if defined(__SSE2__) && !defined(WHYCACHE_THREAD_SANITIZER)
#define WHYCACHE_SSE2 1
#include <emmintrin.h>
#else
#define WHYCACHE_SSE2 0
#endif

#include "state/file/layout.h"
#include "state/file/mapping.h"

namespace whycache {

enum class LookupStatus : std::uint8_t {
  not_found,
  found,
  // Impossible bytes: memory reused meanwhile, a file that grew, or a damaged file.
  torn,
  // All buckets of the key are full: it may be in the overflow tree (state/overflow.h).
  overflow
};

struct LookupResult {
  LookupStatus status = LookupStatus::not_found;
  std::string_view value;
  // The key's bytes in the entry.
  const char* key = nullptr;
};

// An entry's sizes, loaded once: reused memory may change between two loads, and the values that
// were checked must be those that are used.
struct Entry {
  EntryWord word;
  std::uint64_t key_bytes = 0;
  std::uint64_t value_bytes = 0;
  const char* data = nullptr;  // key, then value
  // Null: there is no previous version.
  const std::uint64_t* previous_word = nullptr;

  UpdateId id() const { return word.id(); }
  bool erased() const { return word.erased(); }
  std::string_view key() const { return {data, key_bytes}; }
  std::string_view value() const { return {data + key_bytes, value_bytes}; }
  // Returns the offset of the previous version, or 0 if there is none.
  std::uint64_t previous_offset() const {
    if (previous_word == nullptr) return 0;
    const std::uint64_t loaded = __atomic_load_n(previous_word, __ATOMIC_RELAXED);
    return word.is_wide() ? WideWord(loaded).previous_offset() : loaded;
  }
  // Returns the size of the whole entry.
  std::uint64_t bytes() const {
    return entry_bytes(key_bytes, value_bytes, previous_word != nullptr);
  }
};

// Returns the first word of the entry whose key begins at `key_in_entry`.
inline EntryWord entry_word_before(const char* key_in_entry, std::string_view key,
                                   std::string_view value) {
  const std::size_t header_bytes =
      sizeof(EntryWord) + (is_wide_entry(key.size(), value.size()) ? sizeof(WideWord) : 0);
  const auto* const word = reinterpret_cast<const std::uint64_t*>(key_in_entry - header_bytes);
  return EntryWord(__atomic_load_n(word, __ATOMIC_RELAXED));
}

// The file's bytes, with one bound for the whole of one read.
class MappedBytes {
 public:
  explicit MappedBytes(const Mapping& mapping)
      : mapping_(mapping), base_(mapping.base()), usable_bytes_(mapping.usable_bytes()) {}
  // Finds index pages by `only` alone, and none if it is not the present one: to create another
  // takes memory.
  MappedBytes(const Mapping& mapping, const DirectoryCache& only) : MappedBytes(mapping) {
    only_directory_cache_ = &only;
  }

  bool contains(std::uint64_t offset, std::uint64_t bytes) const {
    return offset <= usable_bytes_ && bytes <= usable_bytes_ - offset;
  }
  template <typename T>
  const T* at(std::uint64_t offset) const {
    return reinterpret_cast<const T*>(base_ + offset);
  }
  // Returns nullptr if there is none.
  const DirectoryCache* directory_cache(std::uint64_t directory) const {
    if (only_directory_cache_ == nullptr) return mapping_.directory_cache(directory);
    return only_directory_cache_->matches(directory, usable_bytes_) ? only_directory_cache_
                                                                    : nullptr;
  }
  bool contains_index_page(std::uint64_t offset) const {
    return offset <= usable_bytes_ - segment_bytes;
  }  // a file has at least one segment
  // Returns false if there can be no entry at this offset. Otherwise all of it lies within the
  // mapping.
  [[gnu::always_inline]] bool load_entry(std::uint64_t offset, Entry& entry) const {
    if (offset - header_page_bytes > usable_bytes_ - header_page_bytes - 2 * sizeof(std::uint64_t))
      return false;
    const auto* const words = at<std::uint64_t>(offset);
    const EntryWord word(__atomic_load_n(words, __ATOMIC_RELAXED));
    entry.word = word;
    if (word.is_wide()) [[unlikely]] {
      entry.key_bytes = word.wide_key_bytes();
      entry.value_bytes = WideWord(__atomic_load_n(words + 1, __ATOMIC_RELAXED)).value_bytes();
      entry.data = reinterpret_cast<const char*>(words + 2);
      entry.previous_word = words + 1;
    } else {
      entry.key_bytes = word.narrow_key_bytes();
      entry.value_bytes = word.narrow_value_bytes();
      entry.data = reinterpret_cast<const char*>(words + 1);
      entry.previous_word = word.narrow_has_previous()
                                ? words + 1 + (entry.key_bytes + entry.value_bytes + 7) / 8
                                : nullptr;
    }
    return entry.bytes() <= usable_bytes_ - offset;
  }

 private:
  const Mapping& mapping_;
  const std::byte* base_;
  std::uint64_t usable_bytes_;
  const DirectoryCache* only_directory_cache_ = nullptr;
};

// Returns the index page of a hash, or null if the directory cannot be right. This is the first of
// three steps of a look-up: a caller with several keys does each step for all of them, so that
// their cache misses overlap.
[[gnu::always_inline]] inline const IndexWord* find_index_page(const MappedBytes& bytes,
                                                               std::uint64_t directory,
                                                               std::uint64_t hash) {
  const DirectoryCache* const cache = bytes.directory_cache(directory);
  if (cache == nullptr) [[unlikely]]
    return nullptr;
  const std::uint64_t page = index_page_offset(cache->slot(hash).load(std::memory_order_acquire));
  if (!bytes.contains_index_page(page)) [[unlikely]]
    return nullptr;
  return bytes.at<IndexWord>(page);
}

inline const IndexWord* home_bucket_in(const IndexWord* page, std::uint64_t hash) {
  return reinterpret_cast<const IndexWord*>(reinterpret_cast<const char*>(page) +
                                            home_offset(hash));
}

// Follows the chain from `entry` of `key` back to the version that was current at `id`. Returns
// not_found if there was none.
inline LookupStatus find_version_at(const MappedBytes& bytes, Entry& entry, std::string_view key,
                                    UpdateId id) {
  while (entry.id() > id) {
    const UpdateId newer = entry.id();
    const std::uint64_t previous = entry.previous_offset();
    if (previous == 0) return LookupStatus::not_found;
    if (previous % 8 != 0 || !bytes.load_entry(previous, entry) || entry.id() >= newer ||
        entry.key() != key)
      return LookupStatus::torn;
  }
  return entry.erased() ? LookupStatus::not_found : LookupStatus::found;
}

// Returns whether two keys of the same size are equal. Most are short; then a call would cost more
// than this.
[[gnu::always_inline]] inline bool equal_keys(const char* a, const char* b, std::size_t bytes) {
  const auto differ = [&]<typename Word>(Word, std::size_t at) {
    Word x;
    Word y;
    std::memcpy(&x, a + at, sizeof x);
    std::memcpy(&y, b + at, sizeof y);
    return static_cast<Word>(x ^ y);
  };
  constexpr std::uint64_t eight = 0;
  constexpr std::uint32_t four = 0;
  if (bytes - 8 <= 8) return (differ(eight, 0) | differ(eight, bytes - 8)) == 0;
  if (bytes - 16 <= 16) {
    return (differ(eight, 0) | differ(eight, 8) | differ(eight, bytes - 16) |
            differ(eight, bytes - 8)) == 0;
  }
  if (bytes - 4 <= 4) return (differ(four, 0) | differ(four, bytes - 4)) == 0;
  return std::memcmp(a, b, bytes) == 0;
}

// Returns the same value, but the compiler no longer knows anything about it.
template <typename Value>
[[gnu::always_inline]] inline Value hide_from_optimizer(Value value) {
  asm("" : "+r"(value));
  return value;
}

// A bucket, whose words are compared all at once. Which of them holds a key is random: a branch per
// word would be mispredicted in every look-up, and would stall the look-ups behind it. The
// comparison only says which word to load with acquire.
class Bucket {
 public:
  explicit Bucket(const IndexWord* words) : words_(words) {}

  // Returns a mask of the words with this tag and displacement, for first_match() and
  // without_first_match(); 0: none.
  [[gnu::always_inline]] std::uint32_t matches(std::uint64_t tag_and_displacement) const {
    return matches_above<word_offset_bits>(tag_and_displacement);
  }
  // Returns a mask of the words with this tag.
  [[gnu::always_inline]] std::uint32_t tag_matches(std::uint64_t tag) const {
    return matches_above<tag_shift>(tag);
  }
  // Words of a bucket are filled in order and never become empty again. If matches() returned none
  // and this returns true, no later bucket holds the key either: it was absent when the earlier of
  // the two loads took place.
  [[gnu::always_inline]] bool has_empty() const {
    return words_[bucket_words - 1].load(std::memory_order_acquire) == empty_word;
  }

  std::uint64_t first_match(std::uint32_t matches) const {
    return words_[first_match_number(matches)].load(std::memory_order_acquire);
  }
  static unsigned first_match_number(std::uint32_t matches) {
    return static_cast<unsigned>(std::countr_zero(matches)) / mask_bits_per_word;
  }
  static std::uint32_t without_first_match(std::uint32_t matches) {
    matches &= matches - 1;
    return mask_bits_per_word == 1 ? matches : matches & (matches - 1);
  }

 private:
  // Returns a mask of the words whose bits from `shift` on equal `bits`.
  template <unsigned shift>
  [[gnu::always_inline]] std::uint32_t matches_above(std::uint64_t bits) const {
#if WHYCACHE_SSE2
    const __m128i wanted = _mm_set1_epi32(static_cast<int>(bits));
    return match_mask(_mm_cmpeq_epi32(_mm_srli_epi32(upper_halves_of_four(0), shift - 32), wanted),
                      _mm_cmpeq_epi32(_mm_srli_epi32(upper_halves_of_four(4), shift - 32), wanted));
#else
    std::uint32_t marks = 0;
    for (unsigned i = 0; i < bucket_words; ++i) {
      const bool match = words_[i].load(std::memory_order_acquire) >> shift == bits;
      marks |= static_cast<std::uint32_t>(match) << (i * mask_bits_per_word);
    }
    return marks;
#endif
  }

#if WHYCACHE_SSE2
  static constexpr unsigned mask_bits_per_word = 2;

  [[gnu::always_inline]] __m128i upper_halves_of_four(std::size_t first) const {
    const auto* const pairs = reinterpret_cast<const __m128*>(words_ + first);
    return _mm_castps_si128(_mm_shuffle_ps(pairs[0], pairs[1], _MM_SHUFFLE(3, 1, 3, 1)));
  }
  [[gnu::always_inline]] static std::uint32_t match_mask(__m128i first, __m128i second) {
    return static_cast<std::uint32_t>(_mm_movemask_epi8(_mm_packs_epi32(first, second)));
  }
#else
  static constexpr unsigned mask_bits_per_word = 1;
#endif

  const IndexWord* words_;
};

// Returns the result of a look-up if none of the key's buckets has an empty word or holds the key.
inline LookupStatus status_behind_full_buckets(const MappedBytes& bytes, const IndexWord* page,
                                               std::uint64_t hash) {
  const Header& header = *bytes.at<Header>(0);
  if (header.overflow_root.load(std::memory_order_acquire) != 0) return LookupStatus::overflow;
  // If the last record has just moved from the tree to a page, it is a new page.
  const std::uint64_t directory = header.index_directory.load(std::memory_order_acquire);
  return find_index_page(bytes, directory, hash) == page ? LookupStatus::not_found
                                                         : LookupStatus::torn;
}

// Returns the value of `key` at update `id`, wherever its word is and whatever has happened to it.
[[gnu::noinline]] inline LookupResult slow_look_up(const MappedBytes& bytes, const IndexWord* page,
                                                   std::uint64_t hash, std::string_view key,
                                                   UpdateId id) {
  const std::uint64_t tag = tag_of(hash);
  std::uint64_t bucket_number = home_bucket(hash);
  for (std::uint64_t displacement = 0; displacement <= displacement_max; ++displacement) {
    const Bucket bucket(page + bucket_number * bucket_words);
    const std::uint64_t wanted = tag << 3 | displacement;
    for (std::uint32_t matches = bucket.matches(wanted); matches != 0;
         matches = Bucket::without_first_match(matches)) {
      const std::uint64_t word = bucket.first_match(matches);
      // A word that is empty, or has just been removed, looks like a word with tag 0.
      if (word >> word_offset_bits != wanted || !holds_entry(word)) continue;
      Entry entry;
      if (!bytes.load_entry(word_offset(word), entry)) return {LookupStatus::torn, {}};
      if (entry.key_bytes != key.size() || !equal_keys(entry.data, key.data(), key.size()))
        continue;
      const LookupStatus found = find_version_at(bytes, entry, key, id);
      if (found != LookupStatus::found) return {found, {}};
      return {LookupStatus::found, entry.value(), entry.data};
    }
    if (bucket.has_empty()) return {LookupStatus::not_found, {}};
    bucket_number = (bucket_number + 1) & (index_page_buckets - 1);
  }
  return {status_behind_full_buckets(bytes, page, hash), {}};
}

// Prefetches an entry's cache lines after the first, before it is known whether they are needed.
// Always inlined: g++ treats a function that only prefetches as one without effect.
[[gnu::always_inline]] inline void prefetch_entry_tail(const char* entry) {
  __builtin_prefetch(entry + 64);
  __builtin_prefetch(entry + 128);
}

// Returns the value of `key` at update `id`. Nearly always that is the newest one, and its word is
// the first that matches in the home bucket.
[[gnu::always_inline]] inline LookupResult look_up(const MappedBytes& bytes, const IndexWord* page,
                                                   std::uint64_t hash, std::string_view key,
                                                   UpdateId id) {
  const Bucket home(home_bucket_in(page, hash));
  const std::uint64_t wanted = tag_of(hash) << 3;
  if (const std::uint32_t matches = home.matches(wanted); matches != 0) [[likely]] {
    const std::uint64_t word = home.first_match(matches);
    const std::uint64_t offset = word_offset(word);
    prefetch_entry_tail(bytes.at<char>(offset));
    Entry entry;
    if (word >> word_offset_bits == wanted && bytes.load_entry(offset, entry) &&
        entry.key_bytes == key.size() && !entry.erased() && entry.id() <= id &&
        equal_keys(entry.data, key.data(), key.size())) [[likely]] {
      return {LookupStatus::found, entry.value(), entry.data};
    }
  } else if (home.has_empty()) {
    return {LookupStatus::not_found, {}};
  }
  return slow_look_up(bytes, page, hash, key, id);
}

// --- The fast path: what nearly every read of a key does, in as few instructions as possible. ---
//
// A look-up waits for memory twice. Meanwhile the processor executes what follows, including the
// next reads, up to some two hundred instructions ahead. Each instruction saved here therefore
// speeds up all reads. No value that comes from such memory may be spilled to the stack: later
// instructions would wait for it there. docs/decisions/short-reads.md.

enum class FastResult : std::uint8_t {
  not_found,
  found,
  undecided
  // Take the slow path.
};

// Values up to this size lie within the fast_read_bytes of their entries.
inline constexpr std::uint64_t fast_value_bytes_max =
    fast_read_bytes - sizeof(EntryWord) - EntryWord::narrow_key_bytes_max;

// The entry that a fast look-up found.
struct FastValue {
  const std::byte* entry = nullptr;
  const char* key = nullptr;  // in the entry
  // The size of the value, which follows the key.
  std::uint64_t bytes = 0;

  [[gnu::always_inline]] std::string_view value(std::size_t key_bytes) const {
    return {key + key_bytes, bytes};
  }
  // The same address, computed with integers: arithmetic on a null pointer is undefined, and there
  // is no entry if none was found.
  [[gnu::always_inline]] const char* value_address(std::size_t key_bytes) const {
    const std::uintptr_t address =
        reinterpret_cast<std::uintptr_t>(entry) + sizeof(EntryWord) + key_bytes;
    return reinterpret_cast<const char*>(address);  // NOLINT(performance-no-int-to-ptr)
  }
};

// Returns whether `key` has a value if its home bucket, the first matching word there and the
// newest version suffice to decide it, else undecided. Takes keys of 8 to 16 bytes (`two_words`),
// or of any size. Calls `max_entry_word()`, EntryWord::max_at() of the id that is read, once an
// entry is found. Compares every offset with the mapping's size: fast_read_bytes of the entry lie
// within it then. Whether the whole value does, is_value_mapped() says.
template <bool two_words, typename MaxEntryWord>
[[gnu::always_inline]] inline FastResult fast_look_up(const DirectoryCache& cache,
                                                      const Header& file, std::string_view key,
                                                      const MaxEntryWord& max_entry_word,
                                                      FastValue& value) {
  const auto* const base = reinterpret_cast<const std::byte*>(&file);
  const std::uint64_t directory = file.index_directory.load(std::memory_order_acquire);
  if (directory != cache.directory) [[unlikely]]
    return FastResult::undecided;
  std::uint64_t hash;
  if constexpr (two_words) {
    hash = cache.key_hash.hash(TwoWords::load(key.data(), key.size()));
  } else {
    if (key.size() > EntryWord::narrow_key_bytes_max) [[unlikely]]
      return FastResult::undecided;
    hash = cache.key_hash(key);
  }
  const std::uint64_t page = index_page_offset(cache.slot(hash).load(std::memory_order_acquire));
  if (page > cache.page_offset_max) [[unlikely]]
    return FastResult::undecided;
  const Bucket bucket(reinterpret_cast<const IndexWord*>(base + page + home_offset(hash)));
  // Compares the tag only: a word displaced from an earlier bucket with the same tag belongs to
  // another key, which the key comparison finds out.
  const std::uint32_t matches = bucket.tag_matches(tag_of(hash));
  // One word in a hundred is displaced to the next bucket; one in ten in pages that are about to be
  // split.
  if (matches == 0) [[unlikely]]
    return bucket.has_empty() ? FastResult::not_found : FastResult::undecided;
  // The word may have changed since the comparison, and a word with tag 0 may hold no entry. The
  // offset is then that of the header page, where nothing looks like an entry of a key of 8 to 16
  // bytes.
  const std::uint64_t offset = word_offset(bucket.first_match(matches));
  if (offset > cache.entry_offset_max || (!two_words && offset < header_page_bytes)) [[unlikely]]
    return FastResult::undecided;
  const std::byte* const entry = base + offset;
  const EntryWord word(
      __atomic_load_n(reinterpret_cast<const std::uint64_t*>(entry), __ATOMIC_RELAXED));
  if (!word.is_narrow_with(key.size())) [[unlikely]]
    return FastResult::undecided;
  if (word.word() > max_entry_word()) [[unlikely]]
    return FastResult::undecided;
  const char* const key_in_entry = reinterpret_cast<const char*>(entry) + sizeof(EntryWord);
  if constexpr (two_words) {
    // Compared one after the other: a joined comparison would keep both words in registers, which
    // are few. The fences make the compiler load the key again for the same reason.
    std::atomic_signal_fence(std::memory_order_acq_rel);
    if (TwoWords::load(key_in_entry, key.size()).last !=
        TwoWords::load(key.data(), key.size()).last) [[unlikely]]
      return FastResult::undecided;
    std::atomic_signal_fence(std::memory_order_acq_rel);
    if (TwoWords::load(key_in_entry, key.size()).first !=
        TwoWords::load(key.data(), key.size()).first) [[unlikely]]
      return FastResult::undecided;
    std::atomic_signal_fence(std::memory_order_acq_rel);
  } else {
    if (!equal_keys(key_in_entry, key.data(), key.size())) [[unlikely]]
      return FastResult::undecided;
  }
  value = {entry, key_in_entry, word.narrow_value_bytes()};
  return FastResult::found;
}

// Returns true if the filter says that no key with this hash has a value; false: look it up. Costs
// one cache line, of which there are a sixteenth as many as of buckets.
[[gnu::always_inline]] inline bool filter_excludes(const DirectoryCache& cache, const Header& file,
                                                   std::uint64_t hash) {
  if (file.index_directory.load(std::memory_order_acquire) != cache.directory) [[unlikely]]
    return false;
  const std::uint64_t filter =
      index_page_filter_offset(cache.slot(hash).load(std::memory_order_acquire));
  const std::uint64_t offset = filter + home_bucket(hash) * sizeof(FilterWord);
  if (offset > cache.entry_offset_max)
      // A filter at the very end of the file is used only in part.
      [[unlikely]]
    return false;
  const auto& word = *reinterpret_cast<const FilterWord*>(cache.base + offset);
  const std::uint32_t bits = filter_bits(tag_of(hash));
  return (word.load(std::memory_order_acquire) & bits) != bits;
}

// Returns whether the whole value is within the mapping. For a short one the look-up has checked
// that already.
[[gnu::always_inline]] inline bool is_value_mapped(const DirectoryCache& cache,
                                                   std::string_view found) {
  if (found.size() <= fast_value_bytes_max) [[likely]]
    return true;
  const auto offset =
      static_cast<std::uint64_t>(reinterpret_cast<const std::byte*>(found.data()) - cache.base);
  const std::uint64_t usable_bytes = cache.entry_offset_max + fast_read_bytes;
  // The value may be before the mapping, in one of another file. Then the offset is huge.
  return offset <= usable_bytes && found.size() <= usable_bytes - offset;
}

// --- Unpinned reads. ---

enum class ReadOutcome : std::uint8_t {
  not_found,
  found,
  retry,
  superseded,
  // Only a pinned read can find out.
  needs_pin
};

// An unpinned read, as far as the reclaim generation protects it.
class OptimisticRead {
 public:
  constexpr OptimisticRead() = default;
  // Acquire: pairs with the release add of the writer. Entries retired before this generation are
  // out of the index for us, and the applied id is at least its stamp.
  [[gnu::always_inline]] explicit OptimisticRead(const Header& header)
      : generation_(header.reclaim_generation.load(std::memory_order_acquire)) {}
  // Continues a read that began at this generation.
  static OptimisticRead resume(std::uint64_t generation) {
    OptimisticRead read;
    read.generation_ = generation;
    return read;
  }

  std::uint64_t generation() const { return generation_; }
  bool superseded() const { return static_cast<std::int64_t>(generation_) < 0; }
  // Returns whether the bytes loaded since construction are valid. The acquire fence pairs with the
  // writer's release fence after it raises the generation: if a load saw reused memory, the load
  // here sees the raised generation.
  [[gnu::always_inline]] bool validate(const Header& header) const {
    std::atomic_thread_fence(std::memory_order_acquire);
    return header.reclaim_generation.load(std::memory_order_relaxed) == generation_;
  }

 private:
  std::uint64_t generation_ = 0;
};
static_assert(superseded_bit == std::uint64_t{1} << 63);

// Attempts one read on the slow path. Calls `use(value)` while the value may still prove torn: it
// may copy the value, but must not act on it until this returns found. `bytes` are those of the
// mapping.
template <typename Use>
ReadOutcome try_point_read(const Mapping& mapping, const MappedBytes& bytes, std::string_view key,
                           const Use& use) {
  const Header& header = mapping.header();
  const OptimisticRead read(header);
  if (read.superseded()) return ReadOutcome::superseded;
  const UpdateId id = header.applied_id.load(std::memory_order_acquire);
  const std::uint64_t hash = mapping.hash_of(key);
  const IndexWord* page =
      find_index_page(bytes, header.index_directory.load(std::memory_order_acquire), hash);
  if (page == nullptr) return ReadOutcome::retry;
  const LookupResult result = slow_look_up(bytes, page, hash, key, id);
  if (result.status == LookupStatus::torn) return ReadOutcome::retry;
  if (result.status == LookupStatus::overflow) return ReadOutcome::needs_pin;
  if (result.status == LookupStatus::found) use(result.value);
  if (!read.validate(header)) return ReadOutcome::retry;
  return result.status == LookupStatus::found ? ReadOutcome::found : ReadOutcome::not_found;
}

}  // namespace whycache
