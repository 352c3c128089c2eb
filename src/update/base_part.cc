#include <algorithm>
#include <cassert>

#include "base/bytes.h"
#include "base/hash.h"
#include "update/compression.h"
#include "update/format.h"
#include "update/update.h"

namespace whycache {
namespace {

constexpr char part_subject[] = "base part";
constexpr std::uint8_t known_part_flags = flag_zstd;
constexpr std::size_t checksum_bytes = 8;
constexpr std::size_t last_field_bytes = 32;  // chain, item count, digest low, digest high
constexpr std::size_t item_bytes_min = 4;
// The most bytes that all keys of a part may take in full. Keys share prefixes, so few encoded
// bytes may expand to many.
constexpr std::size_t part_keys_bytes_max = decompressed_bytes_max;
// Everything but the items: common header, fields with `last`, item count, key bytes, checksum.
constexpr std::size_t part_overhead_bytes_max =
    common_header_bytes + 3 + last_field_bytes + 2 * varint_bytes_max + checksum_bytes;

BaseInfo decode_last(const char* bytes, UpdateId base) {
  return BaseInfo{base, load_little_endian<std::uint64_t>(bytes),
                  load_little_endian<std::uint64_t>(bytes + 8),
                  Digest{load_little_endian<std::uint64_t>(bytes + 16),
                         load_little_endian<std::uint64_t>(bytes + 24)}};
}

void decode_fields(std::string_view bytes, BasePart& part) {
  part.last.reset();
  part.authorship = {};
  FieldReader fields(bytes, part_subject);
  while (const std::optional<Field> field = fields.next()) {
    switch (static_cast<BasePartTag>(field->tag)) {
      case BasePartTag::last:
        part.last = decode_last(fields.fixed_size_bytes(*field, last_field_bytes), part.base);
        break;
      case BasePartTag::time_us:
        part.authorship.time_us =
            load_little_endian<std::int64_t>(fields.fixed_size_bytes(*field, 8));
        break;
      case BasePartTag::writer_name:
        part.authorship.writer_name = fields.text(*field, name_bytes_max);
        break;
      case BasePartTag::note: part.authorship.note = fields.text(*field, name_bytes_max); break;
    }
  }
}

std::string encode_authorship(const BaseAuthorship& authorship) {
  const auto tag = [](BasePartTag of) { return static_cast<std::uint64_t>(of); };
  std::string fields;
  append_number_field(fields, tag(BasePartTag::time_us),
                      static_cast<std::uint64_t>(authorship.time_us));
  append_text_field(fields, tag(BasePartTag::writer_name), authorship.writer_name, "writer name");
  append_text_field(fields, tag(BasePartTag::note), authorship.note, "note");
  return fields;
}

std::string encode_last(const std::optional<BaseInfo>& last) {
  std::string fields;
  if (last) {
    std::string bytes;
    append_little_endian(bytes, last->chain);
    append_little_endian(bytes, last->item_count);
    append_little_endian(bytes, last->digest.low);
    append_little_endian(bytes, last->digest.high);
    append_field(fields, static_cast<std::uint64_t>(BasePartTag::last), bytes);
  }
  return fields;
}

// Decodes the items. Writes their keys one after another to `keys`, which has room for `key_bytes`.
void decode_items(std::string_view bytes, char* keys, std::uint64_t key_bytes,
                  std::vector<Item>& items) {
  ByteReader reader(bytes, part_subject);
  char* key_at = keys;
  const char* const keys_end = keys + key_bytes;
  std::string_view previous_key;
  for (Item& item : items) {
    const std::uint64_t shared = reader.take_varint();
    if (shared > previous_key.size())
      reader.throw_corrupt("has a key that shares more bytes than the previous key has",
                           "shared_bytes", shared);
    const std::string_view tail = reader.take_sized_bytes();
    check_key_size(shared + tail.size(), reader);
    if (shared + tail.size() > static_cast<std::size_t>(keys_end - key_at)) {
      reader.throw_corrupt("has longer keys than it says", "key_bytes", key_bytes);
    }
    if (tail <= previous_key.substr(shared))
      reader.throw_corrupt("has keys out of order", "shared_bytes", shared);
    const std::string_view common = previous_key.substr(0, shared);
    char* const key_end =
        std::copy(tail.begin(), tail.end(), std::copy(common.begin(), common.end(), key_at));
    item.key = {key_at, key_end};
    item.value = take_value(reader);
    previous_key = item.key;
    key_at = key_end;
  }
  if (key_at != keys_end)
    reader.throw_corrupt("has shorter keys than it says", "key_bytes", key_bytes);
  reader.expect_end();
}

void decode(std::string_view bytes, BasePart& part) {
  ByteReader reader(bytes, part_subject);
  const CommonHeader header = take_common_header(reader, known_part_flags);
  const auto checksum =
      load_little_endian<std::uint64_t>(reader.take_last_bytes(checksum_bytes).data());
  if (checksum != hash64(bytes.substr(0, bytes.size() - checksum_bytes))) {
    reader.throw_corrupt("was changed or cut short", "checksum", checksum);
  }

  part.base = header.id;
  part.number = header.chain_or_number;
  decode_fields(reader.take_sized_bytes(), part);
  const std::uint64_t item_count = reader.take_varint();
  const std::uint64_t key_bytes = reader.take_varint();
  std::string_view items = reader.take_rest();

  const bool compressed = (header.flags & flag_zstd) != 0;
  const std::size_t items_bytes =
      compressed ? decompressed_bytes(items, part_subject) : items.size();
  if (item_count > element_count_max || item_count > items_bytes / item_bytes_min) {
    reader.throw_corrupt("has more items than there can be", "items", item_count);
  }
  if (key_bytes > std::min<std::uint64_t>(item_count * key_bytes_max, part_keys_bytes_max)) {
    reader.throw_corrupt("has longer keys than there can be", "key_bytes", key_bytes);
  }
  const std::size_t keys_offset = compressed ? items_bytes : 0;
  part.storage.resize(keys_offset + static_cast<std::size_t>(key_bytes));
  if (compressed) {
    decompress(items, part.storage.data(), items_bytes, part_subject);
    items = {part.storage.data(), items_bytes};
  }
  part.items.resize(static_cast<std::size_t>(item_count));
  decode_items(items, part.storage.data() + keys_offset, key_bytes, part.items);
}

}  // namespace

void decode_base_part(std::string_view bytes, BasePart& part) {
  try {
    decode(bytes, part);
  } catch (const Error& error) {
    part.items.clear();
    std::string message = error.what();
    if (bytes.size() >= common_header_bytes) {
      message +=
          " base=" + std::to_string(load_little_endian<std::uint64_t>(bytes.data() + id_offset));
      message +=
          " part=" +
          std::to_string(load_little_endian<std::uint64_t>(bytes.data() + part_number_offset));
    }
    throw Error(error.kind(), message);
  }
}

BasePartEncoder::BasePartEncoder(UpdateId base, const BaseAuthorship& authorship)
    : base_(base), authorship_fields_(encode_authorship(authorship)) {}

bool BasePartEncoder::add(const Item& item, std::size_t bytes_max) {
  if (item.key.empty() || item.key.size() > key_bytes_max || item.value.size() > value_bytes_max) {
    throw Error(ErrorKind::corrupt,
                "item out of bounds in a new base: key_bytes=" + std::to_string(item.key.size()) +
                    " value_bytes=" + std::to_string(item.value.size()));
  }
  if (item.key <= previous_key_) {
    throw Error(ErrorKind::corrupt,
                "keys out of order in a new base: part=" + std::to_string(number_) +
                    " items_before=" + std::to_string(item_count_));
  }

  // A part can be read without the others, so its first key shares no bytes.
  const std::size_t shared_max = empty() ? 0 : std::min(previous_key_.size(), item.key.size());
  const auto differs =
      std::mismatch(item.key.begin(), item.key.begin() + static_cast<std::ptrdiff_t>(shared_max),
                    previous_key_.begin());
  const std::string_view tail(differs.first, item.key.end());
  const std::size_t shared = item.key.size() - tail.size();
  const std::size_t item_bytes = varint_bytes(shared) + varint_bytes(tail.size()) + tail.size() +
                                 varint_bytes(item.value.size()) + item.value.size();
  // With the authorship, the size of the fields takes another byte.
  const std::size_t overhead_bytes =
      part_overhead_bytes_max + (authorship_fields_.empty() ? 0 : authorship_fields_.size() + 1);
  const bool fits = overhead_bytes + items_.size() + item_bytes <= bytes_max &&
                    item_count_ < element_count_max &&
                    key_bytes_ + item.key.size() <= part_keys_bytes_max;
  if (!fits && !empty()) return false;

  const std::size_t begin = items_.size();
  items_.resize(begin + item_bytes);
  char* to = store_varint(items_.data() + begin, shared);
  to = store_varint(to, tail.size());
  to = std::copy(tail.begin(), tail.end(), to);
  to = store_varint(to, item.value.size());
  to = std::copy(item.value.begin(), item.value.end(), to);
  assert(to == items_.data() + items_.size());
  previous_key_.replace(shared, std::string::npos, tail);
  key_bytes_ += item.key.size();
  ++item_count_;
  return true;
}

std::string_view BasePartEncoder::finish(const std::optional<BaseInfo>& last) {
  encoded_part_.clear();
  encoded_part_ += static_cast<char>(format_version);
  encoded_part_ += '\0';
  append_little_endian(encoded_part_, base_);
  append_little_endian(encoded_part_, number_);
  encoded_part_ += with_size_prefix(encode_last(last) + authorship_fields_);
  append_varint(encoded_part_, item_count_);
  append_varint(encoded_part_, key_bytes_);
  if (append_compressed(encoded_part_, items_)) {
    encoded_part_[flags_offset] = static_cast<char>(flag_zstd);
  } else {
    encoded_part_ += items_;
  }
  append_little_endian(encoded_part_, hash64(encoded_part_));

  authorship_fields_.clear();
  ++number_;
  item_count_ = key_bytes_ = 0;
  items_.clear();
  return encoded_part_;
}

}  // namespace whycache
