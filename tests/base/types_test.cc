#include <whycache/types.h>

#include <gtest/gtest.h>

#include <whycache/error.h>

namespace whycache {
namespace {

TEST(Types, uuid_prints_as_32_digits) {
  Uuid uuid{};
  EXPECT_EQ(to_string(uuid), "00000000000000000000000000000000");
  for (std::uint8_t i = 0; i < 16; ++i) uuid[i] = static_cast<std::uint8_t>(i * 16 + 15 - i);
  EXPECT_EQ(to_string(uuid), "0f1e2d3c4b5a69788796a5b4c3d2e1f0");
}

TEST(Types, digest_prints_as_32_digits_high_first) {
  EXPECT_EQ(to_string(Digest{}), "00000000000000000000000000000000");
  EXPECT_EQ(to_string(Digest{.low = 0x0123456789abcdef, .high = 0xfedcba9876543210}),
            "fedcba98765432100123456789abcdef");
  EXPECT_EQ(to_string(Digest{.low = 1, .high = 0}), "00000000000000000000000000000001");
}

TEST(Types, each_error_kind_has_a_name) {
  EXPECT_STREQ(to_string(ErrorKind::invalid), "invalid");
  EXPECT_STREQ(to_string(ErrorKind::limit), "limit");
  EXPECT_STREQ(to_string(ErrorKind::unavailable), "unavailable");
  EXPECT_STREQ(to_string(ErrorKind::uncertain), "uncertain");
  EXPECT_STREQ(to_string(ErrorKind::corrupt), "corrupt");
}

}  // namespace
}  // namespace whycache
