// Guards: limits that an application sets to its own writes (Options::guards).
#pragma once

#include <span>

#include <whycache/cache.h>
#include <whycache/view.h>

namespace whycache {

// Throws Error(refused) if the changes, applied to the items of `view`, violate a guard.
void check_guards(const Guards& guards, std::span<const Change> changes, const View& view);

// Throws Error(refused) if erasing `erased` of `all` keys violates a guard.
void check_erase_limits(const Guards& guards, std::uint64_t erased, std::uint64_t all);

inline bool has_erase_limit(const Guards& guards) {
  return guards.erased_keys_max || guards.erased_share_max;
}

}  // namespace whycache
