// Guards: what an application forbids its own writes.
#pragma once

#include <span>

#include <whycache/cache.h>
#include <whycache/view.h>

namespace whycache {

// Throws Error refused if the changes, made to what `view` shows, pass a guard. Nothing is written
// then.
void check_guards(const Guards& guards, std::span<const Change> changes, const View& view);

// The same for `erased` keys of `all`.
void check_erase_limits(const Guards& guards, std::uint64_t erased, std::uint64_t all);

inline bool has_erase_limit(const Guards& guards) {
  return guards.erased_keys_max || guards.erased_share_max;
}

}  // namespace whycache
