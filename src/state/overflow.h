// The overflow tree of the point index: where entries are whose eight buckets are full.
//
// The hash seed is in the file, so a user who may read the file can name any number of keys with
// one hash. A bucket and the seven after it hold 64 of them. The others have a record each in a
// tree like the key index (btree/writer.h), which no choice of keys unbalances. Their look-ups take
// longer; those of all other keys do not change. docs/decisions/overflow-tree.md.
//
// Invariants:
// - The home bucket of a key with a record, and the seven buckets after it, have no empty word. A
//   look-up that stops at an empty word therefore never needs the tree.
// - The filter of the key's page holds its bits.
// - A key has a record or an index word, not both, except in an update in progress or unfinished.
//   Look-ups search the buckets first.
//
// A record is a key of the tree. Its numbers are big-endian, so that records are ordered by hash,
// and those of an index page are adjacent:
//
//    0   8  hash
//    8   2  bytes of the key
//   10      key
//       5   offset / 8 of the newest entry
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include "state/btree/node_store.h"
#include "state/file/mapping.h"
#include "state/index/lookup.h"

namespace whycache {

inline constexpr std::size_t overflow_offset_bytes = 5;
inline constexpr std::size_t overflow_record_extra_bytes =
    sizeof(std::uint64_t) + sizeof(std::uint16_t) + overflow_offset_bytes;
static_assert(word_offset_bits <= 8 * overflow_offset_bytes);

struct OverflowRecord {
  std::uint64_t hash;
  std::string_view key;
  std::uint64_t offset;
};

std::string encode(const OverflowRecord& record);
// Returns nullopt if the bytes are no record. The key points into them.
std::optional<OverflowRecord> decode_overflow_record(std::string_view bytes);
// The first bytes of the records of hashes from `hash` on: where to seek to.
std::string overflow_seek_key(std::uint64_t hash);

// Returns the offset of the newest entry of `key` according to its record, or 0 if there is none.
// Throws Error(corrupt).
std::uint64_t find_overflow_record(const NodeReader& nodes, NodeOffset root, std::uint64_t hash,
                                   std::string_view key);

// look_up() of index/lookup.h, in the buckets and in the overflow tree. For callers with a pin, or
// with the writer lock: the nodes of the tree must not be reused meanwhile. Returns torn, but never
// overflow. Throws Error(corrupt).
LookupResult look_up_everywhere(const Mapping& mapping, std::uint64_t hash, std::string_view key,
                                UpdateId id);

}  // namespace whycache
