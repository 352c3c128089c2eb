// One node of the key index: its layout, reading it, and writing it.
//
// All numbers are little-endian:
//
//    0  24  NodeHeader, the store's
//   24   1  level: 0 for a leaf, else one more than that of the children; at most btree_level_max
//   25   1  0
//   26   2  count: number of keys; at least 1 in a leaf
//   28   2  prefix bytes: how many first bytes all keys of the node share
//   30   2  number of the key inserted last, a hint for splitting; 65535: none
//   32      u16 ends[count]: where each suffix ends, counted from the start of the first
//           u32 children[count + 1], not in a leaf: offset of the child / 1024
//           the prefix
//           the suffixes, in ascending order of the keys, one directly after the other
//
// A key is the prefix and its suffix, 1 to tree_key_bytes_max bytes. In a leaf these are the keys
// of the tree. In an inner node they separate the children: all keys under children[i] are less
// than key i, all under children[i + 1] at or above it. A separator is as short as its neighbours
// allow, and need not be a key of the tree.
//
// A node has the smallest size class that holds it, and begins at a multiple of 1024. A node over
// 1 KiB has fewer than keys_per_large_node keys: the larger classes are for long keys only.
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
// Records of the overflow tree (state/overflow.h) hold a key of the state and fifteen bytes more.
inline constexpr std::size_t tree_key_bytes_max = key_bytes_max + 15;
inline constexpr std::size_t keys_per_large_node = 16;
inline constexpr std::size_t btree_node_header_bytes = 32;
inline constexpr std::size_t btree_node_bytes_max = node_bytes_of(node_size_class_count - 1);
inline constexpr std::uint16_t no_key_inserted = 0xffff;

// The header of the tree, at offset 24, behind that of the store.
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

// The size of a node.
inline constexpr std::size_t btree_node_bytes(unsigned level, std::size_t count,
                                              std::size_t prefix_bytes, std::size_t suffix_bytes) {
  const std::size_t child_bytes = level == 0 ? 0 : (count + 1) * sizeof(ChildNumber);
  return btree_node_header_bytes + count * sizeof(SuffixEnd) + child_bytes + prefix_bytes +
         suffix_bytes;
}

// Whether a node may have that many keys and bytes. A single key of any length fits, so every node
// can be split.
inline constexpr bool btree_node_fits(std::size_t count, std::size_t bytes) {
  return bytes <= (count < keys_per_large_node ? btree_node_bytes_max : node_bytes_of(0));
}
static_assert(btree_node_fits(3, btree_node_bytes(1, 3, 0, 3 * tree_key_bytes_max)));

inline constexpr std::size_t btree_node_size_class(std::size_t bytes) {
  return bytes <= node_bytes_of(0)
             ? 0
             : static_cast<std::size_t>(std::bit_width((bytes - 1) / node_bytes_of(0)));
}
static_assert(btree_node_size_class(1024) == 0 && btree_node_size_class(1025) == 1 &&
              btree_node_size_class(2048) == 1 && btree_node_size_class(2049) == 2 &&
              btree_node_size_class(8192) == 3);

// A key's head: its first eight bytes as a number that compares as they do, padded with zeros. If
// two keys have the same head and one has at most eight bytes, the shorter key is less.
inline constexpr std::size_t key_head_bytes = 8;

inline std::uint64_t load_big_endian(const char* from) {
  return __builtin_bswap64(load_little_endian<std::uint64_t>(from));
}

// The head of a suffix in a node. At least eight bytes before it must be readable, as they are for
// every suffix of a node.
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

// Compares two keys with the same head: less than 0, 0, more than 0.
inline int compare_behind_heads(std::string_view a, std::string_view b) {
  if (a.size() > key_head_bytes && b.size() > key_head_bytes) {
    return a.substr(key_head_bytes).compare(b.substr(key_head_bytes));
  }
  return a.size() < b.size() ? -1 : a.size() > b.size();
}

// The length of the longest common prefix.
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

// Where a key belongs among the keys of a node.
struct NodePosition {
  unsigned index;   // the number of keys that are less
  bool is_equal;    // the key at `index` is equal
  bool has_prefix;  // the key begins with the prefix of the node
};

inline void prefetch_node(const char* node) {
  for (std::size_t line = 0; line < node_bytes_of(0); line += 64) __builtin_prefetch(node + line);
}
inline void prefetch_node(const NodeReader& nodes, NodeOffset offset) {
  std::size_t readable = 0;
  prefetch_node(reinterpret_cast<const char*>(nodes.node(offset, readable)));
}

// A node in memory, which may be damaged. The constructor checks the header, and each accessor what
// it reads. All of them throw Error(corrupt). Returned views are valid until the node is changed.
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

  // For the writer: a node whose bytes it has written itself.
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

  // Offsets of a suffix, counted from the start of the first.
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

  // The size of the node's contents.
  std::size_t bytes() const {
    return btree_node_bytes(level(), count(), header_.prefix_bytes, suffix_bytes());
  }
  // The size class that the store allocated.
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
  // The number of the child that a key belongs under.
  unsigned child_index_of(std::string_view key) const {
    const NodePosition position = find(key);
    return position.index + (position.is_equal ? 1 : 0);
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
    if (suffixes_at > readable || header_.prefix_bytes > tree_key_bytes_max)
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

// Writes a node of these keys, which all share the first `prefix_bytes`. `children` is empty in a
// leaf.
void write_btree_node(char* to, unsigned level, std::span<const std::string_view> keys,
                      std::span<const NodeOffset> children, std::size_t prefix_bytes,
                      std::uint16_t last_inserted);

// A key to insert before key number `index` of a node. In an inner node, `child` follows it.
struct NewKey {
  std::size_t index;
  std::string_view key;
  NodeOffset child;
};

// Writes `from` with these keys added. They ascend, and begin with the prefix of `from`. `to` may
// be the address of `from`.
void write_with_keys(const BTreeNode& from, char* to, std::span<const NewKey> added);

// Writes the leaf `from` without the keys at these indexes, which ascend and are not all. `to` may
// be the address of `from`.
void write_without_keys(const BTreeNode& from, char* to, std::span<const std::size_t> erased);

void write_child(char* to, std::size_t count, std::size_t index, NodeOffset child);

}  // namespace whycache
