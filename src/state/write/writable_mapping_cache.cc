#include "state/write/writable_mapping_cache.h"

#include <sys/resource.h>

#include "base/clock.h"

namespace whycache {
namespace {

constexpr std::int64_t idle_timeout_ns = 10'000'000;
constexpr std::size_t touched_pages_max = 2000;

// Then a large mapping that stays may take from the application what it needs itself.
bool is_address_space_limited() {
  struct rlimit limit;
  return ::getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur != RLIM_INFINITY;
}

}  // namespace

std::unique_ptr<WritableMapping> WritableMappingCache::take(const Mapping& present) {
  std::unique_ptr<WritableMapping> taken(cached_.exchange(nullptr, std::memory_order_acq_rel));
  if (!taken) return nullptr;
  const Mapping& mapping = taken->mapping;
  if (!mapping.belongs_to_this_process()) {  // a parent kept it, and it is not there
    last_write_time_ns_.store(0, std::memory_order_relaxed);
    return nullptr;
  }
  // The inode of a file that is held open is no other file's.
  if (mapping.inode() != present.inode() || mapping.device() != present.device()) return nullptr;
  mapping.refresh_usable_bytes();
  // Another state may have been copied over it, with another hash seed.
  if (mapping.header().fixed.state_id != mapping.state_id() || !mapping.holds_whole_file())
    return nullptr;
  return taken;
}

void WritableMappingCache::put(std::unique_ptr<WritableMapping> writable) noexcept {
  const std::int64_t now = boot_time_ns();
  const std::int64_t before = last_write_time_ns_.exchange(now, std::memory_order_relaxed);
  if (before == 0 || now - before >= idle_timeout_ns ||
      writable->touched_pages >= touched_pages_max || is_address_space_limited())
    return;
  std::unique_ptr<WritableMapping>(cached_.exchange(writable.release(), std::memory_order_seq_cst))
      .reset();
  if (disabled_.load(std::memory_order_seq_cst)) unmap();
}

bool WritableMappingCache::is_idle() const noexcept {
  return boot_time_ns() - last_write_time_ns_.load(std::memory_order_relaxed) >= idle_timeout_ns;
}

}  // namespace whycache
