#include "client/guards.h"

#include <cstdio>
#include <string>

namespace whycache {

void check_erase_limits(const Guards& guards, std::uint64_t erased, std::uint64_t all) {
  if (erased == 0) return;
  const double share = static_cast<double>(erased) / static_cast<double>(all);
  const bool too_many = guards.erased_keys_max && erased > *guards.erased_keys_max;
  const bool too_large_a_share = guards.erased_share_max && share > *guards.erased_share_max;
  if (!too_many && !too_large_a_share) return;
  char percent[16];
  std::snprintf(percent, sizeof percent, "%.3g%%", share * 100);
  std::string message = "this would erase " + std::string(percent) +
                        " of the keys, nothing was written: erased=" + std::to_string(erased) +
                        " keys=" + std::to_string(all);
  if (too_many) message += " erased_keys_max=" + std::to_string(*guards.erased_keys_max);
  if (too_large_a_share) message += " erased_share_max=" + std::to_string(*guards.erased_share_max);
  throw Error(ErrorKind::refused, message + " (if it is meant, raise the guard)");
}

void check_guards(const Guards& guards, std::span<const Change> changes, const View& view) {
  if (guards.validate) {
    for (const Change& change : changes) {
      if (const std::optional<std::string> why = guards.validate(change)) {
        throw Error(ErrorKind::refused,
                    "validator refused a change, nothing was written: key_bytes=" +
                        std::to_string(change.key.size()) + ": " + *why);
      }
    }
  }
  if (!has_erase_limit(guards)) return;
  std::uint64_t erased = 0;
  for (const Change& change : changes) {
    if (change.kind == Change::Kind::erase && view.contains(change.key)) ++erased;
  }
  check_erase_limits(guards, erased, view.size());
}

}  // namespace whycache
