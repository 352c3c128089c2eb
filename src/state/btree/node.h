// One node of the ordered key index: its bytes, read and edited.
//
// Nodes, all numbers little-endian:
//
//    0  24  NodeHeader, the store's
//   24   1  level: 0 for a leaf, else one more than that of the children; at most keys_level_max
//   25   1  0
//   26   2  count: how many keys; at least 1 in a leaf
//   28   2  prefix bytes: how many bytes all keys of the node begin with
//   30   2  the key inserted last, for choosing where to split; 65535: none. Any value will do.
//   32      u16 ends[count]: where each suffix ends, counted from the start of the first
//           u32 children[count + 1], not in a leaf: offset of the child / 1024
//           the prefix
//           the suffixes, in ascending order of the keys, one directly after the other
//
// A key is the prefix and its suffix, 1 to key_bytes_max bytes. In a leaf these are the keys of the
// tree. In an inner node they separate the children: all keys under children[i] are less than key
// i, all under children[i + 1] at or above it. A separator is as short as its neighbours allow, and
// need not be a key of the tree. All leaves have level 0.
//
// Nodes are of the smallest size class that holds them, and all stand at multiples of 1024. A node
// over 1 KiB has less than keys_per_large_node keys: larger classes are for long keys only.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string_view>

#include "base/bytes.h"
#include "state/btree/node_store.h"

namespace whycache {

inline constexpr unsigned btree_level_max = 31;
inline constexpr std::size_t keys_per_large_node = 16;
inline constexpr std::size_t btree_node_header_bytes = 32;
inline constexpr std::size_t btree_node_bytes_max = node_bytes_of(node_size_class_count - 1);
inline constexpr std::uint16_t no_key_inserted = 0xffff;

// What lies at offset 24, after the store's header.
struct BTreeNodeHeader {
  std::uint8_t level;
  std::uint8_t reserved;
  std::uint16_t count;
  std::uint16_t prefix_bytes;
  std::uint16_t last_inserted;
};
static_assert(sizeof(BTreeNodeHeader) == 8);
static_assert(sizeof(NodeHeader) + sizeof(BTreeNodeHeader) == btree_node_header_bytes);
static_assert(offsetof(NodeHeader, size_class) == 16);

using SuffixEnd = std::uint16_t;
using ChildNumber = std::uint32_t;
inline constexpr NodeOffset child_unit_bytes = 1024;
static_assert(btree_node_bytes_max <= UINT16_MAX);  // what an end has to hold

// How many bytes a node has.
inline constexpr std::size_t btree_node_bytes(unsigned level, std::size_t count,
                                              std::size_t prefix_bytes, std::size_t suffix_bytes) {
  const std::size_t child_bytes = level == 0 ? 0 : (count + 1) * sizeof(ChildNumber);
  return btree_node_header_bytes + count * sizeof(SuffixEnd) + child_bytes + prefix_bytes +
         suffix_bytes;
}

// Whether a node of that many keys and bytes may be. A single key of any length may: every node can
// be split.
inline constexpr bool btree_node_fits(std::size_t count, std::size_t bytes) {
  return bytes <= (count < keys_per_large_node ? btree_node_bytes_max : node_bytes_of(0));
}
static_assert(btree_node_fits(3, btree_node_bytes(1, 3, 0, 3 * key_bytes_max)));

inline constexpr std::size_t btree_node_size_class(std::size_t bytes) {
  return bytes <= node_bytes_of(0)
             ? 0
             : static_cast<std::size_t>(std::bit_width((bytes - 1) / node_bytes_of(0)));
}
static_assert(btree_node_size_class(1024) == 0 && btree_node_size_class(1025) == 1 &&
              btree_node_size_class(2048) == 1 && btree_node_size_class(2049) == 2 &&
              btree_node_size_class(8192) == 3);

// A key's head: its first eight bytes as a number that compares as they do. Of two keys with the
// same head, at least one of which has at most eight bytes, the shorter is less.
inline constexpr std::size_t key_head_bytes = 8;

inline std::uint64_t load_big_endian(const char* from) {
  return __builtin_bswap64(load_little_endian<std::uint64_t>(from));
}

// Of bytes that have at least eight readable ones before them, as all suffixes of a node do.
inline std::uint64_t head_in_node(const char* begin, std::size_t bytes) {
  const std::size_t missing = bytes < key_head_bytes ? key_head_bytes - bytes : 0;
  return load_big_endian(begin - missing)
         << missing * 4 << missing * 4;  // in two steps: 64 at once would be undefined
}

inline std::uint64_t head_of(std::string_view key) {
  if (key.size() >= key_head_bytes) return load_big_endian(key.data());
  std::uint64_t head = 0;
  for (std::size_t i = 0; i < key.size(); ++i) {
    head |= std::uint64_t{static_cast<unsigned char>(key[i])} << (56 - 8 * i);
  }
  return head;
}

// Less than 0, 0, more than 0; for keys of the same head.
inline int compare_behind_heads(std::string_view a, std::string_view b) {
  if (a.size() > key_head_bytes && b.size() > key_head_bytes) {
    return a.substr(key_head_bytes).compare(b.substr(key_head_bytes));
  }
  return a.size() < b.size() ? -1 : a.size() > b.size();
}

// How many bytes two keys have in common from the front.
inline std::size_t shared_prefix_bytes(std::string_view a, std::string_view b) {
  const std::size_t most = std::min(a.size(), b.size());
  std::size_t i = 0;
  for (; i + 8 <= most; i += 8) {
    const std::uint64_t differing = load_little_endian<std::uint64_t>(a.data() + i) ^
                                    load_little_endian<std::uint64_t>(b.data() + i);
    if (differing != 0) return i + static_cast<std::size_t>(std::countr_zero(differing)) / 8;
  }
  while (i < most && a[i] == b[i]) ++i;
  return i;
}

[[noreturn, gnu::cold, gnu::noinline]] void throw_corrupt_node(NodeOffset node, const char* what);

// Where a key belongs among those of a node.
struct NodePosition {
  unsigned index;   // how many keys are less
  bool is_equal;    // the key at `index` is equal
  bool has_prefix;  // it begins with the prefix of the node
};

inline void prefetch_node(const char* node) {
  for (std::size_t line = 0; line < node_bytes_of(0); line += 64) __builtin_prefetch(node + line);
}
inline void prefetch_node(const NodeReader& nodes, NodeOffset offset) {
  std::size_t readable = 0;
  prefetch_node(reinterpret_cast<const char*>(nodes.node(offset, readable)));
}

// A node as it lies in memory, its header checked; what else it says is checked when it is read.
// Everything throws Error corrupt. Views into it are good until the node is changed.
class BTreeNode {
 public:
  // The root of a tree, at any level up to btree_level_max.
  static BTreeNode root(const NodeReader& nodes, NodeOffset offset) {
    const BTreeNode node(nodes, offset);
    if (node.level() > btree_level_max) node.throw_corrupt("a wrong level");
    return node;
  }
  // A child of a node at `level` + 1.
  static BTreeNode child_at_level(const NodeReader& nodes, NodeOffset offset, unsigned level) {
    const BTreeNode node(nodes, offset);
    if (node.level() != level) node.throw_corrupt("a wrong level");
    return node;
  }

  // For the writer: a node it is editing, of which it knows that it is sound.
  BTreeNode(const char* data, NodeOffset offset, std::size_t readable)
      : offset_(offset), data_(data) {
    parse(readable);
  }

  NodeOffset offset() const { return offset_; }
  const char* data() const { return data_; }
  unsigned level() const { return header_.level; }
  bool is_leaf() const { return header_.level == 0; }
  unsigned count() const { return header_.count; }
  unsigned last_inserted() const { return header_.last_inserted; }
  std::string_view prefix() const { return {data_ + prefix_offset(), header_.prefix_bytes}; }

  // Where suffix i begins and ends, counted from the first.
  struct SuffixRange {
    std::size_t begin;
    std::size_t end;
    std::size_t size() const { return end - begin; }
  };
  SuffixRange suffix_range(std::size_t i) const {
    const std::size_t begin = i == 0 ? 0 : suffix_end(i - 1);
    const std::size_t end = suffix_end(i);
    if (begin > end || end > suffix_bytes_max_) [[unlikely]]
      throw_corrupt("a suffix beyond its end");
    return {begin, end};
  }
  std::string_view suffix(std::size_t i) const {
    const SuffixRange bytes = suffix_range(i);
    return {suffixes_ + bytes.begin, bytes.size()};
  }
  std::size_t suffix_bytes() const {
    const std::size_t bytes = count() == 0 ? 0 : suffix_end(count() - 1);
    if (bytes > suffix_bytes_max_) [[unlikely]]
      throw_corrupt("suffixes beyond its end");
    return bytes;
  }
  NodeOffset child(std::size_t i) const {
    return child_unit_bytes *
           load_little_endian<ChildNumber>(data_ + children_offset() + i * sizeof(ChildNumber));
  }

  // All of its bytes.
  std::size_t bytes() const {
    return btree_node_bytes(level(), count(), header_.prefix_bytes, suffix_bytes());
  }
  // What the store made of it.
  std::size_t size_class() const {
    const auto size_class = static_cast<std::uint8_t>(data_[offsetof(NodeHeader, size_class)]);
    if (size_class >= node_size_class_count || node_bytes_of(size_class) > readable_bytes_)
      throw_corrupt("a wrong size class");
    return size_class;
  }

  NodePosition find(std::string_view key) const {
    const std::size_t common = std::min<std::size_t>(header_.prefix_bytes, key.size());
    const int order = key.substr(0, common).compare(prefix().substr(0, common));
    if (order != 0 || common < header_.prefix_bytes) return {order > 0 ? count() : 0, false, false};
    const std::string_view rest = key.substr(common);
    const std::uint64_t head = head_of(rest);
    unsigned index = 0;
    unsigned left = count();
    while (left > 1) {
      const unsigned half = left / 2;
      index += is_less(index + half - 1, rest, head) ? half : 0;
      left -= half;
    }
    if (left == 1 && is_less(index, rest, head)) ++index;
    return {index, index < count() && suffix(index) == rest, true};
  }
  // Which child a key is under.
  unsigned child_index_of(std::string_view key) const {
    const NodePosition place = find(key);
    return place.index + (place.is_equal ? 1 : 0);
  }

  std::size_t children_offset() const {
    return btree_node_header_bytes + count() * sizeof(SuffixEnd);
  }
  std::size_t prefix_offset() const { return btree_node_bytes(level(), count(), 0, 0); }
  const char* suffixes() const { return suffixes_; }
  std::size_t suffix_bytes_max() const { return suffix_bytes_max_; }

  [[noreturn, gnu::cold, gnu::noinline]] void throw_corrupt(const char* what) const {
    throw_corrupt_node(offset_, what);
  }

 private:
  BTreeNode(const NodeReader& nodes, NodeOffset offset) : offset_(offset) {
    std::size_t readable = 0;
    data_ = reinterpret_cast<const char*>(nodes.node(offset, readable));
    prefetch_node(data_);
    parse(std::min(readable, btree_node_bytes_max));
  }

  void parse(std::size_t readable) {
    readable_bytes_ = readable;
    std::memcpy(&header_, data_ + sizeof(NodeHeader), sizeof header_);
    const std::size_t suffixes_at = prefix_offset() + header_.prefix_bytes;
    if (suffixes_at > readable || header_.prefix_bytes > key_bytes_max)
      throw_corrupt("too many keys or too long a prefix");
    if (is_leaf() && count() == 0) throw_corrupt("no keys in a leaf");
    suffixes_ = data_ + suffixes_at;
    suffix_bytes_max_ = readable - suffixes_at;
  }
  std::size_t suffix_end(std::size_t i) const {
    return load_little_endian<SuffixEnd>(data_ + btree_node_header_bytes + i * sizeof(SuffixEnd));
  }
  bool is_less(std::size_t i, std::string_view rest, std::uint64_t head) const {
    const SuffixRange bytes = suffix_range(i);
    const std::uint64_t other = head_in_node(suffixes_ + bytes.begin, bytes.size());
    if (other == head) [[unlikely]] {
      return compare_behind_heads({suffixes_ + bytes.begin, bytes.size()}, rest) < 0;
    }
    return other < head;
  }

  NodeOffset offset_;
  const char* data_ = nullptr;
  const char* suffixes_ = nullptr;
  std::size_t suffix_bytes_max_ = 0;
  std::size_t readable_bytes_ = 0;
  BTreeNodeHeader header_;
};

// --- Writing nodes. `to` has room for the result; the store's header in it stays as it is. ---

// Writes a node of these keys, which all begin with the first `prefix_bytes` of the first; in a
// leaf `children` is empty.
void write_btree_node(char* to, unsigned level, std::span<const std::string_view> keys,
                      std::span<const NodeOffset> children, std::size_t prefix_bytes,
                      std::uint16_t last_inserted);

// A key that comes to a node: before its key number `index`, and in an inner node with the child
// behind it.
struct NewKey {
  std::size_t index;
  std::string_view key;
  NodeOffset child;
};

// Writes `from` with these keys, in ascending order, all with its prefix. `to` may be where `from`
// lies.
void write_with_keys(const BTreeNode& from, char* to, std::span<const NewKey> added);

// Writes the leaf `from` without its keys of these numbers, ascending, and not all. `to` may be
// where `from` lies.
void write_without_keys(const BTreeNode& from, char* to, std::span<const std::size_t> gone);

void write_child(char* to, std::size_t count, std::size_t index, NodeOffset child);

}  // namespace whycache
