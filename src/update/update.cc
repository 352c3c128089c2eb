#include "update/update.h"

#include <cstring>

#include "base/bytes.h"
#include "base/hash.h"
#include "update/compression.h"
#include "update/format.h"

namespace whycache {
namespace {

constexpr char update_subject[] = "update";
constexpr std::uint8_t known_update_flags = flag_zstd | flag_erases_all;
constexpr std::uint64_t chain_start_seed = 0x6568636163796877;     // "whycache"
constexpr std::size_t update_bytes_min = common_header_bytes + 2;  // no fields, no changes
constexpr std::size_t change_bytes_min = 2;                        // erases a key of one byte

void decode_fields(std::string_view bytes, Authorship& authorship) {
  authorship.time_us = 0;
  authorship.writer_id = {};
  authorship.writer_sequence = 0;
  authorship.writer_name.clear();
  authorship.note.clear();
  FieldReader fields(bytes, update_subject);
  while (const std::optional<Field> field = fields.next()) {
    switch (static_cast<UpdateTag>(field->tag)) {
      case UpdateTag::time_us:
        authorship.time_us = load_little_endian<std::int64_t>(fields.fixed_size_bytes(*field, 8));
        break;
      case UpdateTag::writer_id:
        std::memcpy(authorship.writer_id.data(), fields.fixed_size_bytes(*field, 16), 16);
        break;
      case UpdateTag::writer_sequence:
        authorship.writer_sequence =
            load_little_endian<std::uint64_t>(fields.fixed_size_bytes(*field, 8));
        break;
      case UpdateTag::writer_name:
        authorship.writer_name = fields.text(*field, name_bytes_max);
        break;
      case UpdateTag::note: authorship.note = fields.text(*field, name_bytes_max); break;
    }
  }
}

void decode_changes(std::string_view bytes, std::uint64_t count, std::vector<Change>& changes) {
  ByteReader reader(bytes, update_subject);
  if (count > element_count_max || count > bytes.size() / change_bytes_min) {
    reader.throw_corrupt("has more changes than there can be", "changes", count);
  }
  changes.resize(static_cast<std::size_t>(count));
  for (Change& change : changes) {
    const std::uint64_t key_size_and_kind = reader.take_varint();
    const std::uint64_t key_size = key_size_and_kind >> 1;
    check_key_size(key_size, reader);
    change.kind = (key_size_and_kind & 1) != 0 ? Change::Kind::erase : Change::Kind::set;
    change.key = reader.take_bytes(key_size);
    change.value = change.kind == Change::Kind::set ? take_value(reader) : std::string_view();
  }
  reader.expect_end();
}

void decode(std::string_view bytes, Update& update) {
  ByteReader reader(bytes, update_subject);
  const CommonHeader header = take_common_header(reader, known_update_flags);
  update.id = header.id;
  update.chain = header.chain_or_number;
  update.erases_all = (header.flags & flag_erases_all) != 0;
  decode_fields(reader.take_sized_bytes(), update.authorship);

  const std::uint64_t count = reader.take_varint();
  std::string_view changes = reader.take_rest();
  if ((header.flags & flag_zstd) != 0) {
    update.storage.resize(decompressed_bytes(changes, update_subject));
    decompress(changes, update.storage.data(), update.storage.size(), update_subject);
    changes = update.storage;
  }
  decode_changes(changes, count, update.changes);
  update.encoded = bytes;
}

}  // namespace

std::uint64_t chain_start(const Uuid& log_uuid) {
  return hash64({reinterpret_cast<const char*>(log_uuid.data()), log_uuid.size()},
                chain_start_seed);
}

void decode_update(std::string_view bytes, Update& update) {
  update.encoded = {};
  try {
    decode(bytes, update);
  } catch (const Error& error) {
    update.changes.clear();
    const std::optional<UpdateHeader> header = peek_header(bytes);
    throw Error(error.kind(),
                header ? error.what() + (" id=" + std::to_string(header->id)) : error.what());
  }
}

Authorship decode_authorship(std::string_view bytes) {
  ByteReader reader(bytes, update_subject);
  take_common_header(reader, known_update_flags);
  Authorship authorship;
  decode_fields(reader.take_sized_bytes(), authorship);
  return authorship;
}

std::uint64_t verify_chain(std::string_view bytes, UpdateId id, std::uint64_t previous_chain) {
  ByteReader reader(bytes, update_subject);
  const CommonHeader header = take_common_header(reader, known_update_flags);
  if (header.id != id) {
    throw Error(ErrorKind::corrupt,
                "update has another id than its place in the log: id=" + std::to_string(header.id) +
                    " expected=" + std::to_string(id));
  }
  const std::uint64_t chain = chain_after(previous_chain, bytes.data(), content_hash(bytes));
  if (header.chain_or_number != chain) {
    throw Error(ErrorKind::corrupt,
                "update does not follow the one before it, or was changed: id=" +
                    std::to_string(id) + " chain=" + std::to_string(header.chain_or_number) +
                    " expected=" + std::to_string(chain));
  }
  return chain;
}

std::optional<UpdateHeader> peek_header(std::string_view bytes) {
  if (bytes.size() < update_bytes_min ||
      static_cast<std::uint8_t>(bytes[version_offset]) != format_version) {
    return std::nullopt;
  }
  const auto id = load_little_endian<std::uint64_t>(bytes.data() + id_offset);
  if (id == 0) return std::nullopt;
  return UpdateHeader{id, load_little_endian<std::uint64_t>(bytes.data() + chain_offset)};
}

}  // namespace whycache
