// Which processes hold locks on a file, for messages.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace whycache {

// Returns the processes that hold a lock on byte `offset` of the file, or on any byte: "4711
// (sqlite3), 4712 (service)". Empty if there is none, or this process cannot see them: they are in
// another PID namespace, or belong to another user. Reads /proc, for 20 ms of
// processor time at most. Does not open
// the file: closing it would drop the POSIX locks of this process.
std::string lock_holders(const std::string& path,
                         std::optional<std::uint64_t> offset = std::nullopt) noexcept;

}  // namespace whycache
