// The ordered index of the keys: a copy-on-write B+tree, prefix-compressed, that holds the keys
// themselves and nothing else. It is touched only when a key appears or disappears; values are
// found by the point index.
//
// A tree is its root's offset, 0 for the empty tree. A change copies the path from leaf to root
// (nodes made since the last publish are changed in place) and gives a new root; the old root goes
// on showing the old keys until its nodes are reused. So a reader that pinned an update id walks a
// tree that stands still, and a writer that dies midway leaves nothing but unreachable nodes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

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

}  // namespace whycache
