#include "state/kept_mapping.h"

#include <sys/resource.h>

#include "base/clock.h"

namespace whycache {
namespace {

constexpr std::int64_t keep_ns = 10'000'000;
constexpr std::size_t changes_max = 1000;

// Then a large mapping that stays may take from the application what it needs itself.
bool is_address_space_limited() {
  struct rlimit limit;
  return ::getrlimit(RLIMIT_AS, &limit) != 0 || limit.rlim_cur != RLIM_INFINITY;
}

}  // namespace

std::unique_ptr<WritableMapping> KeptMapping::take(const Mapping& present) {
  std::unique_ptr<WritableMapping> taken(kept_.exchange(nullptr, std::memory_order_acq_rel));
  if (!taken) return nullptr;
  const Mapping& mapping = taken->mapping;
  // One that a parent kept is not there in its child. The inode of a file that is held open is no other file's.
  const bool usable = mapping.is_of_this_process() && mapping.inode() == present.inode() &&
                      mapping.device() == present.device() && mapping.holds_whole_file();
  if (!usable) return nullptr;
  mapping.refresh_usable_bytes();
  return taken;
}

void KeptMapping::leave(std::unique_ptr<WritableMapping> writable) noexcept {
  const std::int64_t now = boot_time_ns();
  const std::int64_t before = left_at_ns_.exchange(now, std::memory_order_relaxed);
  if (before == 0 || now - before >= keep_ns || writable->changes >= changes_max || is_address_space_limited()) return;
  std::unique_ptr<WritableMapping>(kept_.exchange(writable.release(), std::memory_order_acq_rel)).reset();
}

bool KeptMapping::is_idle() const noexcept {
  return boot_time_ns() - left_at_ns_.load(std::memory_order_relaxed) >= keep_ns;
}

}  // namespace whycache
