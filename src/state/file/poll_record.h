// When the log was last polled, in the header of the state file. The record decides whether a call
// asks the log again, so it lies where only processes that may write the state can write.
//
// A time is valid only for the file and the clock it was recorded for: CLOCK_BOOTTIME of one boot
// and one time namespace. A copy of the file has another state id; another boot, or a container
// with a clock of its own, has another clock id. Each time is stored with a seal of both. A reader
// for which the seal is wrong, or the time is yet to come, knows nothing and asks the log.
#pragma once

#include <cstdint>
#include <optional>

#include "base/boot.h"
#include "base/clock.h"
#include "base/hash.h"
#include "state/file/layout.h"

namespace whycache {

inline std::uint64_t poll_time_seal(std::int64_t time_ns, std::uint64_t state_id,
                                    std::uint64_t clock) {
  const std::uint64_t words[3] = {static_cast<std::uint64_t>(time_ns), state_id, clock};
  return hash64({reinterpret_cast<const char*>(words), sizeof words});
}

// Returns the time, or nullopt if none is recorded for this file and this process's clock. Costs
// two loads and, for a time beyond `now_ns`, a look at the clock.
inline std::optional<std::int64_t> read_poll_time(const PollTime& recorded, std::uint64_t state_id,
                                                  std::int64_t now_ns) {
  // Acquire: pairs with the fence of record_poll(). Whatever the log's answer brought was applied
  // before. A seal that is stored meanwhile does not fit.
  const std::int64_t time_ns = recorded.time_ns.load(std::memory_order_acquire);
  const std::optional<std::uint64_t> clock = boot_clock_id();
  if (time_ns <= 0 || !clock ||
      recorded.seal.load(std::memory_order_relaxed) != poll_time_seal(time_ns, state_id, *clock))
    return std::nullopt;
  if (time_ns > now_ns && time_ns > boot_time_ns()) return std::nullopt;
  return time_ns;
}

}  // namespace whycache
