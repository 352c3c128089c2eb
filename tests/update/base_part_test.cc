// Parts of a base: sorted items round-trip, and everything else is rejected.
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <vector>

#include "base/hash.h"
#include "support/seed.h"
#include "support/thrown_error.h"
#include "update/compression.h"
#include "update/samples.h"
#include "update/update.h"

namespace whycache {
namespace {

using namespace std::string_literals;
using testing::expect_error;
using testing::framed_part;
using testing::no_bytes_max;
using testing::varint;

constexpr UpdateId sample_base = 40;
const BaseInfo sample_info = {.base = sample_base,
                              .chain = 0x1122334455667788,
                              .item_count = 3,
                              .digest = {.low = 5, .high = 6}};

// Encodes these items as the parts of a base.
std::vector<std::string> encode(const std::map<std::string, std::string>& items,
                                std::size_t bytes_max) {
  std::vector<std::string> parts;
  BasePartEncoder encoder(sample_base);
  for (const auto& [key, value] : items) {
    if (encoder.add({key, value}, bytes_max)) continue;
    parts.emplace_back(encoder.finish(std::nullopt));
    EXPECT_TRUE(encoder.add({key, value}, bytes_max)) << "the first item of a part always fits";
  }
  parts.emplace_back(encoder.finish(sample_info));
  return parts;
}

std::map<std::string, std::string> random_items(std::mt19937_64& random, std::size_t count) {
  std::map<std::string, std::string> items;
  while (items.size() < count) {
    const std::string key = random() % 2 == 0 ? "user:" + std::to_string(random() % 100'000)
                                              : testing::random_key(random);
    items[key] = testing::random_value(random);
  }
  return items;
}

TEST(BasePart, decoded_part_equals_encoded_items) {
  BasePartEncoder encoder(sample_base);
  EXPECT_TRUE(encoder.empty());
  ASSERT_TRUE(encoder.add({"flag.checkout", "on"}, no_bytes_max));
  ASSERT_TRUE(encoder.add({"flag.checkout.colour", ""}, no_bytes_max));
  ASSERT_TRUE(encoder.add({"flag.search", "\0off"s}, no_bytes_max));
  EXPECT_FALSE(encoder.empty());
  const std::string bytes(encoder.finish(sample_info));
  EXPECT_TRUE(encoder.empty());

  BasePart part;
  decode_base_part(bytes, part);

  EXPECT_EQ(part.base, sample_base);
  EXPECT_EQ(part.number, 0U);
  EXPECT_EQ(part.items,
            (std::vector<Item>{
                {"flag.checkout", "on"}, {"flag.checkout.colour", ""}, {"flag.search", "\0off"s}}));
  EXPECT_EQ(part.last, sample_info);
}

TEST(BasePart, random_items_round_trip) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  BasePart part;  // one object for all rounds
  for (int round = 0; round < 200; ++round) {
    const std::map<std::string, std::string> items = random_items(random, random() % 400);
    const std::vector<std::string> parts = encode(items, 100 + random() % 10'000);
    auto expected = items.begin();
    for (std::size_t number = 0; number < parts.size(); ++number) {
      decode_base_part(parts[number], part);
      ASSERT_EQ(part.base, sample_base);
      ASSERT_EQ(part.number, number);
      ASSERT_EQ(part.last.has_value(), number + 1 == parts.size());
      for (const Item& item : part.items) {
        ASSERT_NE(expected, items.end());
        ASSERT_EQ(item, (Item{expected->first, expected->second}));
        ++expected;
      }
    }
    ASSERT_EQ(expected, items.end());
  }
}

TEST(BasePart, first_part_alone_has_authorship) {
  const BaseAuthorship authorship{.time_us = 1'700'000'000'123'456,
                                  .writer_name = "root@berlin:17 (whycache clear)",
                                  .note = std::string(255, 'n')};
  BasePartEncoder encoder(sample_base, authorship);
  ASSERT_TRUE(encoder.add({"a", "1"}, no_bytes_max));
  BasePart part;
  decode_base_part(encoder.finish(std::nullopt), part);
  EXPECT_EQ(part.authorship, authorship);
  ASSERT_TRUE(encoder.add({"b", "2"}, no_bytes_max));
  decode_base_part(encoder.finish(sample_info), part);
  EXPECT_EQ(part.authorship, BaseAuthorship{});
  EXPECT_EQ(part.last, sample_info);

  expect_error(
      ErrorKind::invalid,
      [&] { BasePartEncoder(1, {.time_us = 0, .writer_name = {}, .note = std::string(256, 'n')}); },
      "note too long");
}

TEST(BasePart, authorship_counts_for_size_of_first_part) {
  constexpr std::size_t bytes_max = 1000;
  BasePartEncoder encoder(
      sample_base,
      {.time_us = 1, .writer_name = std::string(255, 'w'), .note = std::string(255, 'n')});
  std::mt19937_64 random(1);
  for (int i = 1000;; ++i) {
    std::string value(32, '\0');  // which no compression makes smaller
    for (char& byte : value) byte = static_cast<char>(random());
    if (!encoder.add({std::to_string(i), value}, bytes_max)) break;
  }
  EXPECT_LE(encoder.finish(sample_info).size(), bytes_max);
}

TEST(BasePart, part_of_an_empty_base_round_trips) {
  BasePartEncoder encoder(sample_base);
  BasePart part;
  decode_base_part(encoder.finish(BaseInfo{.base = sample_base, .chain = 1}), part);
  EXPECT_TRUE(part.items.empty());
  EXPECT_EQ(part.last, (BaseInfo{.base = sample_base, .chain = 1}));
}

TEST(BasePart, part_exceeds_bytes_max_only_with_a_single_item) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  for (const std::size_t bytes_max : {200, 1000, 20'000}) {
    for (const std::string& bytes : encode(random_items(random, 500), bytes_max)) {
      BasePart part;
      decode_base_part(bytes, part);
      EXPECT_TRUE(bytes.size() <= bytes_max || part.items.size() == 1) << bytes.size();
    }
  }
}

TEST(BasePart, longest_key_and_value_fit_in_a_part) {
  const std::string key(key_bytes_max, 'k');
  const std::string value(value_bytes_max, 'v');
  BasePartEncoder encoder(sample_base);
  ASSERT_TRUE(encoder.add({key, value}, 1000));
  EXPECT_FALSE(encoder.add({"l", ""}, 1000));
  BasePart part;
  decode_base_part(encoder.finish(std::nullopt), part);
  EXPECT_EQ(part.items, (std::vector<Item>{{key, value}}));
}

TEST(BasePart, shared_key_prefix_is_stored_once) {
  std::map<std::string, std::string> items;
  const std::string prefix(1000, 'p');
  for (int i = 1000; i < 2000; ++i) items[prefix + std::to_string(i)] = "";
  BasePartEncoder encoder(sample_base);
  for (const auto& [key, value] : items)
    ASSERT_TRUE(encoder.add({key, value}, 10'000)) << "1,000 keys of 1,004 bytes";
}

TEST(BasePart, part_ends_before_its_decoded_keys_exceed_64_mib) {
  // Keys of 1,020 bytes that take a few bytes each when encoded. A part has to end before its keys
  // take more than 64 MiB when decoded.
  BasePartEncoder encoder(sample_base);
  const std::string prefix(1010, 'p');
  std::size_t count = 0;
  for (;; ++count) {
    const std::string number = std::to_string(1'000'000'000 + count);
    if (!encoder.add({prefix + number, ""}, no_bytes_max)) break;
  }
  EXPECT_EQ(count, decompressed_bytes_max / 1020);
  BasePart part;
  decode_base_part(encoder.finish(std::nullopt), part);
  EXPECT_EQ(part.items.size(), count);
  EXPECT_EQ(part.items.back().key, prefix + std::to_string(1'000'000'000 + count - 1));
}

TEST(BasePart, part_ends_at_the_maximum_item_count) {
  BasePartEncoder encoder(sample_base);
  char key[4] = {};
  std::size_t count = 0;
  for (;; ++count) {
    for (int i = 0; i < 4; ++i) key[i] = static_cast<char>(count >> (24 - 8 * i));
    if (!encoder.add({std::string_view(key, 4), ""}, no_bytes_max)) break;
  }
  EXPECT_EQ(count, element_count_max);
}

TEST(BasePartEncoder, items_that_could_not_be_decoded_are_rejected) {
  BasePartEncoder encoder(sample_base);
  ASSERT_TRUE(encoder.add({"b", "1"}, no_bytes_max));
  expect_error(
      ErrorKind::corrupt,
      [&] {
        encoder.add({"a", "1"}, no_bytes_max);
      },
      "keys out of order in a new base: part=0 items_before=1");
  expect_error(
      ErrorKind::corrupt,
      [&] {
        encoder.add({"b", "1"}, no_bytes_max);
      },
      "keys out of order");
  expect_error(
      ErrorKind::corrupt,
      [&] {
        encoder.add({"", "1"}, no_bytes_max);
      },
      "item out of bounds");
  expect_error(
      ErrorKind::corrupt,
      [&] {
        encoder.add({std::string(1025, 'x'), "1"}, no_bytes_max);
      },
      "item out of bounds");
  encoder.finish(std::nullopt);
  expect_error(
      ErrorKind::corrupt,
      [&] {
        encoder.add({"b", "1"}, no_bytes_max);
      },
      "part=1 items_before=0");
  EXPECT_TRUE(encoder.add({"ba", "1"}, no_bytes_max));
}

// --- Damage ---

std::string part_decode_error(std::string_view bytes) {
  BasePart part;
  part.items.resize(1);
  const std::optional<Error> error = testing::thrown_error([&] { decode_base_part(bytes, part); });
  if (!error) return "decoded";
  EXPECT_EQ(error->kind(), ErrorKind::corrupt) << error->what();
  EXPECT_TRUE(part.items.empty()) << "a rejected part has items: " << error->what();
  return error->what();
}

void expect_part_rejected(std::string_view bytes, const std::string& words) {
  const std::string message = part_decode_error(bytes);
  EXPECT_NE(message.find(words), std::string::npos)
      << "message: " << message << "\nlacks: " << words;
}

std::vector<std::string> sample_parts() {
  std::mt19937_64 random(testing::test_seed());
  std::vector<std::string> samples = encode(random_items(random, 60), 1500);
  samples.push_back(encode({{"a", std::string(3000, 'x')}}, 10'000)[0]);
  samples.push_back(encode({}, 1000)[0]);
  return samples;
}

TEST(DamagedBasePart, truncated_or_extended_part_is_rejected) {
  SCOPED_TRACE(testing::seed_note());
  for (const std::string& whole : sample_parts()) {
    ASSERT_EQ(part_decode_error(whole), "decoded");
    for (std::size_t size = 0; size < whole.size(); ++size)
      ASSERT_NE(part_decode_error(whole.substr(0, size)), "decoded") << size;
    ASSERT_NE(part_decode_error(whole + "\0"s), "decoded");
  }
}

TEST(DamagedBasePart, part_with_one_flipped_bit_is_rejected) {
  SCOPED_TRACE(testing::seed_note());
  for (const std::string& whole : sample_parts()) {
    for (std::size_t bit = 0; bit < whole.size() * 8; ++bit) {
      std::string bytes = whole;
      bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
      ASSERT_NE(part_decode_error(bytes), "decoded") << "bit " << bit;
    }
  }
}

TEST(DamagedBasePart, error_names_the_base_and_the_part) {
  std::string bytes = encode({{"a", "1"}}, 1000)[0];
  bytes.back() = static_cast<char>(bytes.back() ^ 1);
  expect_part_rejected(bytes, "base part was changed or cut short");
  expect_part_rejected(bytes, "base=40 part=0");
}

TEST(HostileBasePart, unknown_version_or_flag_is_named_in_the_error) {
  std::string bytes = framed_part(0, "", 0, 0, "");
  ASSERT_EQ(part_decode_error(bytes), "decoded");
  bytes[0] = 2;
  expect_part_rejected(bytes, "a version this program does not know");
  for (const int flags : {2, 4, 128})
    expect_part_rejected(framed_part(static_cast<std::uint8_t>(flags), "", 0, 0, ""),
                         "a flag this program does not know");
}

TEST(HostileBasePart, unknown_field_is_skipped) {
  std::string fields;
  append_field(fields, 2, "something new");
  EXPECT_EQ(part_decode_error(framed_part(0, fields, 0, 0, "")), "decoded");
}

TEST(HostileBasePart, truncated_totals_are_rejected) {
  std::string fields;
  append_field(fields, 1, std::string(31, 'x'));
  expect_part_rejected(framed_part(0, fields, 0, 0, ""), "a field of a wrong size");
}

TEST(HostileBasePart, unsorted_keys_are_rejected) {
  const std::string a = "\0\1a\0"s;
  const std::string b = "\0\1b\0"s;
  ASSERT_EQ(part_decode_error(framed_part(0, "", 2, 2, a + b)), "decoded");
  expect_part_rejected(framed_part(0, "", 2, 2, b + a), "keys out of order");
  expect_part_rejected(framed_part(0, "", 2, 2, a + a), "keys out of order");
  // "ab", then "ab" and "a" by way of a shared prefix
  expect_part_rejected(framed_part(0, "", 2, 4, "\0\2ab\0\1\1b\0"s), "keys out of order");
  expect_part_rejected(framed_part(0, "", 2, 3, "\0\2ab\0\1\0\0"s), "keys out of order");
}

TEST(HostileBasePart, shared_prefix_longer_than_previous_key_is_rejected) {
  expect_part_rejected(framed_part(0, "", 1, 2, "\1\1a\0"s),
                       "shares more bytes than the previous key has");
  expect_part_rejected(framed_part(0, "", 2, 4, "\0\1a\0\2\1b\0"s),
                       "shares more bytes than the previous key has");
  expect_part_rejected(framed_part(0, "", 1, 2, varint(~std::uint64_t{0}) + "\1a\0"s),
                       "shares more bytes than the previous key has");
}

TEST(HostileBasePart, key_or_value_out_of_bounds_is_rejected) {
  expect_part_rejected(framed_part(0, "", 1, 0, "\0\0\0\0"s), "a key that is empty or too long");
  expect_part_rejected(
      framed_part(0, "", 1, 1025, "\0"s + varint(1025) + std::string(1025, 'k') + "\0"s),
      "longer keys than there can be");
  // 1,000 shared bytes and 25 more
  const std::string key = "\0"s + varint(1000) + std::string(1000, 'k') + "\0"s;
  expect_part_rejected(
      framed_part(0, "", 2, 2025, key + varint(1000) + "\x19"s + std::string(25, 'k') + "\0"s),
      "a key that is empty or too long");
  const std::string value(value_bytes_max + std::size_t{1}, 'v');
  expect_part_rejected(framed_part(0, "", 1, 1, "\0\1a"s + varint(value.size()) + value),
                       "a value that is too long");
}

TEST(HostileBasePart, wrong_total_of_key_bytes_is_rejected) {
  const std::string item = "\0\1a\0"s;
  expect_part_rejected(framed_part(0, "", 1, 0, item), "longer keys than it says");
  expect_part_rejected(framed_part(0, "", 1, 2, item), "shorter keys than it says");
}

TEST(HostileBasePart, excessive_claim_is_rejected_before_memory_is_allocated) {
  const std::string item = "\0\1a\0"s;
  for (const std::uint64_t claim :
       {std::uint64_t{2}, std::uint64_t{1} << 21, std::uint64_t{1} << 60, ~std::uint64_t{0}}) {
    expect_part_rejected(framed_part(0, "", claim, 1, item), "more items than there can be");
    expect_part_rejected(framed_part(0, "", 1, claim < 2000 ? claim + 2000 : claim, item),
                         "longer keys than there can be");
  }
  expect_part_rejected(
      framed_part(flag_zstd, "", 1, 1,
                  testing::zstd_frame(std::string(decompressed_bytes_max + 1, '\0'))),
      "longer than it can be when decompressed");
  // A claim of a million keys of 1,023 bytes, of which the first 250 take a few bytes each.
  std::string many = "\0"s + varint(1023) + std::string(1023, 'k') + "\0"s;
  for (int i = 1; i < 250; ++i) many += varint(1022) + "\1"s + static_cast<char>(i) + "\0"s;
  expect_part_rejected(
      framed_part(0, "", element_count_max, element_count_max * 1023, testing::zstd_frame(many)),
      "more items than there can be");
}

TEST(HostileBasePart, random_bytes_do_no_harm) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  for (int i = 0; i < 50'000; ++i) {
    part_decode_error(framed_part(static_cast<std::uint8_t>(random() % 2),
                                  testing::random_bytes(random, random() % 4), random() % 4,
                                  random() % 20, testing::random_bytes(random, random() % 30)));
  }
}

}  // namespace
}  // namespace whycache
