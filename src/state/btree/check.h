// Visiting all nodes of a tree, and checking the tree on the way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "state/btree/node_store.h"

namespace whycache {

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
