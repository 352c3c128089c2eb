// Keys that an attacker makes who knows the hash seed of a state file: any number of keys with the
// same hash.
#pragma once

#include <fcntl.h>
#include <unistd.h>

#include <bit>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "base/file.h"
#include "base/hash.h"
#include "state/file/key_hash.h"
#include "state/file/layout.h"

namespace whycache::testing {

// Reading the file is enough.
inline std::uint64_t hash_seed_of(const std::string& path) {
  const FileDescriptor file = open_file(path, O_RDONLY);
  HeaderFixed fixed;
  if (::pread(file.number(), &fixed, sizeof fixed, 0) != sizeof fixed)
    throw std::runtime_error("cannot read the header of a state");
  return fixed.hash_seed;
}

class CollidingKeys {
 public:
  explicit CollidingKeys(std::uint64_t seed) : hash_(seed), seed_(seed) {}

  std::uint64_t hash_of(std::string_view key) const { return hash_(key); }

  // Keys of 16 bytes. A factor of their product is 0, and so is the hash.
  std::string with_hash_zero(std::uint64_t number) const {
    return words({hash_.seeds().first, number});
  }
  // A key of 16 bytes with this hash: the product of a number and 1.
  std::string with_hash(std::uint64_t hash) const {
    return words({hash_.seeds().first ^ 1, hash_.seeds().last ^ hash});
  }
  // Different keys for up to 2^28 numbers, with one tag and one home bucket.
  std::string with_tag_and_home(std::uint64_t tag, std::uint64_t home, std::uint64_t number) const {
    return with_hash(tag << tag_shift | (number >> 6) << 18 | home << home_shift | (number & 63));
  }
  // Keys of 32 bytes. XXH3 multiplies their first two words, and the first factor is 0.
  std::string with_32_bytes(std::uint64_t number) const {
    return words({secret_word(0) + seed_, number}) + std::string(16, 'k');
  }
  // Keys of 1,024 bytes. XXH3 multiplies the halves of each word of a stripe, and adds the word to
  // another sum. The lower factor is 0 in two words, whose sum is the same for all numbers.
  std::string with_1024_bytes(std::uint32_t number) const {
    std::string key(1024, 'k');
    put(key, 0, (secret_word(0) + seed_) << 32 >> 32 | std::uint64_t{number} << 32);
    put(key, 64, (secret_word(8) - seed_) << 32 >> 32 | std::uint64_t{~number} << 32);
    return key;
  }

 private:
  static void put(std::string& key, std::size_t at, std::uint64_t word) {
    std::memcpy(key.data() + at, &word, sizeof word);
  }
  static std::string words(const TwoWords& words) {
    std::string key(16, '\0');
    put(key, 0, words.first);
    put(key, 8, words.last);
    return key;
  }
  static std::uint64_t secret_word(std::size_t at) {
    std::uint64_t word;
    std::memcpy(&word, XXH3_kSecret + at, sizeof word);
    return word;
  }

  KeyHash hash_;
  std::uint64_t seed_;
};

}  // namespace whycache::testing
