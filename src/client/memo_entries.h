// The entries of one shard of a memo, found by hash: open addressing with linear probing, at most
// half full, without tombstones (D. Knuth, "The Art of Computer Programming", volume 3, section
// 6.4, algorithms L and R). The CLOCK algorithm picks the entry that makes room for another.
//
// Threads: the caller locks.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "state/state.h"

namespace whycache::detail {

// A hit needs the first cache line of it, if the key has at most 15 bytes.
struct alignas(64) MemoEntry {
  std::string key;
  std::shared_ptr<const void> object;
  // The state had `version` at this position. While it has not moved on, that need not be asked.
  StatePosition checked;
  // The version of the value that `object` was decoded from.
  EntryVersion version;
  // The last value that could not be decoded, while `object` is of an earlier one.
  std::optional<EntryVersion> failed{};
};

// The functions that take a key take its hash, too, of which they use 32 bits.
class MemoEntries {
 public:
  std::size_t size() const noexcept { return size_; }

  // Returns the entry of the key and notes that it is used, or null.
  MemoEntry* find(std::uint64_t hash, std::string_view key) noexcept {
    Slot* const slot = find_slot(static_cast<std::uint32_t>(hash), key);
    if (slot == nullptr) return nullptr;
    slot->was_used = true;
    return slot->entry.get();
  }

  // Adds an entry whose key has none. Throws std::bad_alloc, without effect.
  void insert(std::uint64_t hash, std::unique_ptr<MemoEntry> entry) {
    if (2 * (size_ + 1) > slots_.size()) grow();
    place({std::move(entry), static_cast<std::uint32_t>(hash), true});
    ++size_;
  }

  // Takes the entry of the key out. Null if there is none.
  std::unique_ptr<MemoEntry> take(std::uint64_t hash, std::string_view key) noexcept {
    Slot* const slot = find_slot(static_cast<std::uint32_t>(hash), key);
    return slot == nullptr ? nullptr : take_at(static_cast<std::size_t>(slot - slots_.data()));
  }

  // Takes an entry out that was not used since the hand passed it last. Null if there is none.
  std::unique_ptr<MemoEntry> take_unused() noexcept {
    if (size_ == 0) return nullptr;
    for (;; ++hand_) {
      Slot& slot = slots_[hand_ & mask()];
      if (slot.entry != nullptr && !std::exchange(slot.was_used, false))
        return take_at(hand_ & mask());
    }
  }

 private:
  struct Slot {
    std::unique_ptr<MemoEntry> entry{};  // null: the slot is free
    std::uint32_t hash = 0;
    bool was_used = false;  // since the hand passed
  };

  static constexpr std::size_t fewest_slots = 16;

  std::size_t mask() const noexcept { return slots_.size() - 1; }

  Slot* find_slot(std::uint32_t hash, std::string_view key) noexcept {
    if (size_ == 0) return nullptr;
    for (std::size_t at = hash & mask();; at = (at + 1) & mask()) {
      Slot& slot = slots_[at];
      if (slot.entry == nullptr) return nullptr;
      if (slot.hash == hash && slot.entry->key == key) return &slot;
    }
  }

  void place(Slot placed) noexcept {
    std::size_t at = placed.hash & mask();
    while (slots_[at].entry != nullptr) at = (at + 1) & mask();
    slots_[at] = std::move(placed);
  }

  void grow() {
    std::vector<Slot> old(std::max(fewest_slots, 2 * slots_.size()));
    old.swap(slots_);
    for (Slot& slot : old)
      if (slot.entry != nullptr) place(std::move(slot));
  }

  // Closes the gap: moves back each entry that could not be found behind a free slot.
  std::unique_ptr<MemoEntry> take_at(std::size_t gap) noexcept {
    std::unique_ptr<MemoEntry> taken = std::move(slots_[gap].entry);
    for (std::size_t at = (gap + 1) & mask(); slots_[at].entry != nullptr; at = (at + 1) & mask()) {
      const std::size_t from_home = (at - slots_[at].hash) & mask();
      if (from_home < ((at - gap) & mask())) continue;
      slots_[gap] = std::move(slots_[at]);
      gap = at;
    }
    --size_;
    return taken;
  }

  std::vector<Slot> slots_;  // none, or a power of two
  std::size_t size_ = 0;
  std::size_t hand_ = 0;
};

}  // namespace whycache::detail
