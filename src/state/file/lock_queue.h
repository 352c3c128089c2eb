// Waiting for a StateLock that another process holds. The kernel offers no timed wait for an OFD
// lock. A waiter therefore sleeps on a word of the lock file (a futex), and the process that
// releases the lock wakes it. The word is only a hint: a waiter tries the lock itself at least
// every millisecond, whatever the word says. If the holder is killed, waiters time out.
//
// This alone would starve waiters: a process that writes in a loop reacquires the lock before a
// waiter has woken up. While a process waits for StateLock::append, the others therefore pass a
// gate (turnstile), a byte of its own. The process that holds the gate gets the lock next, and then
// opens the gate. A process that has just released the lock queues at the gate like the others. A
// word of the lock file says whether a process waits. If none does, the lock alone is taken.
//
// The gate provides fairness and protects nothing. It opens when its holder dies, as all OFD locks
// do. If its holder is stopped, the others try the lock itself after a while, as they would without
// a gate.
#pragma once

#include "base/clock.h"
#include "state/file/lock_file.h"

namespace whycache {

// Takes the lock's byte of the lock file. Returns false if the deadline passes first. Throws Error
// if the file cannot be locked.
bool wait_for_lock(const LockFile& file, StateLock which, const Deadline& deadline);
// Wakes one waiter shortly before the caller releases the lock: waking up takes about as long as
// what the caller has left to do.
void wake_next_waiter(const LockFile& file, StateLock which) noexcept;
// Releases the lock, and wakes one waiter.
void release_lock(const LockFile& file, StateLock which) noexcept;

}  // namespace whycache
