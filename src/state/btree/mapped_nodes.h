// Reads the nodes of the key index from a mapped file.
#pragma once

#include "state/btree/node_store.h"
#include "state/errors.h"
#include "state/file/mapping.h"

namespace whycache {

class MappedNodes final : public NodeReader {
 public:
  explicit MappedNodes(const Mapping& mapping) : mapping_(mapping) {}

  const std::byte* node(NodeOffset offset, std::size_t& bytes) const override {
    const std::uint64_t usable = mapping_.usable_bytes();
    if (offset < header_page_bytes || offset % node_bytes_of(0) != 0 || offset >= usable) {
      // The file may have grown since this process asked for its size.
      if (offset < header_page_bytes || offset % node_bytes_of(0) != 0 ||
          offset >= mapping_.refresh_usable_bytes()) {
        throw corrupt_state("no node at offset=" + std::to_string(offset) +
                            " path=" + mapping_.path());
      }
    }
    const std::byte* const address = mapping_.base() + offset;
    const std::size_t size_class = reinterpret_cast<const NodeHeader*>(address)->size_class;
    const std::uint64_t segment_left = segment_bytes - offset % segment_bytes;
    bytes = size_class < node_class_count
                ? std::min<std::uint64_t>(node_bytes_of(size_class), segment_left)
                : node_bytes_of(0);
    return address;
  }

 private:
  const Mapping& mapping_;
};

}  // namespace whycache
