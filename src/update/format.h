// The format that updates and base parts share: a common header of 18 bytes, then optional fields.
// Format, byte by byte: docs/formats/update.md.
//
//    0  version
//    1  flags
//    2  id
//   10  chain of an update, number of a base part
//   18  size of the fields, fields ...
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>

#include <whycache/types.h>

#include "base/bytes.h"
#include "base/hash.h"

namespace whycache {

inline constexpr std::uint8_t format_version = 1;

inline constexpr std::size_t version_offset = 0;
inline constexpr std::size_t flags_offset = 1;
inline constexpr std::size_t id_offset = 2;
inline constexpr std::size_t chain_offset = 10;
inline constexpr std::size_t part_number_offset = 10;
inline constexpr std::size_t common_header_bytes = 18;

inline constexpr std::uint8_t flag_zstd = 1;
inline constexpr std::uint8_t flag_erases_all = 2;  // in updates only

// Optional fields of an update, and of a base part.
enum class UpdateTag : std::uint64_t {
  time_us = 1,
  writer_id = 2,
  writer_sequence = 3,
  writer_name = 4,
  note = 5
};
// All but `last` are in the first part only. A test vector has tag 2 as one to be skipped.
enum class BasePartTag : std::uint64_t { last = 1, time_us = 3, writer_name = 4, note = 5 };
inline constexpr std::size_t name_bytes_max = 255;  // of writer_name and note

// The most changes in an update, and items in a part. It bounds the memory that decoding a small
// frame can take.
inline constexpr std::size_t element_count_max = std::size_t{1} << 20;

// Returns the chain of an update that follows one with chain `previous_chain`. It is the hash,
// seeded with `previous_chain`, of the common header with content_hash() in the place of the chain.
// A draft that tries the next id therefore hashes only 18 bytes.
inline std::uint64_t content_hash(std::string_view bytes) {
  return hash64(bytes.substr(common_header_bytes));
}
inline std::uint64_t chain_after(std::uint64_t previous_chain, const char* header,
                                 std::uint64_t content) {
  char hashed[common_header_bytes];
  std::memcpy(hashed, header, common_header_bytes);
  store_little_endian(hashed + chain_offset, content);
  return hash64({hashed, common_header_bytes}, previous_chain);
}

// One optional field: tag, size, bytes. Tags start at 1 and strictly ascend, so each occurs at most
// once.
struct Field {
  std::uint64_t tag;
  std::string_view bytes;
};

// Reads fields, front to back. The caller skips tags that it does not know.
class FieldReader {
 public:
  FieldReader(std::string_view bytes, const char* what) : reader_(bytes, what) {}

  // Returns the next field, or nullopt at the end. Throws Error(corrupt).
  std::optional<Field> next() {
    if (reader_.at_end()) return std::nullopt;
    const std::uint64_t tag = reader_.take_varint();
    if (tag <= last_tag_) reader_.throw_corrupt("has fields out of order", "tag", tag);
    last_tag_ = tag;
    return Field{tag, reader_.take_sized_bytes()};
  }
  // Returns the bytes of a field. Throws Error(corrupt) unless there are exactly `size`.
  const char* fixed_size_bytes(const Field& field, std::size_t size) const {
    if (field.bytes.size() != size) throw_wrong_size(field);
    return field.bytes.data();
  }
  // Returns the bytes of a field. Throws Error(corrupt) if there are more than `size_max`.
  std::string_view text(const Field& field, std::size_t size_max) const {
    if (field.bytes.size() > size_max) throw_wrong_size(field);
    return field.bytes;
  }

 private:
  [[noreturn]] void throw_wrong_size(const Field& field) const {
    reader_.throw_corrupt("has a field of a wrong size",
                          "tag=" + std::to_string(field.tag) + " bytes", field.bytes.size());
  }

  ByteReader reader_;
  std::uint64_t last_tag_ = 0;
};

inline void append_field(std::string& fields, std::uint64_t tag, std::string_view bytes) {
  append_varint(fields, tag);
  append_varint(fields, bytes.size());
  fields += bytes;
}

// Appends a field with a number of 64 bits, unless it is 0.
inline void append_number_field(std::string& fields, std::uint64_t tag, std::uint64_t number) {
  char bytes[sizeof number];
  store_little_endian(bytes, number);
  if (number != 0) append_field(fields, tag, {bytes, sizeof bytes});
}

// Appends a field with a text, unless it is empty. Throws Error(invalid) if it is too long.
void append_text_field(std::string& fields, std::uint64_t tag, std::string_view text,
                       const char* name);

inline std::string with_size_prefix(std::string_view bytes) {
  std::string sized;
  sized.reserve(varint_bytes(bytes.size()) + bytes.size());
  append_varint(sized, bytes.size());
  sized += bytes;
  return sized;
}

inline void check_key_size(std::uint64_t size, const ByteReader& reader) {
  if (size == 0 || size > key_bytes_max)
    reader.throw_corrupt("has a key that is empty or too long", "key_bytes", size);
}

// Takes a value, which its size precedes.
inline std::string_view take_value(ByteReader& reader) {
  const std::uint64_t size = reader.take_varint();
  if (size > value_bytes_max)
    reader.throw_corrupt("has a value that is too long", "value_bytes", size);
  return reader.take_bytes(size);
}

struct CommonHeader {
  std::uint8_t flags;
  std::uint64_t id;
  std::uint64_t chain_or_number;  // the chain of an update, the number of a part
};
// Throws Error(corrupt) if the version or a flag is unknown, or the id is 0.
CommonHeader take_common_header(ByteReader& reader, std::uint8_t known_flags);

}  // namespace whycache
