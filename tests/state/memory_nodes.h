// A NodeStore in private memory with strict accounting. Each node has an allocation of exactly its
// size, which is freed once no pinned version can reach it. AddressSanitizer therefore reports
// every access beyond a node and every use of a freed one. Without it, freed nodes are overwritten
// first.
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
  // --- NodeStore ---

  const std::byte* node(NodeOffset offset, std::size_t& bytes) const override {
    const Slot& found = slot_at(offset);
    bytes = node_bytes_of(found.size_class);
    return found.bytes.get();
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
    Slot& slot = slots_[offset / unit];
    slot = {std::make_unique<std::byte[]>(node_bytes_of(size_class)), size_class, version_, false,
            0};
    std::memset(slot.bytes.get(), poison, node_bytes_of(size_class));
    const NodeHeader header{poison, poison, static_cast<std::uint8_t>(size_class), {}};
    std::memcpy(slot.bytes.get(), &header, sizeof header);
    return offset;
  }
  void retire_node(NodeOffset offset) override {
    Slot& slot = slots_[index_of(offset)];
    // Only a damaged tree leads the writer to this.
    if (slot.retired)
      throw Error(ErrorKind::corrupt, "node retired twice: offset=" + std::to_string(offset));
    slot.retired = true;
    slot.retired_version = version_;
    if (slot.created_version == version_) {
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
    return slot_at(offset).created_version == version_;
  }

  // --- Versions: published and pinned ---

  std::uint64_t version() const { return version_; }
  void publish() {
    ++version_;
    release_unpinned();
  }
  // Undoes all changes since the last publish, as recovery does after a writer's death.
  void roll_back() {
    for (std::size_t i = 0; i < slots_.size(); ++i) {
      Slot& slot = slots_[i];
      if (!slot.bytes) continue;
      if (slot.created_version == version_) {
        release(i * unit);
      } else if (slot.retired && slot.retired_version == version_) {
        slot.retired = false;
      }
    }
    std::erase_if(retired_, [&](NodeOffset offset) { return !slots_[offset / unit].retired; });
    allocations_left_ = SIZE_MAX;
  }
  // Publishes, and keeps all nodes that are reachable now until unpin().
  std::uint64_t pin() {
    publish();
    pins_.insert(version_);
    return version_;
  }
  void unpin(std::uint64_t version) {
    pins_.erase(pins_.find(version));
    release_unpinned();
  }

  // --- Accounting ---

  // Nodes that are neither retired nor free, with their size classes. The current tree has to
  // consist of exactly these.
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

  // For tests that damage the tree.
  std::byte* bytes_of(NodeOffset offset) { return slots_.at(offset / unit).bytes.get(); }

 private:
  static constexpr NodeOffset unit = node_bytes_of(0);
  static constexpr unsigned char poison = 0xdd;

  struct Slot {
    std::unique_ptr<std::byte[]> bytes;  // null: free, or not the start of a node
    std::size_t size_class = 0;
    std::uint64_t created_version = 0;
    bool retired = false;
    std::uint64_t retired_version = 0;
  };

  const Slot& slot_at(NodeOffset offset) const { return slots_[index_of(offset)]; }
  std::size_t index_of(NodeOffset offset) const {
    if (offset % unit != 0 || offset / unit >= slots_.size() || !slots_[offset / unit].bytes) {
      throw Error(ErrorKind::corrupt, "no node at offset=" + std::to_string(offset));
    }
    return offset / unit;
  }
  void release(NodeOffset offset) {
    Slot& slot = slots_[offset / unit];
    std::memset(slot.bytes.get(), poison, node_bytes_of(slot.size_class));
    slot.bytes.reset();
    free_[slot.size_class].push_back(offset);
  }
  void release_unpinned() {
    const std::uint64_t oldest = pins_.empty() ? version_ : *pins_.begin();
    std::erase_if(retired_, [&](NodeOffset offset) {
      const bool unreachable = slots_[offset / unit].retired_version < oldest;
      if (unreachable) release(offset);
      return unreachable;
    });
  }

  std::uint64_t version_ = 1;
  std::vector<Slot> slots_ = std::vector<Slot>(1);  // offset 0 is no node
  std::array<std::vector<NodeOffset>, node_size_class_count> free_;
  std::vector<NodeOffset> retired_;  // nodes that a pinned version may still reach
  std::multiset<std::uint64_t> pins_;
  std::size_t allocations_left_ = SIZE_MAX;
  std::size_t allocation_count_ = 0;
};

}  // namespace whycache::testing
