// The fast path of lookup.h for processors with AVX2 and BMI2.
//
// While a read waits for memory, the processor starts the next ones, until it has no physical
// register left for another result. General registers run out first, so this code uses vectors
// where it can, even where that takes more instructions. docs/decisions/short-reads.md has the
// measurements.
//
// Vectors are loaded from words that the writer may change meanwhile. These processors load each
// aligned word of a vector atomically.
#pragma once

#include "state/index/cpu.h"

#if WHYCACHE_AVX2

#include <immintrin.h>

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "state/file/layout.h"
#include "state/file/mapping.h"
#include "state/index/copy_short.h"
#include "state/index/lookup.h"

namespace whycache::avx2 {

#define WHYCACHE_INLINE_AVX2 [[gnu::always_inline, WHYCACHE_TARGET_AVX2]] inline

// Loads one word of eight bytes into the lower half.
WHYCACHE_INLINE_AVX2 __m128i load_word(const void* from) {
  return _mm_loadl_epi64(static_cast<const __m128i*>(from));
}

WHYCACHE_INLINE_AVX2 bool differ(__m128i a, __m128i b) {
  const __m128i difference = _mm_xor_si128(a, b);
  return _mm_testz_si128(difference, difference) == 0;
}

// Loads the first and last eight bytes of a key: TwoWords.
WHYCACHE_INLINE_AVX2 __m128i two_words(const char* key, std::size_t bytes) {
  const __m128 first = _mm_castsi128_ps(load_word(key));
  return _mm_castps_si128(
      _mm_loadh_pi(first, reinterpret_cast<const __m64*>(key + bytes - sizeof(std::uint64_t))));
}

// Returns the XOR of both halves of the product. Assembly, because compilers choose a pair of
// registers that would have to be saved first.
WHYCACHE_INLINE_AVX2 std::uint64_t multiply_and_fold(std::uint64_t a, std::uint64_t b) {
  std::uint64_t low;
  std::uint64_t high;
  asm("mulx %[b], %[low], %[high]" : [low] "=&r"(low), [high] "=d"(high) : "d"(a), [b] "r"(b));
  return low ^ high;
}

// Wide vectors are used in assembly only: for intrinsics, a compiler prepares a stack frame even if
// it spills nothing. It therefore does not know that upper halves are in use, so call this before
// other code runs. Nothing that the compiler itself keeps in a wide register may be live here. Has
// no target attribute, so that point_read.h can call it in any function.
[[gnu::always_inline]] inline void zero_upper_vectors() { asm volatile("vzeroupper"); }

// Returns the words of a bucket that have this tag, and zeros for the others: each half of the
// result is the OR of four words. `marks` gets a bit for each match, in any order.
WHYCACHE_INLINE_AVX2 __m128i words_with_tag(const std::byte* bucket, __m128i tag,
                                            std::uint32_t& marks) {
  __m128i found;
  __m128i others;
  __m128i more;
  __m128i scratch;
  asm("vmovdqa (%[bucket]), %t[found]\n\t"
      "vmovdqa 32(%[bucket]), %t[others]\n\t"
      "vpbroadcastq %x[tag], %t[tag]\n\t"
      "vpsrlq %[shift], %t[found], %t[more]\n\t"
      "vpcmpeqq %t[tag], %t[more], %t[more]\n\t"
      "vpand %t[more], %t[found], %t[found]\n\t"
      "vpsrlq %[shift], %t[others], %t[scratch]\n\t"
      "vpcmpeqq %t[tag], %t[scratch], %t[scratch]\n\t"
      "vpand %t[scratch], %t[others], %t[others]\n\t"
      "vpackssdw %t[scratch], %t[more], %t[more]\n\t"
      "vpor %t[others], %t[found], %t[found]\n\t"
      "vmovmskps %t[more], %[marks]\n\t"
      "vextracti128 $1, %t[found], %x[others]\n\t"
      "vpor %x[others], %x[found], %x[found]"
      : [found] "=&x"(found), [others] "=&x"(others), [more] "=&x"(more), [scratch] "=&x"(scratch),
        [tag] "+x"(tag), [marks] "=&r"(marks)
      : [bucket] "r"(bucket), [shift] "i"(tag_shift),
        "m"(*reinterpret_cast<const char(*)[bucket_bytes]>(bucket)));
  return found;
}

// The hash of a key, and its slot in the directory.
struct HashedKey {
  std::uint64_t hash;
  __m128i vector;  // the hash
  std::uint64_t slot;

  WHYCACHE_INLINE_AVX2 HashedKey(const DirectoryCache& cache, __m128i key)
      : HashedKey(cache, hash_two_words(cache, key)) {}

  WHYCACHE_INLINE_AVX2 HashedKey(const DirectoryCache& cache, std::uint64_t hash_of_key)
      : hash(hash_of_key) {
    vector = _mm_cvtsi64_si128(static_cast<std::int64_t>(hash));
    // A shift takes its count from the lower half of what is loaded.
    const __m128i slot_shift = _mm_loadu_si128(reinterpret_cast<const __m128i*>(&cache.slot_shift));
    slot = static_cast<std::uint64_t>(_mm_cvtsi128_si64(_mm_srl_epi64(vector, slot_shift)));
  }

  WHYCACHE_INLINE_AVX2 static std::uint64_t hash_two_words(const DirectoryCache& cache,
                                                           __m128i key) {
    const auto* const seeds = reinterpret_cast<const __m128i*>(&cache.key_hash.seeds());
    const __m128i seeded = _mm_xor_si128(key, _mm_loadu_si128(seeds));
    return multiply_and_fold(static_cast<std::uint64_t>(_mm_cvtsi128_si64(seeded)),
                             static_cast<std::uint64_t>(_mm_extract_epi64(seeded, 1)));
  }
};

// Finds the only entry in the home bucket that can be the key's, and its address. The third result
// of this kind, `found`, means that there is such an entry. Leaves wide vectors in use.
template <bool checks_start = false>
WHYCACHE_INLINE_AVX2 FastResult find_entry(const DirectoryCache& cache, const Header& file,
                                           const HashedKey& hashed, const std::byte*& entry) {
  const auto* const base = reinterpret_cast<const std::byte*>(&file);
  // Half of a slot is enough.
  const auto* const half = reinterpret_cast<const std::uint32_t*>(cache.slots + hashed.slot);
  const std::uint64_t page = index_page_offset(__atomic_load_n(half, __ATOMIC_ACQUIRE));
  if (page > cache.page_offset_max) [[unlikely]]
    return FastResult::undecided;

  const auto* const bucket = base + page + home_offset(hashed.hash);
  std::uint32_t marks;
  const __m128i two = words_with_tag(bucket, _mm_srli_epi64(hashed.vector, tag_shift), marks);
  if (marks == 0) [[unlikely]]
    return Bucket(reinterpret_cast<const IndexWord*>(bucket)).has_empty() ? FastResult::not_found
                                                                          : FastResult::undecided;
  // With several matches, the OR below would be none of them.
  if (_blsr_u32(marks) != 0) [[unlikely]]
    return FastResult::undecided;
  const __m128i word_left =
      _mm_slli_epi64(_mm_or_si128(two, _mm_unpackhi_epi64(two, two)), 64 - word_offset_bits);
  const __m128i offsets = _mm_srli_epi64(word_left, 64 - word_offset_bits - 3);
  const auto offset = static_cast<std::uint64_t>(_mm_cvtsi128_si64(offsets));
  if (offset > cache.entry_offset_max || (checks_start && offset < header_page_bytes)) [[unlikely]]
    return FastResult::undecided;
  entry = base + offset;
  return FastResult::found;
}

// The same as fast_look_up() of lookup.h, for a key of 8 to 16 bytes. Leaves wide vectors in use.
template <typename MaxEntryWord>
WHYCACHE_INLINE_AVX2 FastResult fast_look_up(const DirectoryCache& cache, const Header& file,
                                             std::string_view key,
                                             const MaxEntryWord& max_entry_word, FastValue& value) {
  const std::uint64_t directory = file.index_directory.load(std::memory_order_acquire);
  if (directory != cache.directory) [[unlikely]]
    return FastResult::undecided;
  const __m128i wanted = two_words(key.data(), key.size());
  const std::byte* entry;
  const FastResult result = find_entry(cache, file, HashedKey(cache, wanted), entry);
  if (result != FastResult::found) [[unlikely]]
    return result;
  const EntryWord word(
      __atomic_load_n(reinterpret_cast<const std::uint64_t*>(entry), __ATOMIC_RELAXED));
  if (!word.is_narrow_with(key.size())) [[unlikely]]
    return FastResult::undecided;
  if (word.word() > max_entry_word()) [[unlikely]]
    return FastResult::undecided;
  const char* const key_in_entry = reinterpret_cast<const char*>(entry) + sizeof(EntryWord);
  if (differ(two_words(key_in_entry, key.size()), wanted)) [[unlikely]]
    return FastResult::undecided;
  // Loaded again, which takes one instruction.
  std::uint16_t value_bytes;
  std::memcpy(&value_bytes, entry + EntryWord::value_bytes_shift / 8, sizeof value_bytes);
  // Hidden, so that the compiler never loads it a third time: it may have changed.
  value = {entry, key_in_entry, hide_from_optimizer(std::uint64_t{value_bytes})};
  return FastResult::found;
}

// Returns whether 16 bytes from `a` and 16 from `b`, and as many at `a2` and `b2`, are the same.
WHYCACHE_INLINE_AVX2 bool equal_16(const char* a, const char* b, const char* a2, const char* b2) {
  const auto* const ends = reinterpret_cast<const __m128i*>(a2);
  const __m128i different = _mm_or_si128(
      _mm_xor_si128(_mm_loadu_si128(reinterpret_cast<const __m128i*>(a)),
                    _mm_loadu_si128(reinterpret_cast<const __m128i*>(b))),
      _mm_xor_si128(_mm_loadu_si128(ends), _mm_loadu_si128(reinterpret_cast<const __m128i*>(b2))));
  return _mm_testz_si128(different, different) != 0;
}

// Returns whether 32 bytes from `a` and 32 from `b`, and as many at `a2` and `b2`, are the same.
WHYCACHE_INLINE_AVX2 bool equal_32(const char* a, const char* b, const char* a2, const char* b2) {
  bool equal;
  asm("vmovdqu (%[a]), %%ymm0\n\t"
      "vmovdqu (%[a2]), %%ymm1\n\t"
      "vpxor (%[b]), %%ymm0, %%ymm0\n\t"
      "vpxor (%[b2]), %%ymm1, %%ymm1\n\t"
      "vpor %%ymm1, %%ymm0, %%ymm0\n\t"
      "vptest %%ymm0, %%ymm0"
      : "=@ccz"(equal)
      : [a] "r"(a), [b] "r"(b), [a2] "r"(a2), [b2] "r"(b2),
        "m"(*reinterpret_cast<const char(*)[32]>(a)), "m"(*reinterpret_cast<const char(*)[32]>(b)),
        "m"(*reinterpret_cast<const char(*)[32]>(a2)), "m"(*reinterpret_cast<const char(*)[32]>(b2))
      : "xmm0", "xmm1");
  return equal;
}

// Returns whether two keys of the same size are equal. Calls no function: what the caller keeps in
// registers comes from memory, and would be spilled around a call. Leaves wide vectors in use.
WHYCACHE_INLINE_AVX2 bool equal_keys(const char* a, const char* b, std::size_t bytes) {
  constexpr std::size_t wide = 32;
  if (bytes > wide) {
    for (; bytes > 2 * wide; bytes -= 2 * wide, a += 2 * wide, b += 2 * wide) {
      if (!equal_32(a, b, a + wide, b + wide)) [[unlikely]]
        return false;
    }
    // Fewer than 32 may be left. Bytes before them are compared once more.
    if (bytes <= wide)
      return equal_32(a + bytes - wide, b + bytes - wide, a + bytes - wide, b + bytes - wide);
    return equal_32(a, b, a + bytes - wide, b + bytes - wide);
  }
  if (bytes >= 16) {
    return equal_16(a, b, a + bytes - 16, b + bytes - 16);
  }
  if (bytes >= 8) return !differ(two_words(a, bytes), two_words(b, bytes));
  if (bytes >= 4) {
    std::uint32_t words[4];
    std::memcpy(&words[0], a, sizeof words[0]);
    std::memcpy(&words[1], b, sizeof words[1]);
    std::memcpy(&words[2], a + bytes - 4, sizeof words[2]);
    std::memcpy(&words[3], b + bytes - 4, sizeof words[3]);
    return ((words[0] ^ words[1]) | (words[2] ^ words[3])) == 0;
  }
  return bytes == 0 ||
         (a[0] == b[0] && a[bytes / 2] == b[bytes / 2] && a[bytes - 1] == b[bytes - 1]);
}

// Flattened: one call, compiled for the instructions that the caller may use, too.
[[gnu::noinline, gnu::flatten, WHYCACHE_TARGET_AVX2]] inline std::uint64_t hash_long(
    const KeyHash& hash, std::string_view key) {
  return hash.hash_long(key);
}

// Hashes a key of any size, with a call only if it is long.
WHYCACHE_INLINE_AVX2 std::uint64_t hash_any_size(const DirectoryCache& cache,
                                                 std::string_view key) {
  if (key.size() > 16) return hash_long(cache.key_hash, key);
  if (key.size() - 4 < 4) {
    std::uint32_t first;
    std::uint32_t last;
    std::memcpy(&first, key.data(), sizeof first);
    std::memcpy(&last, key.data() + key.size() - sizeof last, sizeof last);
    return cache.key_hash.hash(TwoWords{first, last});
  }
  return cache.key_hash(key);
}

// The same as fast_look_up() for keys of any size. Leaves wide vectors in use.
template <typename MaxEntryWord>
WHYCACHE_INLINE_AVX2 FastResult fast_look_up_any_size(const DirectoryCache& cache,
                                                      const Header& file, std::string_view key,
                                                      const MaxEntryWord& max_entry_word,
                                                      FastValue& value) {
  const std::uint64_t directory = file.index_directory.load(std::memory_order_acquire);
  if (directory != cache.directory || key.size() > EntryWord::narrow_key_bytes_max) [[unlikely]]
    return FastResult::undecided;
  const std::byte* entry;
  const FastResult result =
      find_entry<true>(cache, file, HashedKey(cache, hash_any_size(cache, key)), entry);
  if (result != FastResult::found) [[unlikely]]
    return result;
  const EntryWord word(
      __atomic_load_n(reinterpret_cast<const std::uint64_t*>(entry), __ATOMIC_RELAXED));
  if (!word.is_narrow_with(key.size())) [[unlikely]]
    return FastResult::undecided;
  if (word.word() > max_entry_word()) [[unlikely]]
    return FastResult::undecided;
  const char* const key_in_entry = reinterpret_cast<const char*>(entry) + sizeof(EntryWord);
  if (!equal_keys(key_in_entry, key.data(), key.size())) [[unlikely]]
    return FastResult::undecided;
  std::uint16_t value_bytes;
  std::memcpy(&value_bytes, entry + EntryWord::value_bytes_shift / 8, sizeof value_bytes);
  // Hidden, so that the compiler never loads it a third time: it may have changed.
  value = {entry, key_in_entry, hide_from_optimizer(std::uint64_t{value_bytes})};
  return FastResult::found;
}

// The same as filter_excludes() of lookup.h, for a key of 8 to 16 bytes.
WHYCACHE_INLINE_AVX2 bool filter_excludes(const DirectoryCache& cache, const Header& file,
                                          std::string_view key) {
  const auto* const base = reinterpret_cast<const std::byte*>(&file);
  if (file.index_directory.load(std::memory_order_acquire) != cache.directory) [[unlikely]]
    return false;
  const HashedKey hashed(cache, two_words(key.data(), key.size()));
  const std::uint64_t filter =
      index_page_filter_offset(cache.slots[hashed.slot].load(std::memory_order_acquire));
  const __m128i home_mask =
      _mm_cvtsi32_si128(static_cast<int>((index_page_buckets - 1) * sizeof(FilterWord)));
  const __m128i home = _mm_and_si128(
      _mm_srli_epi64(hashed.vector, home_shift - std::countr_zero(sizeof(FilterWord))), home_mask);
  const std::uint64_t offset = filter + static_cast<std::uint64_t>(_mm_cvtsi128_si64(home));
  if (offset > cache.entry_offset_max) [[unlikely]]
    return false;
  const __m128 word = _mm_broadcast_ss(reinterpret_cast<const float*>(base + offset));
  // The tag is the upper half without its lowest byte. Three lanes take five bits of it each, the
  // fourth takes the remaining bits.
  const __m128i upper = _mm_shuffle_epi32(hashed.vector, _MM_SHUFFLE(1, 1, 1, 1));
  constexpr int left = 64 - tag_shift - 5;
  const __m128i counts =
      _mm_srli_epi32(_mm_sllv_epi32(upper, _mm_set_epi32(left, left - 10, left - 5, left)), 27);
  const __m128i probed = _mm_sllv_epi32(_mm_castps_si128(word), counts);
  return _mm_movemask_ps(_mm_castsi128_ps(probed)) != 0b1111;
}

static_assert(offsetof(DirectoryCache, base) == offsetof(DirectoryCache, slot_shift) + 8);

// Copies up to copy_short_bytes_max bytes, as copy_short() does. Leaves wide vectors in use. Has no
// target attribute, see zero_upper_vectors().
[[gnu::always_inline]] inline void copy(char* to, const char* from, std::size_t bytes) {
  if (bytes > 64) [[likely]] {
    asm volatile(
        "vmovdqu (%[from]), %%ymm0\n\t"
        "vmovdqu 32(%[from]), %%ymm1\n\t"
        "vmovdqu -64(%[from],%[bytes]), %%ymm2\n\t"
        "vmovdqu -32(%[from],%[bytes]), %%ymm3\n\t"
        "vmovdqu %%ymm0, (%[to])\n\t"
        "vmovdqu %%ymm1, 32(%[to])\n\t"
        "vmovdqu %%ymm2, -64(%[to],%[bytes])\n\t"
        "vmovdqu %%ymm3, -32(%[to],%[bytes])"
        :
        : [to] "r"(to), [from] "r"(from), [bytes] "r"(bytes)
        : "memory", "xmm0", "xmm1", "xmm2", "xmm3");
    return;
  }
  copy_short(to, from, bytes);
}

}  // namespace whycache::avx2

#endif
