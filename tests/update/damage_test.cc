// Foreign updates: truncated, damaged, or crafted to harm. Each is rejected, without excessive use
// of memory.
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "support/seed.h"
#include "support/thrown_error.h"
#include "update/compression.h"
#include "update/samples.h"
#include "update/update.h"

namespace whycache {
namespace {

using namespace std::string_literals;
using testing::expect_error;
using testing::framed;
using testing::OwnedChange;
using testing::varint;

constexpr UpdateId sample_id = 7;
constexpr std::uint64_t sample_previous_chain = 1234;

// Small updates of all shapes: with and without fields, compressed and not.
std::vector<std::string> sample_updates() {
  std::mt19937_64 random(testing::test_seed());
  const std::vector<OwnedChange> few = {{Change::Kind::set, "checkout.enabled", "yes"},
                                        {Change::Kind::set, "empty", ""},
                                        {Change::Kind::erase, "old", ""}};
  const std::vector<OwnedChange> compressible = {{Change::Kind::set, "k", std::string(2000, 'x')},
                                                 {Change::Kind::set, "l", std::string(2000, 'y')}};
  return {
      testing::sealed({}, sample_id, sample_previous_chain, {}),
      testing::sealed({}, sample_id, sample_previous_chain, {}, true),
      testing::sealed(few, sample_id, sample_previous_chain, {}),
      testing::sealed(few, sample_id, sample_previous_chain),
      testing::sealed(compressible, sample_id, sample_previous_chain),
      testing::sealed(testing::random_changes(random, 5), sample_id, sample_previous_chain),
      testing::sealed({{Change::Kind::set, std::string(key_bytes_max, 'k'),
                        testing::random_bytes(random, 300)}},
                      sample_id, sample_previous_chain),
  };
}

std::string update_decode_error(std::string_view bytes) {
  Update update;
  update.changes.resize(1);
  const std::optional<Error> error = testing::thrown_error([&] { decode_update(bytes, update); });
  if (!error) return "decoded";
  EXPECT_EQ(error->kind(), ErrorKind::corrupt) << error->what();
  EXPECT_TRUE(update.changes.empty()) << "a rejected update has changes: " << error->what();
  return error->what();
}

void expect_update_rejected(std::string_view bytes, const std::string& words) {
  const std::string message = update_decode_error(bytes);
  EXPECT_NE(message.find(words), std::string::npos)
      << "message: " << message << "\nlacks: " << words;
}

TEST(DamagedUpdate, update_truncated_at_any_byte_is_rejected) {
  SCOPED_TRACE(testing::seed_note());
  for (const std::string& whole : sample_updates()) {
    ASSERT_EQ(update_decode_error(whole), "decoded");
    for (std::size_t size = 0; size < whole.size(); ++size) {
      const std::string bytes =
          whole.substr(0, size);  // a copy, so that sanitizers see reads beyond it
      ASSERT_NE(update_decode_error(bytes), "decoded")
          << "bytes " << size << " of " << whole.size();
      ASSERT_TRUE(testing::thrown_error([&] {
        verify_chain(bytes, sample_id, sample_previous_chain);
      })) << size;
      peek_header(bytes);
    }
  }
}

TEST(DamagedUpdate, update_with_trailing_bytes_is_rejected) {
  SCOPED_TRACE(testing::seed_note());
  for (const std::string& whole : sample_updates()) {
    for (const std::string& more : {"\0"s, "\x01"s, "garbage"s, whole}) {
      const std::string bytes = whole + more;
      EXPECT_NE(update_decode_error(bytes), "decoded");
      EXPECT_TRUE(
          testing::thrown_error([&] { verify_chain(bytes, sample_id, sample_previous_chain); }));
    }
  }
}

// Decoding alone cannot detect a changed value. The chain does.
TEST(DamagedUpdate, flipped_bit_breaks_the_chain) {
  SCOPED_TRACE(testing::seed_note());
  for (const std::string& whole : sample_updates()) {
    ASSERT_EQ(verify_chain(whole, sample_id, sample_previous_chain), peek_header(whole)->chain);
    for (std::size_t bit = 0; bit < whole.size() * 8; ++bit) {
      std::string bytes = whole;
      bytes[bit / 8] = static_cast<char>(bytes[bit / 8] ^ (1 << (bit % 8)));
      const std::optional<Error> error =
          testing::thrown_error([&] { verify_chain(bytes, sample_id, sample_previous_chain); });
      ASSERT_TRUE(error) << "bit " << bit;
      ASSERT_EQ(error->kind(), ErrorKind::corrupt);
      update_decode_error(bytes);
    }
  }
}

TEST(DamagedUpdate, random_bytes_do_no_harm) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  for (int i = 0; i < 100'000; ++i) {
    std::string bytes = testing::random_bytes(random, random() % 60);
    if (!bytes.empty()) bytes[0] = static_cast<char>(format_version);
    if (bytes.size() > 1) bytes[1] = static_cast<char>(bytes[1] & 3);
    update_decode_error(bytes);
  }
}

TEST(HostileUpdate, unknown_version_is_named_in_the_error) {
  std::string bytes = framed(0, "", 0, "");
  ASSERT_EQ(update_decode_error(bytes), "decoded");
  for (const int version : {0, 2, 255}) {
    bytes[version_offset] = static_cast<char>(version);
    expect_update_rejected(bytes, "a version this program does not know");
    expect_error(
        ErrorKind::corrupt, [&] { verify_chain(bytes, 7, 0); }, "upgrade this machine",
        "version=" + std::to_string(version));
  }
}

TEST(HostileUpdate, unknown_flag_is_rejected) {
  for (const int flags : {4, 8, 16, 32, 64, 128, 252}) {
    expect_update_rejected(framed(static_cast<std::uint8_t>(flags), "", 0, ""),
                           "a flag this program does not know");
  }
}

TEST(HostileUpdate, update_without_an_id_is_rejected) {
  std::string bytes = framed(0, "", 0, "");
  store_little_endian<std::uint64_t>(bytes.data() + id_offset, 0);
  expect_update_rejected(bytes, "update has no id");
  EXPECT_FALSE(peek_header(bytes));
}

TEST(HostileUpdate, error_names_the_update_id) {
  expect_update_rejected(framed(0, "", 3, "\x02"s + "k"), "id=7");
}

TEST(HostileUpdate, excessive_claim_is_rejected_before_memory_is_allocated) {
  const std::string change = "\x02k\x01v";  // key of one byte, value of one byte
  ASSERT_EQ(update_decode_error(framed(0, "", 1, change)), "decoded");
  for (const std::uint64_t claim :
       {std::uint64_t{3}, std::uint64_t{1} << 20, std::uint64_t{1} << 32, std::uint64_t{1} << 60,
        ~std::uint64_t{0}}) {
    SCOPED_TRACE(claim);
    expect_update_rejected(framed(0, "", claim, change), "more changes than there can be");
    expect_update_rejected(framed(0, "", 1, varint(claim) + "k\x01v"), "update ");
    expect_update_rejected(framed(0, "", 1, "\x02k" + varint(claim) + "v"), "update ");
    std::string fields_too_long = framed(0, "", 1, change).substr(0, common_header_bytes) +
                                  varint(claim + (claim == 3 ? 100 : 0)) + "x";
    expect_update_rejected(fields_too_long, "update cut short");
    std::string field;
    append_varint(field, 5);
    append_varint(field, claim);
    expect_update_rejected(framed(0, field, 1, change), "update cut short");
  }
}

TEST(HostileUpdate, key_or_value_out_of_bounds_is_rejected) {
  const std::string long_key(key_bytes_max + 1, 'k');
  const std::string long_value(value_bytes_max + std::size_t{1}, 'v');
  expect_update_rejected(framed(0, "", 1, "\x00\x00"s), "a key that is empty or too long");
  expect_update_rejected(framed(0, "", 1, "\x01\x00"s), "a key that is empty or too long");
  expect_update_rejected(framed(0, "", 1, varint(long_key.size() << 1) + long_key + "\x00"s),
                         "a key that is empty or too long: offset=2 key_bytes=1025");
  expect_update_rejected(framed(0, "", 1, "\x02k" + varint(long_value.size()) + long_value),
                         "a value that is too long");
}

TEST(HostileUpdate, overlong_varint_is_rejected) {
  expect_update_rejected(framed(0, "", 1, "\x82\x00k\x01v"s), "needless byte");
  expect_update_rejected(framed(0, "", 1, "\x02k\x81\x00v"s), "needless byte");
}

TEST(HostileUpdate, missized_repeated_or_unsorted_field_is_rejected) {
  const auto field = [](std::uint64_t tag, std::string_view bytes) {
    std::string fields;
    append_field(fields, tag, bytes);
    return fields;
  };
  for (const std::uint64_t tag : {1, 2, 3}) {
    expect_update_rejected(
        framed(0, field(tag, ""), 0, ""),
        "a field of a wrong size: offset=2 tag=" + std::to_string(tag) + " bytes=0");
    expect_update_rejected(framed(0, field(tag, std::string(17, 'x')), 0, ""),
                           "a field of a wrong size");
  }
  for (const std::uint64_t tag : {4, 5}) {
    EXPECT_EQ(update_decode_error(framed(0, field(tag, std::string(255, 'x')), 0, "")), "decoded");
    expect_update_rejected(framed(0, field(tag, std::string(256, 'x')), 0, ""),
                           "a field of a wrong size");
  }
  expect_update_rejected(framed(0, field(0, ""), 0, ""), "fields out of order");
  expect_update_rejected(framed(0, field(4, "a") + field(4, "b"), 0, ""), "fields out of order");
  expect_update_rejected(framed(0, field(5, "a") + field(4, "b"), 0, ""), "fields out of order");
  expect_update_rejected(framed(0, "\x04", 0, ""), "cut short");
}

// --- Compressed ---

std::string compressed_changes(std::string_view changes, std::uint64_t count) {
  return framed(flag_zstd, "", count, testing::zstd_frame(changes));
}

TEST(HostileUpdate, zstd_bomb_is_rejected_before_memory_is_allocated) {
  const std::string bomb = compressed_changes(std::string(decompressed_bytes_max + 1, '\0'), 1);
  EXPECT_LT(bomb.size(), 10'000U);
  Update update;
  expect_error(
      ErrorKind::corrupt, [&] { decode_update(bomb, update); },
      "longer than it can be when decompressed: bytes=67108865");
  EXPECT_EQ(update.storage.capacity(), std::string().capacity());
}

TEST(HostileUpdate, claim_of_2_to_the_60_decompressed_bytes_is_rejected) {
  std::string frame = "\x28\xb5\x2f\xfd"s;  // magic
  frame += '\xe0';                          // one segment, size in eight bytes
  append_little_endian(frame, std::uint64_t{1} << 60);
  frame += "\x01\x00\x00"s;  // last block, raw, empty
  expect_update_rejected(framed(flag_zstd, "", 1, frame),
                         "longer than it can be when decompressed: bytes=1152921504606846976");
}

TEST(HostileUpdate, frame_with_a_wrong_decompressed_size_is_rejected) {
  const std::string changes = "\x02k\x80\x02"s + std::string(256, 'x');
  std::string frame = testing::zstd_frame(changes);
  ASSERT_EQ(update_decode_error(framed(flag_zstd, "", 1, frame)), "decoded");
  ASSERT_EQ(frame[4], '\x60');  // one segment, size in two bytes, less 256
  for (const int size : {0, 3, 5, 200, 255}) {
    std::string wrong = frame;
    wrong[5] = static_cast<char>(size);
    expect_update_rejected(framed(flag_zstd, "", 1, wrong), "cannot be decompressed");
  }
}

TEST(HostileUpdate, anything_but_one_zstd_frame_is_rejected) {
  const std::string frame = testing::zstd_frame("\x02k\x01v");
  ASSERT_EQ(update_decode_error(framed(flag_zstd, "", 1, frame)), "decoded");
  const std::string skippable = "\x50\x2a\x4d\x18\x04\x00\x00\x00skip"s;
  for (const std::string& wrong : {""s, "\x02k\x01v"s, frame + frame, frame + skippable, skippable,
                                   skippable + frame, frame + "x"}) {
    expect_update_rejected(framed(flag_zstd, "", 1, wrong), "not one whole zstd frame");
  }
  std::string without_size = "\x28\xb5\x2f\xfd"s + "\x00\x58"s +
                             "\x21\x00\x00\x02k\x01v"s;  // as a streaming compressor writes it
  expect_update_rejected(framed(flag_zstd, "", 1, without_size),
                         "does not state its decompressed size");
}

TEST(HostileUpdate, frame_that_needs_a_dictionary_is_rejected) {
  std::string frame =
      "\x28\xb5\x2f\xfd\x21\x07\x04"s + "\x21\x00\x00\x02k\x01v"s;  // dictionary 7, four bytes
  expect_update_rejected(framed(flag_zstd, "", 1, frame), "cannot be decompressed");
}

TEST(HostileUpdate, damaged_changes_in_a_valid_frame_are_rejected) {
  expect_update_rejected(compressed_changes("\x02k\x01", 1), "update cut short");
  expect_update_rejected(compressed_changes("\x02k\x01v!", 1), "update too long");
  expect_update_rejected(compressed_changes("", 1), "more changes than there can be");
  EXPECT_EQ(update_decode_error(compressed_changes("", 0)), "decoded");
}

TEST(HostileUpdate, too_many_changes_are_rejected) {
  std::string changes;
  for (std::size_t i = 0; i <= element_count_max; ++i) changes += "\x03k";
  expect_update_rejected(compressed_changes(changes, element_count_max + 1),
                         "more changes than there can be");
}

}  // namespace
}  // namespace whycache
