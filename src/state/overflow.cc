#include "state/overflow.h"

#include "state/btree/cursor.h"
#include "state/btree/mapped_nodes.h"
#include "state/btree/node.h"

namespace whycache {
namespace {

static_assert(tree_key_bytes_max == key_bytes_max + overflow_record_extra_bytes);

void append_big_endian(std::string& to, std::uint64_t number, std::size_t bytes) {
  for (std::size_t i = bytes; i-- > 0;) to.push_back(static_cast<char>(number >> 8 * i));
}

std::uint64_t read_big_endian(std::string_view bytes) {
  std::uint64_t number = 0;
  for (const char byte : bytes) number = number << 8 | static_cast<unsigned char>(byte);
  return number;
}

// A record without the offset of its entry.
std::string encode_front(std::uint64_t hash, std::string_view key) {
  std::string bytes;
  bytes.reserve(key.size() + overflow_record_extra_bytes);
  append_big_endian(bytes, hash, sizeof hash);
  append_big_endian(bytes, key.size(), sizeof(std::uint16_t));
  return bytes.append(key);
}

LookupResult look_up_in_tree(const Mapping& mapping, const MappedBytes& bytes, std::uint64_t hash,
                             std::string_view key, UpdateId id) {
  const MappedNodes nodes(mapping);
  const std::uint64_t root = mapping.header().overflow_root.load(std::memory_order_acquire);
  const std::uint64_t offset = find_overflow_record(nodes, root, hash, key);
  if (offset == 0) return {LookupStatus::not_found, {}};
  Entry entry;
  if (!bytes.load_entry(offset, entry) || entry.key() != key) return {LookupStatus::torn, {}};
  const LookupStatus found = find_version_at(bytes, entry, key, id);
  if (found != LookupStatus::found) return {found, {}};
  return {LookupStatus::found, entry.value(), entry.data};
}

}  // namespace

std::string encode(const OverflowRecord& record) {
  std::string bytes = encode_front(record.hash, record.key);
  append_big_endian(bytes, record.offset >> offset_unit_shift, overflow_offset_bytes);
  return bytes;
}

std::optional<OverflowRecord> decode_overflow_record(std::string_view bytes) {
  if (bytes.size() <= overflow_record_extra_bytes) return std::nullopt;
  OverflowRecord record{};
  record.hash = read_big_endian(bytes.substr(0, sizeof record.hash));
  record.key = bytes.substr(sizeof record.hash + sizeof(std::uint16_t),
                            bytes.size() - overflow_record_extra_bytes);
  record.offset = read_big_endian(bytes.substr(bytes.size() - overflow_offset_bytes))
                  << offset_unit_shift;
  const std::uint64_t key_bytes =
      read_big_endian(bytes.substr(sizeof record.hash, sizeof(std::uint16_t)));
  if (key_bytes != record.key.size() || record.offset == 0) return std::nullopt;
  return record;
}

std::string overflow_seek_key(std::uint64_t hash) {
  std::string bytes;
  append_big_endian(bytes, hash, sizeof hash);
  return bytes;
}

std::uint64_t find_overflow_record(const NodeReader& nodes, NodeOffset root, std::uint64_t hash,
                                   std::string_view key) {
  const std::string front = encode_front(hash, key);
  BTreeCursor cursor(nodes);
  cursor.seek(root, front);
  if (cursor.at_end() || cursor.key().size() != front.size() + overflow_offset_bytes ||
      !cursor.key().starts_with(front))
    return 0;
  return read_big_endian(cursor.key().substr(front.size())) << offset_unit_shift;
}

LookupResult look_up_everywhere(const Mapping& mapping, std::uint64_t hash, std::string_view key,
                                UpdateId id) {
  const Header& header = mapping.header();
  const MappedBytes bytes(mapping);
  const auto page_now = [&] {
    return find_index_page(bytes, header.index_directory.load(std::memory_order_acquire), hash);
  };
  for (;;) {
    const IndexWord* const page = page_now();
    if (page == nullptr) return {LookupStatus::torn, {}};
    LookupResult result = look_up(bytes, page, hash, key, id);
    if (result.status == LookupStatus::overflow)
      result = look_up_in_tree(mapping, bytes, hash, key, id);
    if (result.status == LookupStatus::found) return result;
    // The writer replaces the page first, and then removes the records of keys that have found room
    // in the new one. If the old page and a later tree were searched, search again.
    if (page_now() == page) return result;
  }
}

}  // namespace whycache
