// The ordered index of the keys: a copy-on-write B+tree, prefix-compressed, that holds the keys
// themselves and nothing else. It is touched only when a key appears or disappears; values are
// found by the point index.
//
// A tree is its root's offset, 0 for the empty tree. A change copies the path from leaf to root
// (nodes made since the last publish are changed in place) and gives a new root; the old root goes
// on showing the old keys until its nodes are reused. So a reader that pinned an update id walks a
// tree that stands still, and a writer that dies midway leaves nothing but unreachable nodes.
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

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "state/btree/node.h"
#include "state/btree/node_store.h"

namespace whycache {

// Changes trees. Each function returns the new root, which may be the old one: inserting a key that
// is there, or erasing one that is not, changes nothing. Throws Error invalid for a key that is not
// 1 to key_bytes_max bytes long, corrupt for a damaged tree, limit from the store.
//
// After an Error every tree that was published still stands, with nothing of it retired, but the
// tree that was being changed is lost, and what was made for it since the last publish leaks until
// the store's books are rebuilt.
class BTreeWriter {
 public:
  explicit BTreeWriter(NodeStore& nodes);
  ~BTreeWriter();

  NodeOffset insert(NodeOffset root, std::string_view key);
  NodeOffset erase(NodeOffset root, std::string_view key);

  // Many keys, strictly ascending (else Error invalid), each node on the way copied once. Leaves
  // come out well filled when the keys follow one another, in an empty tree or in any one place of
  // another.
  NodeOffset insert_sorted(NodeOffset root, std::span<const std::string_view> keys);
  NodeOffset erase_sorted(NodeOffset root, std::span<const std::string_view> keys);

 private:
  class TreeEdit;
  std::unique_ptr<TreeEdit> tree_edit_;
};

// A place in a tree. It believes nothing it reads: every offset, count and length is compared with
// the bytes of the node, and every key with the one before it. So it never reads beyond a node,
// gives keys in ascending order only, and comes to an end, whatever the bytes are; a damaged tree
// gives Error corrupt or wrong keys. After an Error it is at the end.
class BTreeCursor {
 public:
  explicit BTreeCursor(const NodeReader& nodes) : nodes_(nodes) {}

  // To the first key at or after `key`.
  void seek(NodeOffset root, std::string_view key);
  bool at_end() const { return at_end_; }
  void next();
  // Valid until the cursor moves.
  std::string_view key() const { return {key_.data(), key_bytes_}; }

  // Fills `keys` with the key it stands on and those that follow in the same leaf, `count_max` at
  // most, and moves behind them. Returns how many: 0 at the end only. They are valid until the next
  // seek or next_batch.
  std::size_t next_batch(std::vector<std::string_view>& keys, std::size_t count_max = SIZE_MAX);

 private:
  // An inner node on the way from the root, its header checked.
  struct PathNode {
    const char* children;
    std::uint32_t child;
    std::uint32_t count;
  };

  void advance(std::string_view last);
  void next_leaf(std::string_view last);
  void enter_leaf(const BTreeNode& leaf, unsigned index);
  void load_suffix();
  void check_ascending(std::string_view before, std::uint64_t head) const;
  void load_key();

  const NodeReader& nodes_;
  bool at_end_ = true;
  unsigned height_ = 0;                         // of the path: the level of the root
  std::array<PathNode, btree_level_max> path_;  // [level - 1]

  NodeOffset leaf_ = 0;
  const char* ends_ = nullptr;
  const char* suffixes_ = nullptr;
  std::size_t suffix_bytes_max_ = 0;  // how much may be read there
  std::uint32_t count_ = 0;
  std::uint32_t prefix_bytes_ = 0;
  std::uint32_t index_ = 0;
  std::uint32_t suffix_end_ = 0;  // of the suffix that the cursor stands on
  std::string_view suffix_;       // in the node
  std::uint64_t head_ = 0;        // of the suffix
  std::uint32_t key_bytes_ = 0;
  std::array<char, key_bytes_max + 16>
      key_;  // the prefix and the suffix; room for copying a bit more
  std::vector<char> batch_;
};

// Calls `visit` for every node of a tree, parents first, for rebuilding the allocator's books;
// compares order, levels, bounds and separators on the way and throws Error corrupt. The height is
// 0 for the empty tree.
struct BTreeShape {
  std::uint64_t key_count = 0;
  std::uint64_t height = 0;
};
BTreeShape visit_nodes(const NodeReader& nodes, NodeOffset root,
                       const std::function<void(NodeOffset, std::size_t size_class)>& visit);

}  // namespace whycache
