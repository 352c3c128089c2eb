// A NodeStore in private memory that keeps strict books. Each node has a piece of memory of its
// own, exactly as large as the node, which is given back when nobody may read it any more:
// AddressSanitizer sees every step beyond a node and every look at one that is gone; without it,
// what is gone is overwritten first.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <map>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include <whycache/error.h>

#include "state/btree/node_store.h"

namespace whycache::testing {

class MemoryNodes final : public NodeStore {
 public:
  // --- The store ---

  const std::byte* node(NodeOffset offset, std::size_t& bytes) const override {
    const Slot& place = this->slot(offset);
    bytes = node_bytes_of(place.size_class);
    return place.bytes.get();
  }
  NodeOffset allocate_node(std::size_t size_class) override {
    if (allocations_left_ == 0) throw Error(ErrorKind::limit, "no room for a node");
    --allocations_left_;
    ++allocation_count_;
    std::vector<NodeOffset>& free = free_.at(size_class);
    NodeOffset offset = 0;
    if (free.empty()) {
      offset = slots_.size() * unit;
      slots_.resize(slots_.size() + node_bytes_of(size_class) / unit);
    } else {
      offset = free.back();
      free.pop_back();
    }
    Slot& place = slots_[offset / unit];
    place = {std::make_unique<std::byte[]>(node_bytes_of(size_class)), size_class, version_, false,
             0};
    std::memset(place.bytes.get(), poison, node_bytes_of(size_class));
    const NodeHeader header{poison, poison, static_cast<std::uint8_t>(size_class), {}};
    std::memcpy(place.bytes.get(), &header, sizeof header);
    return offset;
  }
  void retire_node(NodeOffset offset) override {
    Slot& place = slots_[index_of(offset)];
    // A damaged tree may lead the writer to this; a sound one never does.
    if (place.retired)
      throw Error(ErrorKind::corrupt, "node retired twice: offset=" + std::to_string(offset));
    place.retired = true;
    place.retired_version = version_;
    if (place.created_version == version_) {
      release(offset);
    } else {
      retired_.push_back(offset);
    }
  }
  std::byte* writable_node(NodeOffset offset) override {
    if (!is_private(offset))
      throw std::logic_error("published node is written: offset=" + std::to_string(offset));
    return slots_[offset / unit].bytes.get();
  }
  bool is_private(NodeOffset offset) const override {
    return slot(offset).created_version == version_;
  }

  // --- Versions: what is published, and who holds it ---

  std::uint64_t version() const { return version_; }
  void publish() {
    ++version_;
    release_unpinned();
  }
  // Undoes everything since the last publish, as after a writer's death.
  void roll_back() {
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      Slot& place = slots_[i];
      if (!place.bytes) continue;
      if (place.created_version == version_) {
        release(i * unit);
      } else if (place.retired && place.retired_version == version_) {
        place.retired = false;
      }
    }
    std::erase_if(retired_, [&](NodeOffset offset) { return !slots_[offset / unit].retired; });
    allocations_left_ = SIZE_MAX;
  }
  // Everything reachable as of now stays.
  std::uint64_t pin() {
    publish();
    pins_.insert(version_);
    return version_;
  }
  void unpin(std::uint64_t version) {
    pins_.erase(pins_.find(version));
    release_unpinned();
  }

  // --- Books ---

  // Nodes that are neither retired nor free, with their size classes: what the current tree has to
  // consist of.
  std::map<NodeOffset, std::size_t> live() const {
    std::map<NodeOffset, std::size_t> nodes;
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      if (slots_[i].bytes && !slots_[i].retired) nodes.emplace(i * unit, slots_[i].size_class);
    }
    return nodes;
  }
  std::size_t live_bytes() const {
    std::size_t bytes = 0;
    for (const auto& [offset, size_class] : live()) bytes += node_bytes_of(size_class);
    return bytes;
  }
  std::size_t retired_count() const { return retired_.size(); }
  std::size_t allocation_count() const { return allocation_count_; }
  void allow_allocations(std::size_t count) { allocations_left_ = count; }

  // Damages the tree.
  std::byte* bytes_of(NodeOffset offset) { return slots_.at(offset / unit).bytes.get(); }

 private:
  static constexpr NodeOffset unit = node_bytes_of(0);
  static constexpr unsigned char poison = 0xdd;

  struct Slot {
    std::unique_ptr<std::byte[]> bytes;  // none: not a node, or free
    std::size_t size_class = 0;
    std::uint64_t created_version = 0;
    bool retired = false;
    std::uint64_t retired_version = 0;
  };

  const Slot& slot(NodeOffset offset) const { return slots_[index_of(offset)]; }
  std::size_t index_of(NodeOffset offset) const {
    if (offset % unit != 0 || offset / unit >= slots_.size() || !slots_[offset / unit].bytes) {
      throw Error(ErrorKind::corrupt, "no node at offset=" + std::to_string(offset));
    }
    return offset / unit;
  }
  void release(NodeOffset offset) {
    Slot& place = slots_[offset / unit];
    std::memset(place.bytes.get(), poison, node_bytes_of(place.size_class));
    place.bytes.reset();
    free_[place.size_class].push_back(offset);
  }
  void release_unpinned() {
    const std::uint64_t oldest = pins_.empty() ? version_ : *pins_.begin();
    std::erase_if(retired_, [&](NodeOffset offset) {
      const bool gone = slots_[offset / unit].retired_version < oldest;
      if (gone) release(offset);
      return gone;
    });
  }

  std::uint64_t version_ = 1;
  std::vector<Slot> slots_ = std::vector<Slot>(1);  // offset 0 is no node
  std::array<std::vector<NodeOffset>, node_size_class_count> free_;
  std::vector<NodeOffset> retired_;  // and still readable
  std::multiset<std::uint64_t> pins_;
  std::size_t allocations_left_ = SIZE_MAX;
  std::size_t allocation_count_ = 0;
};

}  // namespace whycache::testing
