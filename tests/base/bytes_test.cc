#include "base/bytes.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <string_view>

#include "support/seed.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

using namespace std::string_literals;
using testing::expect_error;

std::string encoded(std::uint64_t number) {
  std::string bytes;
  append_varint(bytes, number);
  return bytes;
}

TEST(Varint, varint_has_one_byte_per_seven_bits) {
  EXPECT_EQ(encoded(0), "\x00"s);
  EXPECT_EQ(encoded(1), "\x01"s);
  EXPECT_EQ(encoded(127), "\x7f"s);
  EXPECT_EQ(encoded(128), "\x80\x01"s);
  EXPECT_EQ(encoded(300), "\xac\x02"s);
  EXPECT_EQ(encoded(std::numeric_limits<std::uint64_t>::max()),
            "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"s);
}

TEST(Varint, numbers_around_powers_of_two_round_trip) {
  for (unsigned bit = 0; bit < 64; ++bit) {
    for (const std::uint64_t offset : {-1, 0, 1}) {
      const std::uint64_t number = (std::uint64_t{1} << bit) + offset;
      const std::string bytes = encoded(number);
      EXPECT_EQ(bytes.size(), varint_bytes(number)) << number;
      ByteReader reader(bytes);
      EXPECT_EQ(reader.take_varint(), number);
      EXPECT_TRUE(reader.at_end());
    }
  }
}

TEST(Varint, random_numbers_round_trip) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  for (int i = 0; i < 100'000; ++i) {
    const std::uint64_t number = random() >> (random() % 64);
    const std::string bytes = encoded(number);
    ASSERT_EQ(bytes.size(), varint_bytes(number)) << number;
    ByteReader reader(bytes);
    ASSERT_EQ(reader.take_varint(), number);
  }
}

TEST(Varint, varint_with_a_needless_byte_is_rejected) {
  for (const std::string& bytes :
       {"\x80\x00"s, "\xff\x00"s, "\x80\x80\x00"s, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x00"s}) {
    ByteReader reader(bytes, "update");
    expect_error(
        ErrorKind::corrupt, [&] { reader.take_varint(); },
        "update has a varint with a needless byte");
  }
}

TEST(Varint, varint_beyond_64_bits_is_rejected) {
  for (const std::string& bytes :
       {"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"s, "\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f"s,
        "\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"s}) {
    ByteReader reader(bytes, "update");
    expect_error(
        ErrorKind::corrupt, [&] { reader.take_varint(); }, "update has a varint beyond 64 bits");
  }
}

TEST(Varint, varint_truncated_at_any_byte_is_rejected) {
  const std::string whole = encoded(std::numeric_limits<std::uint64_t>::max());
  for (std::size_t size = 0; size < whole.size(); ++size) {
    ByteReader reader(std::string_view(whole).substr(0, size), "update");
    expect_error(
        ErrorKind::corrupt, [&] { reader.take_varint(); }, "update cut short");
  }
}

TEST(LittleEndian, least_significant_byte_comes_first) {
  std::string bytes;
  append_little_endian<std::uint32_t>(bytes, 0x01020304);
  EXPECT_EQ(bytes, "\x04\x03\x02\x01"s);
  EXPECT_EQ(load_little_endian<std::uint32_t>(bytes.data()), 0x01020304U);

  append_little_endian<std::int64_t>(bytes, -2);
  EXPECT_EQ(bytes.substr(4), "\xfe\xff\xff\xff\xff\xff\xff\xff"s);
  EXPECT_EQ(load_little_endian<std::int64_t>(bytes.data() + 4), -2);
}

TEST(ByteReader, fields_are_taken_in_order) {
  const std::string bytes = "\x07\x02\x00\x03"s + "abc" + "de" + "end";
  ByteReader reader(bytes);

  EXPECT_EQ(reader.take_byte(), 7);
  EXPECT_EQ(reader.take_little_endian<std::uint16_t>(), 2);
  EXPECT_EQ(reader.take_sized_bytes(), "abc");
  EXPECT_EQ(reader.offset(), 7U);
  EXPECT_EQ(reader.take_last_bytes(3), "end");
  EXPECT_EQ(reader.bytes_left(), 2U);
  EXPECT_EQ(reader.take_rest(), "de");
  EXPECT_TRUE(reader.at_end());
  reader.expect_end();
}

TEST(ByteReader, length_beyond_the_end_is_rejected) {
  const std::string bytes = "abc";
  for (const std::uint64_t size :
       {std::uint64_t{4}, std::uint64_t{1} << 60, std::numeric_limits<std::uint64_t>::max()}) {
    ByteReader reader(bytes, "update");
    expect_error(
        ErrorKind::corrupt, [&] { reader.take_bytes(size); },
        "update cut short: offset=0 bytes_left=3 bytes_needed=", std::to_string(size));
    expect_error(
        ErrorKind::corrupt, [&] { reader.take_last_bytes(size); }, "update cut short");
    EXPECT_EQ(reader.take_bytes(3), "abc");  // the position has not changed
  }
  const std::string claim = encoded(std::uint64_t{1} << 60);
  ByteReader claims(claim, "update");
  expect_error(
      ErrorKind::corrupt, [&] { claims.take_sized_bytes(); }, "update cut short");
}

TEST(ByteReader, empty_input_has_no_bytes_to_take) {
  ByteReader reader(std::string_view{}, "update");
  EXPECT_TRUE(reader.at_end());
  EXPECT_EQ(reader.take_bytes(0), "");
  expect_error(
      ErrorKind::corrupt, [&] { reader.take_byte(); },
      "update cut short: offset=0 bytes_left=0 bytes_needed=1");
  expect_error(
      ErrorKind::corrupt, [&] { reader.take_little_endian<std::uint64_t>(); }, "bytes_needed=8");
}

TEST(ByteReader, expect_end_reports_the_bytes_left) {
  ByteReader reader("abc", "update");
  reader.take_byte();
  expect_error(
      ErrorKind::corrupt, [&] { reader.expect_end(); }, "update too long: offset=1 bytes_left=2");
}

}  // namespace
}  // namespace whycache
