// What tells this boot, and its clock, from others.
#pragma once

#include <cstdint>

#include <whycache/types.h>

namespace whycache {

// The kernel's random id of this boot; all zero if it cannot be read. A process reads it once.
Uuid boot_id();
// Identifies the clock that boot_time_ns() reads: processes can compare its times only if they have
// the same id. It depends on the boot and on the time namespace. Costs some nanoseconds, and two
// system calls the first time in a process. A process that enters another time namespace by setns()
// keeps the old id; its children have the new one.
std::uint64_t boot_clock_id() noexcept;

}  // namespace whycache
