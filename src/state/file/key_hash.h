// The hash of a key in the point index. Part of the file's format (docs/formats/state.md). Each
// file has its own seeds.
//
// A key of up to 16 bytes is two overlapping words. Each is XORed with a seed. Their 128-bit
// product gives two halves, which are XORed. wyhash (Wang Yi) and Abseil's hash treat the last
// bytes of a string alike. Longer keys take XXH3, which has three times the instructions. A lookup
// waits for memory, and the fewer instructions it has, the more lookups the processor overlaps.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>
#include <string_view>

#include "base/hash.h"

namespace whycache {

// Keys of 8 to 16 bytes have a fast path of their own.
inline constexpr std::uint64_t two_words_size_count = 9;  // 8, 9 ... 16 bytes
inline constexpr bool fits_two_words(std::size_t key_bytes) {
  return key_bytes - 8 < two_words_size_count;
}

// The first and last eight bytes of such a key.
struct TwoWords {
  std::uint64_t first;
  std::uint64_t last;

  static TwoWords load(const char* key, std::size_t bytes) {
    TwoWords words;
    std::memcpy(&words.first, key, sizeof words.first);
    std::memcpy(&words.last, key + bytes - sizeof words.last, sizeof words.last);
    return words;
  }
  friend bool operator==(const TwoWords& a, const TwoWords& b) {
    return ((a.first ^ b.first) | (a.last ^ b.last)) == 0;
  }
};

class KeyHash {
 public:
  KeyHash() = default;
  explicit KeyHash(std::uint64_t seed)
      : seeds_{hash64("first", seed), hash64("last", seed)}, long_seed_(seed) {}

  std::uint64_t operator()(std::string_view key) const {
    const std::size_t bytes = key.size();
    if (fits_two_words(bytes)) return hash(TwoWords::load(key.data(), bytes));
    if (bytes > 16) return hash_long(key);
    TwoWords words{0, 0};
    if (bytes >= 4) {
      std::uint32_t half;
      std::memcpy(&half, key.data(), sizeof half);
      words.first = half;
      std::memcpy(&half, key.data() + bytes - sizeof half, sizeof half);
      words.last = half;
    } else if (bytes > 0) {  // an empty key may have no data
      std::memcpy(&words.first, key.data(), bytes);
    }
    return hash(words);
  }
  std::uint64_t hash(const TwoWords& words) const {
    __extension__ using Product = unsigned __int128;
    const Product product =
        static_cast<Product>(words.first ^ seeds_.first) * (words.last ^ seeds_.last);
    return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
  }
  // The two words of a key are XORed with these.
  const TwoWords& seeds() const { return seeds_; }

  // For keys of more than 16 bytes.
  std::uint64_t hash_long(std::string_view key) const { return hash64(key, long_seed_); }

 private:
  TwoWords seeds_{0, 0};
  std::uint64_t long_seed_ = 0;
};

static_assert(std::endian::native == std::endian::little, "the words of a key are little-endian");

}  // namespace whycache
