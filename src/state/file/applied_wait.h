// Waiting until a process of this machine applies an update: a futex on the low half of the applied
// id in the mapped file. Waiters need only read access, and cost the writer one system call per
// visit to the file, whether or not there are any: a process that may only read cannot announce
// itself.
//
// The writer stores the applied id (release), and then wakes. A waiter loads it (acquire), compares
// it with what it waits for, and passes its low half to the kernel, which compares again before the
// waiter sleeps. Either the waiter sees the update, or it is asleep when the writer wakes. Three
// cases cost the longest sleep. The writer is killed before it wakes. 128 updates, or a multiple of
// that, are applied between the waiter's two comparisons, and none after them. Or the file is
// replaced between them, which changes no applied id; a process that replaces a file therefore
// wakes its waiters several times.
#pragma once

#include <chrono>
#include <cstdint>
#include <stop_token>

#include "state/file/layout.h"

namespace whycache {

// Wakes every process and thread that waits for an update of this file.
void wake_applied_waiters(const Header& header) noexcept;

// The longest sleep, after which a waiter looks at the applied id by itself.
inline constexpr std::chrono::seconds applied_sleep_max{30};

// Sleeps until the waiters are woken, `at_most` has passed or a stop is requested. Returns at once
// if the applied id is no longer the one of `seen`, a value of AppliedId::max_entry_word(). May
// return for no reason.
void sleep_until_applied(const Header& header, std::uint64_t seen, std::chrono::nanoseconds at_most,
                         const std::stop_token& stop);

}  // namespace whycache
