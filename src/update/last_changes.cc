#include "update/last_changes.h"

#include <algorithm>
#include <bit>
#include <cassert>
#include <numeric>

namespace whycache {

void LastChanges::find(std::span<const Change> changes, std::span<const std::uint64_t> hashes) {
  assert(changes.size() == hashes.size());
  is_last_.assign(changes.size(), true);
  count_ = changes.size();
  if (changes.size() < 2 || try_find_by_hash(changes, hashes)) return;
  find_by_sorting(changes);
}

// Returns false if this takes too long, or there are too many changes.
bool LastChanges::try_find_by_hash(std::span<const Change> changes,
                                   std::span<const std::uint64_t> hashes) {
  const std::size_t count = changes.size();
  if (count >= UINT32_MAX) return false;
  // An open-addressing hash table of the keys seen so far, from the back: 1 + index of the change,
  // or 0. At most half full, so that probing ends.
  const std::size_t slots = std::bit_ceil(count * 2);
  slots_.assign(slots, 0);
  std::size_t probes_left = 16 * count + 1024;
  for (std::size_t i = count; i-- > 0;) {
    std::size_t slot = hashes[i] & (slots - 1);
    bool is_last = true;
    for (; slots_[slot] != 0; slot = (slot + 1) & (slots - 1)) {
      if (probes_left-- == 0) return false;
      const std::size_t later = slots_[slot] - 1;
      if (hashes[later] != hashes[i] || changes[later].key != changes[i].key) continue;
      is_last = false;
      break;
    }
    if (is_last) {
      slots_[slot] = static_cast<std::uint32_t>(i + 1);
    } else {
      is_last_[i] = false;
      --count_;
    }
  }
  assert(is_last_.back());
  return true;
}

void LastChanges::find_by_sorting(std::span<const Change> changes) {
  const std::size_t count = changes.size();
  std::vector<std::size_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    const int compared = changes[a].key.compare(changes[b].key);
    return compared < 0 || (compared == 0 && a < b);
  });
  count_ = 0;
  for (std::size_t i = 0; i < count; ++i) {
    const bool is_last = i + 1 == count || changes[order[i]].key != changes[order[i + 1]].key;
    is_last_[order[i]] = is_last;
    count_ += is_last ? 1 : 0;
  }
}

}  // namespace whycache
