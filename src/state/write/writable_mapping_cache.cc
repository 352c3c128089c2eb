#include "state/write/writable_mapping_cache.h"

#include <cassert>

#include "base/clock.h"

namespace whycache {
namespace {

constexpr std::int64_t idle_timeout_ns = 10'000'000;
// What unmap_if_idle() may take of a call that does something else, and how much it unmaps between
// two looks at the clock: at most 512 pages, which takes an eighth of a millisecond.
constexpr std::int64_t unmap_time_max_ns = 250'000;
constexpr std::uint64_t unmapped_bytes_per_step = 2U << 20;

}  // namespace

std::unique_ptr<WritableMapping> WritableMappingCache::take(const Mapping& current) {
  wrote_lately_ = last_write_time_ns_.load(std::memory_order_relaxed) != 0 && !is_idle();
  // Acquire: pairs with the release of the exchange that stored it.
  std::unique_ptr<WritableMapping> taken(cached_.exchange(nullptr, std::memory_order_acq_rel));
  if (!taken || taken->is_being_unmapped) return nullptr;
  const Mapping& mapping = taken->mapping;
  if (!mapping.belongs_to_this_process()) {  // cached by the parent; not mapped in this child
    wrote_lately_ = false;
    return nullptr;
  }
  // The mapping holds its file open, so no other file can have the same inode number.
  if (mapping.inode() != current.inode() || mapping.device() != current.device()) return nullptr;
  if (!is_open_file(mapping.descriptor(), mapping.device(), mapping.inode())) return nullptr;
  mapping.refresh_usable_bytes();
  // Another state, with another hash seed, may have been copied over the file.
  if (mapping.header().fixed.state_id != mapping.state_id() || !mapping.holds_whole_file())
    return nullptr;
  return taken;
}

void WritableMappingCache::put(std::unique_ptr<WritableMapping> writable) noexcept {
  assert(writable != nullptr);
  const bool keeps = wrote_lately_ && !writable->is_space_limited && !is_address_space_limited();
  if (!keeps) writable.reset();
  // Taken after that, which takes milliseconds if the write touched thousands of pages: the next
  // write must not seem late because of it.
  last_write_time_ns_.store(boot_time_ns(), std::memory_order_relaxed);
  if (!keeps) return;
  // take() has emptied the cache, under the same writer lock. But unmap_part(), which needs no
  // lock, may have put back what remains of another mapping.
  const std::unique_ptr<WritableMapping> other(
      cached_.exchange(writable.release(), std::memory_order_seq_cst));
  if (disabled_.load(std::memory_order_seq_cst)) unmap();
}

void WritableMappingCache::unmap_part() noexcept {
  std::unique_ptr<WritableMapping> taken(cached_.exchange(nullptr, std::memory_order_seq_cst));
  if (!taken) return;
  // Leaves the mapping of a write that has ended since the look at the clock.
  if (taken->is_being_unmapped || is_idle()) {
    taken->is_being_unmapped = true;
    const std::int64_t begin = boot_time_ns();
    while (!taken->mapping.unmap_front(unmapped_bytes_per_step)) {
      if (boot_time_ns() - begin >= unmap_time_max_ns) break;
    }
    if (taken->mapping.is_unmapped()) return;
  }
  WritableMapping* none = nullptr;
  // A write may have put its own mapping there meanwhile. Then the rest of this one is unmapped
  // now.
  if (cached_.compare_exchange_strong(none, taken.get(), std::memory_order_seq_cst))
    static_cast<void>(taken.release());
  if (disabled_.load(std::memory_order_seq_cst)) unmap();
}

bool WritableMappingCache::is_idle() const noexcept {
  return boot_time_ns() - last_write_time_ns_.load(std::memory_order_relaxed) >= idle_timeout_ns;
}

}  // namespace whycache
