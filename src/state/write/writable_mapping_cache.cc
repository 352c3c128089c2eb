#include "state/write/writable_mapping_cache.h"

#include <cassert>

#include "base/clock.h"

namespace whycache {
namespace {

constexpr std::int64_t idle_timeout_ns = 10'000'000;
constexpr std::size_t touched_pages_max = 2000;

}  // namespace

std::unique_ptr<WritableMapping> WritableMappingCache::take(const Mapping& current) {
  // Acquire: pairs with the release of the exchange in put().
  std::unique_ptr<WritableMapping> taken(cached_.exchange(nullptr, std::memory_order_acq_rel));
  if (!taken) return nullptr;
  const Mapping& mapping = taken->mapping;
  if (!mapping.belongs_to_this_process()) {  // cached by the parent; not mapped in this child
    last_write_time_ns_.store(0, std::memory_order_relaxed);
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
  const std::int64_t now = boot_time_ns();
  const std::int64_t previous = last_write_time_ns_.exchange(now, std::memory_order_relaxed);
  assert(writable != nullptr);
  if (previous == 0 || now - previous >= idle_timeout_ns ||
      writable->touched_pages >= touched_pages_max || writable->is_space_limited ||
      is_address_space_limited())
    return;
  const std::unique_ptr<WritableMapping> other(
      cached_.exchange(writable.release(), std::memory_order_seq_cst));
  assert(!other);  // take() has emptied the cache, under the same writer lock
  if (disabled_.load(std::memory_order_seq_cst)) unmap();
}

bool WritableMappingCache::is_idle() const noexcept {
  return boot_time_ns() - last_write_time_ns_.load(std::memory_order_relaxed) >= idle_timeout_ns;
}

}  // namespace whycache
