// Reads a state file by docs/formats/state.md alone: numbers, no names of the library.
#include <gtest/gtest.h>

#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <string>

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

  testing::TemporaryFolder folder_;
  std::string file_;
};

TEST_F(StateFormat, entry_is_found_by_the_document) {
  const std::string path = folder_.path() + "/a.state";
  testing::TestState(path).apply({{"a", "1"}});
  read(path);

  EXPECT_EQ(file_.substr(0, 8), "whycache");
  EXPECT_EQ(at<std::uint16_t>(8), 1);
  EXPECT_EQ(at<std::uint32_t>(12), 0x01020304U);
  EXPECT_EQ(at<std::uint32_t>(16), 4096U);
  EXPECT_EQ(at<std::uint32_t>(20), 262144U);
  EXPECT_EQ(at<std::uint64_t>(504), XXH3_64bits(file_.data(), 504));
  EXPECT_EQ(at<std::uint64_t>(520), 1U);
  EXPECT_EQ(at<std::uint64_t>(592), 0U);

  // Block 1 is that of update 1.
  const std::uint64_t block = 640 + 64;
  EXPECT_EQ(at<std::uint64_t>(block), 1U);
  EXPECT_EQ(at<std::uint64_t>(block + 32), 1U);
  EXPECT_EQ(at<std::uint64_t>(block + 40), 2U);
  EXPECT_EQ(at<std::uint64_t>(block + 56), XXH3_64bits(file_.data() + block, 56));

  const std::uint64_t hash = XXH3_64bits_withSeed("a", 1, at<std::uint64_t>(48));
  const std::uint64_t depth = at<std::uint64_t>(528) & 0xff;
  const std::uint64_t directory = at<std::uint64_t>(528) >> 8;
  ASSERT_EQ(depth, 0U);
  const std::uint64_t part = at<std::uint64_t>(directory) & ~std::uint64_t{262143};
  const std::uint64_t word = at<std::uint64_t>(part + (hash & 4095) * 64);
  EXPECT_EQ(word >> 40, hash >> 40);
  EXPECT_EQ(word >> 37 & 7, 0U);

  const std::uint64_t entry = (word & ((std::uint64_t{1} << 37) - 1)) * 8;
  EXPECT_EQ(at<std::uint64_t>(entry), std::uint64_t{1} << 16 | 1);
  EXPECT_EQ(at<std::uint64_t>(entry + 8), 1U);
  EXPECT_EQ(file_.substr(entry + 16, 2), "a1");

  const std::uint64_t segment = entry / 262144;
  const std::uint64_t descriptor = segment / 8064 * 8064 * 262144 + 4096 + segment % 8064 * 32;
  EXPECT_EQ(at<std::uint8_t>(descriptor), 5);
  EXPECT_EQ(at<std::uint32_t>(descriptor + 4), 24U);
}

}  // namespace
}  // namespace whycache
