// Reading the keys of a tree in ascending order.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "state/btree/key_buffer.h"
#include "state/btree/node.h"
#include "state/btree/node_store.h"

namespace whycache {

// A position in a tree. The bytes are untrusted: the cursor checks every offset, count and length
// against the node, and every key against the previous one. Whatever the bytes are, it never reads
// beyond a node, returns ascending keys, and reaches an end. In a damaged tree it throws
// Error(corrupt) or returns wrong keys. After an Error it is at the end.
class BTreeCursor {
 public:
  // With an arena, the keys of next_batch() stay valid as long as it.
  explicit BTreeCursor(const NodeReader& nodes, ByteArena* arena = nullptr)
      : nodes_(nodes), buffer_(arena) {}

  // Moves to the first key at or after `key`.
  void seek(NodeOffset root, std::string_view key);
  bool at_end() const { return at_end_; }
  void next();
  // Valid until the cursor moves.
  std::string_view key() const { return {key_.data(), key_bytes_}; }

  // Stores the current key and the following keys of the same leaf in `keys`, at most `count_max`,
  // and moves past them. Returns their number, 0 only at the end. Without an arena, the keys are
  // valid until the next call of next_batch().
  std::size_t next_batch(std::vector<std::string_view>& keys, std::size_t count_max = SIZE_MAX);

  // Returns the number of keys from the current one to `end`, or to the last key, and moves to the
  // end. Takes time in proportion to the number of leaves.
  std::uint64_t count_before(const std::optional<std::string>& end);

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
  unsigned root_level_ = 0;
  std::array<PathNode, btree_level_max> path_;  // [level - 1]

  NodeOffset leaf_ = 0;
  const char* ends_ = nullptr;
  const char* suffixes_ = nullptr;
  std::size_t suffix_bytes_max_ = 0;  // readable from suffixes_ on
  std::uint32_t count_ = 0;
  std::uint32_t prefix_bytes_ = 0;
  std::uint32_t index_ = 0;
  std::uint32_t suffix_end_ = 0;  // of the current suffix
  std::string_view suffix_;       // the current one, in the node
  std::uint64_t head_ = 0;        // of the suffix
  std::uint32_t key_bytes_ = 0;
  // The prefix and the suffix, with room for copy_with_slack().
  std::array<char, tree_key_bytes_max + 16> key_;
  KeyBuffer buffer_;
};

}  // namespace whycache
