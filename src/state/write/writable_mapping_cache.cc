#include "state/write/writable_mapping_cache.h"

#include <sys/stat.h>

#include <cassert>

#include "base/clock.h"

namespace whycache {
namespace {

constexpr std::int64_t idle_timeout_ns = 100'000'000;
// How long unmap_if_idle() may make a call wait that does something else. A step of the size at
// which it begins has 512 pages at most, and takes an eighth of a millisecond. Where few pages were
// touched, steps take next to no time, and the next one is twice as large.
constexpr std::int64_t unmap_time_max_ns = 250'000;
constexpr std::uint64_t unmap_step_bytes = 2U << 20;
constexpr std::int64_t short_step_ns = 30'000;

// Unmaps steps until everything is unmapped, or no time is left. Returns whether everything is.
bool unmap_for_a_while(WritableMapping& writable) noexcept {
  writable.is_being_unmapped = true;
  const std::int64_t begin = boot_time_ns();
  std::int64_t step_begin = begin;
  std::uint64_t step_bytes = unmap_step_bytes;
  while (!writable.unmap_front(step_bytes)) {
    const std::int64_t now = boot_time_ns();
    if (now - begin >= unmap_time_max_ns) return false;
    if (now - step_begin < short_step_ns) step_bytes *= 2;
    step_begin = now;
  }
  return true;
}

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
  struct stat status;
  // The application may have closed the descriptor, and opened another file with its number.
  if (::fstat(mapping.descriptor(), &status) != 0 || status.st_dev != mapping.device() ||
      status.st_ino != mapping.inode())
    return nullptr;
  taken->last_change = change_of(status);
  mapping.refresh_usable_bytes(static_cast<std::uint64_t>(status.st_size));
  // Another state, with another hash seed, may have been copied over the file.
  if (mapping.header().fixed.state_id != mapping.state_id() || !mapping.holds_whole_file())
    return nullptr;
  return taken;
}

void WritableMappingCache::put(std::unique_ptr<WritableMapping> writable) noexcept {
  assert(writable != nullptr);
  std::int64_t now_ns = boot_time_ns();
  const bool is_limited = writable->is_space_limited || is_space_limited(now_ns);
  if (is_limited || !wrote_lately_) {
    // The first write after a pause may have found the mapping of many pages. Calls to come unmap
    // the rest.
    if (is_limited || unmap_for_a_while(*writable)) writable.reset();
    now_ns = boot_time_ns();  // the next write must not seem late because of it
  }
  last_write_time_ns_.store(now_ns, std::memory_order_relaxed);
  if (!writable) return;
  // take() has emptied the cache, under the same writer lock. But unmap_part(), which needs no
  // lock, may have put back what remains of another mapping.
  const std::unique_ptr<WritableMapping> other(
      cached_.exchange(writable.release(), std::memory_order_seq_cst));
  if (disabled_.load(std::memory_order_seq_cst)) unmap();
}

bool WritableMappingCache::unmap_part() noexcept {
  std::unique_ptr<WritableMapping> taken(cached_.exchange(nullptr, std::memory_order_seq_cst));
  if (!taken) return true;
  // Leaves the mapping of a write that has ended since the look at the clock.
  const bool is_left = !taken->is_being_unmapped && !is_idle();
  if (!is_left && unmap_for_a_while(*taken)) return true;
  WritableMapping* none = nullptr;
  // A write may have put its own mapping there meanwhile. Then the rest of this one is unmapped
  // now.
  if (cached_.compare_exchange_strong(none, taken.get(), std::memory_order_seq_cst))
    static_cast<void>(taken.release());
  if (disabled_.load(std::memory_order_seq_cst)) unmap();
  return is_left;  // in use, as a whole
}

bool WritableMappingCache::is_space_limited(std::int64_t now_ns) noexcept {
  if (now_ns - limit_time_ns_ >= idle_timeout_ns) {
    is_space_limited_ = is_address_space_limited();
    limit_time_ns_ = now_ns;
  }
  return is_space_limited_;
}

bool WritableMappingCache::is_idle() const noexcept {
  return boot_time_ns() - last_write_time_ns_.load(std::memory_order_relaxed) >= idle_timeout_ns;
}

}  // namespace whycache
