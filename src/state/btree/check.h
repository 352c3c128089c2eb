// Visiting all nodes of a tree, and checking the tree on the way.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

#include "state/btree/node_store.h"

namespace whycache {

struct BTreeShape {
  std::uint64_t key_count = 0;
  std::uint64_t height = 0;  // 0 for the empty tree
};

// Calls `visit` for every node of a tree, parents first. Throws Error(corrupt) if the order, the
// levels, the bounds or the separators are wrong. Recovery rebuilds the allocator state with it.
BTreeShape visit_nodes(const NodeReader& nodes, NodeOffset root,
                       const std::function<void(NodeOffset, std::size_t size_class)>& visit);

}  // namespace whycache
