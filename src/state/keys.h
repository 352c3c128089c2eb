// The ordered index of the keys: a copy-on-write B+tree, prefix-compressed, that holds the keys themselves
// and nothing else. It is touched only when a key appears or disappears; values are found by the point index.
//
// A tree is its root's offset, 0 for the empty tree. A change copies the path from leaf to root (nodes made
// since the last publish are changed in place) and gives a new root; the old root goes on showing the old keys
// until its nodes are reused. So a reader that pinned an update id walks a tree that stands still, and a writer that dies
// midway leaves nothing but unreachable nodes.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "state/node_store.h"

namespace whycache {

class KeysWriter {
 public:
  explicit KeysWriter(NodeStore& nodes) : nodes_(nodes) {}

  // Each returns the new root (which may be the old one). Inserting a key that is there, or erasing one that is
  // not, changes nothing. Keys have 1 to key_bytes_max bytes.
  NodeOffset insert(NodeOffset root, std::string_view key);
  NodeOffset erase(NodeOffset root, std::string_view key);
  // Inserts many keys, strictly ascending; for dense loading into an empty or much smaller tree.
  // Leaves come out well filled when everything goes in at the end of the order.
  NodeOffset insert_sorted(NodeOffset root, const std::vector<std::string_view>& keys);

 private:
  NodeStore& nodes_;
};

// A place in a tree. Every offset, count and length it meets is checked: it throws Error corrupt, it never reads
// beyond a node, and it ends (a damaged tree cannot make it loop).
class KeysCursor {
 public:
  explicit KeysCursor(const NodeReader& nodes) : nodes_(nodes) {}

  // To the first key at or after `key`.
  void seek(NodeOffset root, std::string_view key);
  bool at_end() const { return at_end_; }
  void next();
  // Valid until the cursor moves.
  std::string_view key() const { return key_; }

 private:
  const NodeReader& nodes_;
  bool at_end_ = true;
  std::string key_;
  // the path from root to leaf
};

// Calls `visit` for every node of a tree, for rebuilding the allocator's books; checks order, depth and bounds on the
// way and throws Error corrupt. Returns the number of keys and the height (0 for the empty tree).
struct KeysShape {
  std::uint64_t key_count = 0;
  std::uint64_t height = 0;
};
KeysShape visit_nodes(const NodeReader& nodes, NodeOffset root, const std::function<void(NodeOffset, std::size_t size_class)>& visit);

}  // namespace whycache
