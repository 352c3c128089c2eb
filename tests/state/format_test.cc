// Reads a state file according to docs/formats/state.md, with literal numbers instead of the
// library's constants.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "base/hash.h"
#include "state/test_state.h"

namespace whycache {
namespace {

class StateFormat : public ::testing::Test {
 protected:
  template <typename T>
  T at(std::uint64_t offset) const {
    T value;
    std::memcpy(&value, file_.data() + offset, sizeof value);
    return value;
  }
  void read(const std::string& path) {
    std::ifstream stream(path, std::ios::binary);
    file_.assign(std::istreambuf_iterator<char>(stream), {});
  }

  // The hash of a key, as documented.
  static std::uint64_t hash_of(const std::string& key, std::uint64_t seed) {
    const std::size_t bytes = key.size();
    if (bytes > 16) return XXH3_64bits_withSeed(key.data(), bytes, seed);
    const auto load = [&](std::size_t from, std::size_t count) {
      std::uint64_t number = 0;
      for (std::size_t i = count; i-- > 0;)
        number = number << 8 | static_cast<unsigned char>(key[from + i]);
      return number;
    };
    const std::size_t part_bytes = bytes >= 8 ? 8 : bytes >= 4 ? 4 : 0;
    const std::uint64_t first = part_bytes > 0 ? load(0, part_bytes) : load(0, bytes);
    const std::uint64_t last = part_bytes > 0 ? load(bytes - part_bytes, part_bytes) : 0;
    __extension__ using Product = unsigned __int128;
    const Product product = Product{first ^ XXH3_64bits_withSeed("first", 5, seed)} *
                            (last ^ XXH3_64bits_withSeed("last", 4, seed));
    return static_cast<std::uint64_t>(product) ^ static_cast<std::uint64_t>(product >> 64);
  }

  testing::TemporaryDirectory directory_;
  std::string file_;
};

TEST_F(StateFormat, keys_of_every_length_are_found_by_the_document) {
  const std::string path = directory_.path() + "/sizes.state";
  std::vector<testing::TestChange> changes;
  for (const std::size_t bytes : {1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 100, 1024}) {
    std::string key(bytes, 'k');
    key.back() = 'z';
    key.front() = 'a';
    changes.push_back({key, "1"});
  }
  testing::TestState(path).apply(changes);
  read(path);
  const std::uint64_t slot = at<std::uint64_t>(at<std::uint64_t>(528) >> 8);
  const std::uint64_t page = (slot & 0xffffffff) * 262144;
  const std::uint64_t filter = (slot >> 37) * 16384;
  for (const auto& [key, value] : changes) {
    const std::uint64_t hash = hash_of(key, at<std::uint64_t>(48));
    bool found = false;
    for (std::uint64_t i = 0; i < 8; ++i) {
      const std::uint64_t word = at<std::uint64_t>(page + (hash & 0x3ffc0) + i * 8);
      found |=
          word >> 40 == hash >> 40 &&
          file_.substr((word & ((std::uint64_t{1} << 37) - 1)) * 8 + (key.size() > 254 ? 16 : 8),
                       key.size()) == key;
    }
    EXPECT_TRUE(found) << key.size();
    const auto bits = at<std::uint32_t>(filter + (hash & 0x3ffc0) / 16);
    for (const unsigned first : {40, 45, 50})
      EXPECT_EQ(bits >> (31 - (hash >> first & 31)) & 1, 1U) << key.size();
  }
}

TEST_F(StateFormat, bytes_of_an_entry_match_the_document) {
  const std::string path = directory_.path() + "/a.state";
  testing::TestState(path).apply({{"a", "1"}});
  read(path);

  EXPECT_EQ(file_.substr(0, 8), "whycache");
  EXPECT_EQ(at<std::uint16_t>(8), 4);
  EXPECT_EQ(at<std::uint32_t>(12), 0x01020304U);
  EXPECT_EQ(at<std::uint32_t>(16), 4096U);
  EXPECT_EQ(at<std::uint32_t>(20), 262144U);
  EXPECT_EQ(at<std::uint64_t>(504), XXH3_64bits(file_.data(), 504));
  EXPECT_EQ(at<std::uint64_t>(520), 0x3ffffffU);
  EXPECT_EQ(at<std::uint64_t>(592), 0U);

  // Update 1 is in published block 1.
  const std::uint64_t block = 640 + 64;
  EXPECT_EQ(at<std::uint64_t>(block), 1U);
  EXPECT_EQ(at<std::uint64_t>(block + 32), 1U);
  EXPECT_EQ(at<std::uint64_t>(block + 40), 2U);
  EXPECT_EQ(at<std::uint64_t>(block + 56), XXH3_64bits(file_.data() + block, 56));

  const std::uint64_t hash = hash_of("a", at<std::uint64_t>(48));
  const std::uint64_t depth = at<std::uint64_t>(528) & 0xff;
  const std::uint64_t directory = at<std::uint64_t>(528) >> 8;
  ASSERT_EQ(depth, 0U);
  const std::uint64_t slot = at<std::uint64_t>(directory);
  EXPECT_EQ(slot >> 32 & 31, 0U);
  const std::uint64_t page = (slot & 0xffffffff) * 262144;
  const std::uint64_t word = at<std::uint64_t>(page + (hash & 0x3ffc0));
  EXPECT_EQ(word >> 40, hash >> 40);
  EXPECT_EQ(word >> 37 & 7, 0U);

  const std::uint64_t entry = (word & ((std::uint64_t{1} << 37) - 1)) * 8;
  EXPECT_EQ(at<std::uint64_t>(entry), std::uint64_t{1} << 25 | 1 << 8 | 1);
  EXPECT_EQ(file_.substr(entry + 8, 2), "a1");

  const auto descriptor = [](std::uint64_t offset) {
    const std::uint64_t segment = offset / 262144;
    return segment / 8064 * 8064 * 262144 + 4096 + segment % 8064 * 32;
  };
  EXPECT_EQ(at<std::uint8_t>(descriptor(entry)), 5);
  EXPECT_EQ(at<std::uint32_t>(descriptor(entry) + 4), 16U);

  const std::uint64_t filter = (slot >> 37) * 16384;
  std::size_t set = 0;
  for (std::uint64_t i = 0; i < 16384; i += 4) set += at<std::uint32_t>(filter + i) != 0;
  EXPECT_EQ(set, 1U);
  EXPECT_EQ(at<std::uint8_t>(descriptor(filter)), 9);
  EXPECT_EQ(at<std::uint32_t>(descriptor(filter) + 4), 1U);
  EXPECT_EQ(at<std::uint32_t>(descriptor(filter) + 8), 1U << filter % 262144 / 16384);
}

}  // namespace
}  // namespace whycache
