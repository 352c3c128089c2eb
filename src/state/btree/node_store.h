// Where the nodes of the ordered key index live: an interface between the tree (btree/writer.h) and
// the space of the state file, so that each can be tested alone.
//
// Nodes are addressed by their offset in the file. Readers see a node through NodeReader, the one
// writer through NodeStore. A node that a reader can reach is never changed; the writer changes
// only nodes it allocated since the last publish. Sizes are node_bytes_of(size_class).
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

// The first bytes of every node belong to the store; the tree leaves them alone.
struct NodeHeader {
  std::uint64_t next;  // list of free or retired nodes; writer only
  std::uint64_t
      stamp;  // id of the update that made it (live) or that retired it (retired); writer only
  std::uint8_t
      size_class;  // set by allocate; readers may read it, and must not believe it beyond bounds
  std::uint8_t reserved[7];
};
static_assert(sizeof(NodeHeader) == 24);

class NodeReader {
 public:
  virtual ~NodeReader() = default;
  // The node at `offset`, its header first, and in `bytes` how many bytes may be read from there on
  // (at least one smallest node). Throws Error corrupt if the offset cannot be a node. Cheap;
  // called once per node visited.
  virtual const std::byte* node(NodeOffset offset, std::size_t& bytes) const = 0;
};

class NodeStore : public NodeReader {
 public:
  // A node of node_bytes_of(size_class) bytes, header set, the rest undefined. May throw Error
  // limit.
  virtual NodeOffset allocate_node(std::size_t size_class) = 0;
  // Nobody will reach this node from the next publish on; it is reused when no view can hold it.
  // A node made since the last publish may be reused at once.
  virtual void retire_node(NodeOffset offset) = 0;
  // Writable address of a node; only for nodes for which is_private() holds.
  virtual std::byte* writable_node(NodeOffset offset) = 0;
  // Whether this writer made the node since the last publish, so that no reader can see it.
  virtual bool is_private(NodeOffset offset) const = 0;
};

}  // namespace whycache
