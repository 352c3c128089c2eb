// Finding a key's value in the mapped file, as of an update id. What a reader runs; a hit touches
// two cache lines that are not warm already: the bucket and the entry.
//
// A reader that pinned nothing may meet memory that is being used again. So it believes no number
// before it compared it with the size of the mapping, and no result before it found the reclaim
// generation unmoved (point_read below).
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
  torn  // bytes that cannot be: memory used again meanwhile, a file that grew, or a damaged file
};

struct LookupResult {
  LookupStatus status = LookupStatus::not_found;
  std::string_view value;
  const char* key = nullptr;  // the key's bytes in the entry
};

// An entry's sizes, loaded once: memory that is used again may change between two looks, so that
// what was checked is what is used.
struct Entry {
  EntryWord word;
  std::uint64_t key_bytes = 0;
  std::uint64_t value_bytes = 0;
  const char* data = nullptr;                    // key, then value
  const std::uint64_t* previous_word = nullptr;  // nullptr: no version before

  UpdateId id() const { return word.id(); }
  bool erased() const { return word.erased(); }
  std::string_view key() const { return {data, key_bytes}; }
  std::string_view value() const { return {data + key_bytes, value_bytes}; }
  // Offset of the version before; 0: there is none.
  std::uint64_t previous_offset() const {
    if (previous_word == nullptr) return 0;
    const std::uint64_t loaded = __atomic_load_n(previous_word, __ATOMIC_RELAXED);
    return word.is_wide() ? WideWord(loaded).previous_offset() : loaded;
  }
  // All of it.
  std::uint64_t bytes() const {
    return entry_bytes(key_bytes, value_bytes, previous_word != nullptr);
  }
};

// The file's bytes as one reader sees them during one read.
class MappedBytes {
 public:
  explicit MappedBytes(const Mapping& mapping)
      : mapping_(mapping), base_(mapping.base()), usable_bytes_(mapping.usable_bytes()) {}

  bool contains(std::uint64_t offset, std::uint64_t bytes) const {
    return offset <= usable_bytes_ && bytes <= usable_bytes_ - offset;
  }
  template <typename T>
  const T* at(std::uint64_t offset) const {
    return reinterpret_cast<const T*>(base_ + offset);
  }
  const DirectoryCache* directory_cache(std::uint64_t directory) const {
    return mapping_.directory_cache(directory);
  }
  bool contains_index_page(std::uint64_t offset) const {
    return offset <= usable_bytes_ - segment_bytes;
  }  // a file has at least one segment
  // False if there can be no entry. All of it lies within the mapping otherwise.
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
};

// Where a key's home bucket is; nullptr if the directory cannot be right. First of the three steps
// of a look-up, so that several look-ups can be under way at once, each waiting for its own cache
// misses.
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

// Goes from `entry` of `key` back to the version that was current at `id`. `no`: there was none.
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

// Whether two keys of the same size are equal. Most are short; then a call would cost more than
// this.
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

// The same value, of which the compiler must not know that it is.
template <typename Value>
[[gnu::always_inline]] inline Value hide_from_optimizer(Value value) {
  asm("" : "+r"(value));
  return value;
}

// A bucket's words, looked at all at once. In which of them a key is is chance: a branch for each
// would be guessed wrong in every look-up, and nothing of the next one be under way meanwhile. What
// is seen here says which word to load, no more.
class Bucket {
 public:
  explicit Bucket(const IndexWord* words) : words_(words) {}

  // The words with this tag and displacement, for first() and without_first(); 0: none.
  [[gnu::always_inline]] std::uint32_t matches(std::uint64_t tag_and_displacement) const {
    return matches_above<word_offset_bits>(tag_and_displacement);
  }
  // The words with this tag.
  [[gnu::always_inline]] std::uint32_t tag_matches(std::uint64_t tag) const {
    return matches_above<tag_shift>(tag);
  }
  // The words of a bucket are taken in their order, and never become empty again. So if matches()
  // had none and this is true, then nothing that belongs here lies in a later bucket: at the moment
  // when the first of the two looked, the key was not there. Whichever that was.
  [[gnu::always_inline]] bool has_empty() const {
    return words_[bucket_words - 1].load(std::memory_order_acquire) == empty_word;
  }

  std::uint64_t first_match(std::uint32_t matches) const {
    return words_[static_cast<unsigned>(std::countr_zero(matches)) / mask_bits_per_word].load(
        std::memory_order_acquire);
  }
  static std::uint32_t without_first_match(std::uint32_t matches) {
    matches &= matches - 1;
    return mask_bits_per_word == 1 ? matches : matches & (matches - 1);
  }

 private:
  // The words whose bits from `shift` on are these.
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

// The value `key` had at update `id`, wherever its word is and whatever has happened to it.
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
      // A word that is empty, or was removed just now, looks like one whose tag is 0.
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
  return {LookupStatus::not_found, {}};
}

// Asks for an entry's cache lines behind the first, of which it is most often not known yet that
// they will be wanted. (Always inlined: g++ takes a function that only prefetches for one that does
// nothing.)
[[gnu::always_inline]] inline void prefetch_entry_tail(const char* entry) {
  __builtin_prefetch(entry + 64);
  __builtin_prefetch(entry + 128);
}

// The value `key` had at update `id`. Nearly always it has it still, and its word is the first that
// matches, in its home bucket.
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

// Asks for the memory of the entry that look_up() will most likely want.
[[gnu::always_inline]] inline void prefetch_entry(const MappedBytes& bytes, const IndexWord* page,
                                                  std::uint64_t hash) {
  const Bucket home(home_bucket_in(page, hash));
  const std::uint32_t matches = home.matches(tag_of(hash) << 3);
  if (matches == 0) return;
  const char* const entry = bytes.at<char>(word_offset(home.first_match(matches)));
  __builtin_prefetch(entry);
  prefetch_entry_tail(entry);
}

// --- The quick way: what nearly every read of a key does, in as few instructions as it takes. ---
//
// It waits for memory, twice. While it does, the processor goes on with what comes after it, the
// next read among it, until some two hundred instructions lie in between; so each one that is left
// out here makes all reads faster. And nothing that comes out of such memory may be put aside on
// the stack: what follows would wait for it there. docs/decisions/short-reads.md.

enum class FastResult : std::uint8_t {
  not_found,
  found,
  undecided
};  // unsure: look again, the long way

// Values up to here are within the quick_bytes of their entries.
inline constexpr std::uint64_t fast_value_bytes_max =
    fast_read_bytes - sizeof(EntryWord) - EntryWord::narrow_key_bytes_max;

// The entry that a fast look-up found.
struct FastValue {
  const std::byte* entry = nullptr;
  const char* key = nullptr;  // in the entry
  std::uint64_t bytes = 0;    // of the value, which follows the key

  [[gnu::always_inline]] std::string_view value(std::size_t key_bytes) const {
    return {key + key_bytes, bytes};
  }
  // The same, but defined also if no entry was found.
  [[gnu::always_inline]] const char* value_address(std::size_t key_bytes) const {
    return reinterpret_cast<const char*>(reinterpret_cast<std::uintptr_t>(entry) +
                                         sizeof(EntryWord) + key_bytes);
  }
};

// Whether `key` has a value, if its home bucket, the first word there that matches and the newest
// version suffice to know. For keys of 8 to 16 bytes (`two_words`), or for all. `max_entry_word()`,
// EntryWord::max_entry_word() of the id that is read at, is asked when an entry is there. Believes
// no number before it compared it with the mapping's size, like all reads: quick_bytes of the entry
// lie within it then; whether all of the value does, is_within() tells.
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
  // Without the displacement: a word that was displaced from before and has the same tag is another
  // key's, as will be seen.
  const std::uint32_t matches = bucket.tag_matches(tag_of(hash));
  // One in a hundred had to go to the next bucket, or one in ten where pages are about to be split.
  if (matches == 0) [[unlikely]]
    return bucket.has_empty() ? FastResult::not_found : FastResult::undecided;
  // The word may have become another one since, and one whose tag is 0 may hold no entry: then this
  // is the offset of the header page. What is there cannot be an entry of a key of 8 to 16 bytes.
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
    // One after the other: joined, they would have to be kept apart first, and registers are few.
    // So the key is loaded again, too.
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

// Whether the filter says that no key with this hash has a value. False: look for it. Costs one
// cache line, of which there are a sixteenth as many as of buckets.
[[gnu::always_inline]] inline bool filter_excludes(const DirectoryCache& cache, const Header& file,
                                                   std::uint64_t hash) {
  if (file.index_directory.load(std::memory_order_acquire) != cache.directory) [[unlikely]]
    return false;
  const std::uint64_t filter =
      index_page_filter_offset(cache.slot(hash).load(std::memory_order_acquire));
  const std::uint64_t offset = filter + home_bucket(hash) * sizeof(FilterWord);
  if (offset > cache.entry_offset_max)
      [[unlikely]]  // of a filter at the very end of the file not all is looked at
    return false;
  const auto& word = *reinterpret_cast<const FilterWord*>(cache.base + offset);
  const std::uint32_t bits = filter_bits(tag_of(hash));
  return (word.load(std::memory_order_acquire) & bits) != bits;
}

// Whether the whole of the value that was found lies within the mapping. If it is short, that is
// known already.
[[gnu::always_inline]] inline bool is_value_mapped(const DirectoryCache& cache,
                                                   std::string_view found) {
  if (found.size() <= fast_value_bytes_max) [[likely]]
    return true;
  const auto offset =
      static_cast<std::uint64_t>(reinterpret_cast<const std::byte*>(found.data()) - cache.base);
  return offset + found.size() <= cache.entry_offset_max + fast_read_bytes;
}

// --- Reads that pin nothing. ---

enum class ReadOutcome : std::uint8_t { not_found, found, retry, superseded };

// What a read that pins nothing begins and ends with.
class OptimisticRead {
 public:
  constexpr OptimisticRead() = default;
  // Acquire: whatever was retired before this generation is out of the index for us, and the
  // applied id is at least its stamp.
  [[gnu::always_inline]] explicit OptimisticRead(const Header& header)
      : generation_(header.reclaim_generation.load(std::memory_order_acquire)) {}
  // One that began at this generation.
  static OptimisticRead resume(std::uint64_t generation) {
    OptimisticRead read;
    read.generation_ = generation;
    return read;
  }

  std::uint64_t generation() const { return generation_; }
  bool superseded() const { return static_cast<std::int64_t>(generation_) < 0; }
  // Whether what was read, after this was made and before this is asked, can be believed. Pairs
  // with the writer's release fence after raising the generation: if anything read was written
  // over, this load sees the raised number.
  [[gnu::always_inline]] bool validate(const Header& header) const {
    std::atomic_thread_fence(std::memory_order_acquire);
    return header.reclaim_generation.load(std::memory_order_relaxed) == generation_;
  }

 private:
  std::uint64_t generation_ = 0;
};
static_assert(superseded_bit == std::uint64_t{1} << 63);

// One try, the long way. Calls `use(value)` while the value may still prove worthless: it may copy,
// but must not act on what it sees until `yes` is returned.
template <typename Use>
ReadOutcome try_point_read(const Mapping& mapping, std::string_view key, const Use& use) {
  const Header& header = mapping.header();
  const OptimisticRead read(header);
  if (read.superseded()) return ReadOutcome::superseded;
  const UpdateId id = header.applied_id.load(std::memory_order_acquire);
  const MappedBytes bytes(mapping);
  const std::uint64_t hash = mapping.hash_of(key);
  const IndexWord* page =
      find_index_page(bytes, header.index_directory.load(std::memory_order_acquire), hash);
  if (page == nullptr) return ReadOutcome::retry;
  const LookupResult result = slow_look_up(bytes, page, hash, key, id);
  if (result.status == LookupStatus::torn) return ReadOutcome::retry;
  if (result.status == LookupStatus::found) use(result.value);
  if (!read.validate(header)) return ReadOutcome::retry;
  return result.status == LookupStatus::found ? ReadOutcome::found : ReadOutcome::not_found;
}

}  // namespace whycache
