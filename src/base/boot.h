// The identity of this boot and of its clock.
#pragma once

#include <cstdint>
#include <optional>

#include <whycache/types.h>

namespace whycache {

// The kernel's random id of this boot; all zero if it cannot be read. A process reads it once, and
// its forked children know it.
Uuid boot_id();
// Identifies the clock that boot_time_ns() reads: processes can compare its times only if they have
// the same id. It depends on the boot and on the time namespace's offset. Returns nullopt if it
// cannot be found out. Costs some nanoseconds, and some system calls the first time in a process
// and in each forked child. A child in which /proc is out of reach keeps the id of its parent. A
// process that enters another time namespace by setns() keeps its old id, which is then wrong.
std::optional<std::uint64_t> boot_clock_id() noexcept;

}  // namespace whycache
