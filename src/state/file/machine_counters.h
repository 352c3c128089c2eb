// The counts of all processes of a machine, in the state file. Each process counts for itself, and
// adds what is new when it has the writer lock.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include <whycache/inspection.h>

#include "state/file/layout.h"

namespace whycache {

struct CounterMember {
  const char* name;
  std::uint64_t Counters::*value;
};
// All of them, in the order in which the file has them. New ones come last.
inline constexpr std::array all_counters{
    CounterMember{"updates_applied", &Counters::updates_applied},
    CounterMember{"updates_written", &Counters::updates_written},
    CounterMember{"append_conflicts", &Counters::append_conflicts},
    CounterMember{"log_retries", &Counters::log_retries},
    CounterMember{"rebuilds_behind_base", &Counters::rebuilds_behind_base},
    CounterMember{"rebuilds_diverged", &Counters::rebuilds_diverged},
    CounterMember{"rebuilds_replaced", &Counters::rebuilds_replaced},
    CounterMember{"rebuilds_damaged", &Counters::rebuilds_damaged},
    CounterMember{"rebuilds_to_shrink", &Counters::rebuilds_to_shrink},
    CounterMember{"recoveries", &Counters::recoveries}};
static_assert(sizeof(Counters) == all_counters.size() * sizeof(std::uint64_t));
static_assert(all_counters.size() <= machine_counters_max);

inline Counters read_machine_counters(const Header& header) noexcept {
  Counters counters;
  for (std::size_t i = 0; i < all_counters.size(); ++i)
    counters.*all_counters[i].value = header.machine_counters[i].load(std::memory_order_relaxed);
  return counters;
}

// The caller holds the writer lock, or is the only one that has the file.
inline void add_machine_counters(Header& header, const Counters& added) noexcept {
  for (std::size_t i = 0; i < all_counters.size(); ++i)
    header.machine_counters[i].fetch_add(added.*all_counters[i].value, std::memory_order_relaxed);
}

}  // namespace whycache
