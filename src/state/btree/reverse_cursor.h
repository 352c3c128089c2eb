// Reading the keys of a tree in descending order.
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

// A position in a tree, which moves towards its first key. Trusts the bytes as little as
// BTreeCursor: whatever they are, it returns descending keys and reaches an end.
class ReverseBTreeCursor {
 public:
  // With an arena, the keys stay valid as long as it.
  explicit ReverseBTreeCursor(const NodeReader& nodes, ByteArena* arena = nullptr)
      : nodes_(nodes), buffer_(arena) {}

  // Moves to the last key before `end`, or to the last key of all.
  void seek_before(NodeOffset root, const std::optional<std::string>& end);
  bool at_end() const { return !leaf_; }

  // Stores the current key and the previous keys of the same leaf in `keys`, at most `count_max`,
  // and moves past them. Returns their number, 0 only at the end. Without an arena, the keys are
  // valid until the next call.
  std::size_t next_batch(std::vector<std::string_view>& keys, std::size_t count_max = SIZE_MAX);

 private:
  // An inner node on the way from the root, its header checked.
  struct Branch {
    const char* children;
    std::uint32_t child;
  };

  void enter(BTreeNode node, const std::optional<std::string>& end);
  std::optional<BTreeNode> enter_previous_leaf();

  const NodeReader& nodes_;
  unsigned root_level_ = 0;
  std::array<Branch, btree_level_max> path_;  // [level - 1]
  std::optional<BTreeNode> leaf_;             // empty at the end
  unsigned left_ = 0;                         // keys of the leaf that are not returned yet
  std::string last_;                          // the key returned last
  KeyBuffer buffer_;
};

}  // namespace whycache
