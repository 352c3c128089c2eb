// The ordered index of the keys: a copy-on-write B+tree, prefix-compressed, that holds the keys and
// nothing else. It changes only when a key appears or disappears. Values are found by the point
// index.
//
// A tree is the offset of its root, 0 for the empty tree. A change copies the path from leaf to
// root and returns a new root; nodes allocated since the last publish are changed in place. The old
// root shows the old keys until its nodes are reused. A reader that pinned an update id therefore
// walks a tree that does not change, and a writer that dies midway leaves only unreachable nodes.
// The layout of a node is in btree/node.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "state/btree/node_store.h"

namespace whycache {

// Changes trees. Each function returns the new root. It is the old one if nothing changes:
// inserting a present key and erasing an absent one have no effect. Throws Error(invalid) if a key
// is not 1 to tree_key_bytes_max bytes long, Error(corrupt) if the tree is damaged, Error(limit) if
// the store is full.
//
// After an Error, every published tree is intact, with none of its nodes retired. The tree being
// changed is lost. Nodes allocated for it since the last publish leak until the allocator state is
// rebuilt.
class BTreeWriter {
 public:
  explicit BTreeWriter(NodeStore& nodes);
  ~BTreeWriter();

  NodeOffset insert(NodeOffset root, std::string_view key);
  NodeOffset erase(NodeOffset root, std::string_view key);

  // Change many keys, and copy each node on the way once. Throw Error(invalid) if the keys are not
  // strictly ascending. Adjacent keys leave well-filled leaves.
  NodeOffset insert_sorted(NodeOffset root, std::span<const std::string_view> keys);
  NodeOffset erase_sorted(NodeOffset root, std::span<const std::string_view> keys);

 private:
  class TreeEdit;
  TreeEdit& tree_edit();

  NodeStore& nodes_;
  // Created by the first change: most updates overwrite values of keys that are there.
  std::unique_ptr<TreeEdit> tree_edit_;
};

}  // namespace whycache
