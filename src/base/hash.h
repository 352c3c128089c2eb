// Hashes. Their results are part of the formats (docs/formats), so they never change.
#pragma once

#include <cstdint>
#include <string_view>

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <whycache/types.h>

namespace whycache {

inline std::uint64_t hash64(std::string_view bytes, std::uint64_t seed = 0) {
  return XXH3_64bits_withSeed(bytes.data(), bytes.size(), seed);
}

// Returns the contribution of one item to a Digest. The key's hash seeds the value's, so moving
// bytes between key and value changes the digest.
inline Digest item_digest(std::string_view key, std::string_view value) {
  const XXH128_hash_t hash = XXH3_128bits_withSeed(value.data(), value.size(), hash64(key));
  return {hash.low64, hash.high64};
}

inline void add(Digest& digest, const Digest& item) {
  digest.low += item.low;
  digest.high += item.high;
}

inline void subtract(Digest& digest, const Digest& item) {
  digest.low -= item.low;
  digest.high -= item.high;
}

}  // namespace whycache
