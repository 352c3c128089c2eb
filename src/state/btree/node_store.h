// The storage of tree nodes: an interface between the tree (btree/writer.h) and the space of the
// state file, so that each can be tested alone.
//
// Nodes are addressed by their offset in the file. Readers use NodeReader, the one writer uses
// NodeStore. The writer never changes a node that a reader can reach, only nodes that it allocated
// since the last publish.
#pragma once

#include <cstddef>
#include <cstdint>

#include <whycache/types.h>

namespace whycache {

using NodeOffset = std::uint64_t;  // 0: no node

inline constexpr std::size_t node_size_class_count = 4;
inline constexpr std::size_t node_bytes_of(std::size_t size_class) {
  return std::size_t{1024} << size_class;
}

// The first bytes of every node belong to the store. The tree does not change them.
struct NodeHeader {
  // The list of free or retired nodes. Writer only.
  std::uint64_t next;
  // The id of the update that allocated the node, or retired it. Writer only.
  std::uint64_t stamp;
  // Set by allocate_node(). Readers check it against the bounds of the file.
  std::uint8_t size_class;
  std::uint8_t reserved[7];
};
static_assert(sizeof(NodeHeader) == 24);

class NodeReader {
 public:
  virtual ~NodeReader() = default;
  // Returns the node at `offset`, header first, and stores in `bytes` how many bytes of it may be
  // read, at least one smallest node. Throws Error(corrupt) if no node can be there. Called once
  // per node visited, so it has to be cheap.
  virtual const std::byte* node(NodeOffset offset, std::size_t& bytes) const = 0;
};

class NodeStore : public NodeReader {
 public:
  // Returns a node of node_bytes_of(size_class) bytes, with its header set and the rest undefined.
  // Throws Error(limit).
  virtual NodeOffset allocate_node(std::size_t size_class) = 0;
  // From the next publish on, the node is unreachable. It is reused once no view can reach it; if
  // it was allocated since the last publish, at once.
  virtual void retire_node(NodeOffset offset) = 0;
  // Returns the writable address of a node for which is_private() holds.
  virtual std::byte* writable_node(NodeOffset offset) = 0;
  // Whether this writer allocated the node since the last publish, so that no reader can reach it.
  virtual bool is_private(NodeOffset offset) const = 0;
};

}  // namespace whycache
