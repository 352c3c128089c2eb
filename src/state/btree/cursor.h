// Reading the keys of a tree in ascending order.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

#include "state/btree/node.h"
#include "state/btree/node_store.h"

namespace whycache {

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

}  // namespace whycache
