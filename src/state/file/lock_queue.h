// Waiting for a StateLock that another process holds. The kernel has no waiting for such a lock
// with a time limit. So who wants it sleeps on a word of the lock file (a futex), and is woken by
// whoever lets go of it. The word is a hint: what counts is the lock, for which everybody asks
// again every millisecond; who is killed while he holds it wakes nobody, and whatever stands in the
// word, nobody sleeps for longer.
//
// That alone is unjust: who holds the lock most of the time, as writers do that write again and
// again, has it again before anybody else wakes up, and they get hardly anything. So those who want
// StateLock::append pass a gate, a byte of its own: who holds it is next, and opens the gate when
// he has the lock. Who has just let go of the lock stands at the gate with all others.
//
// The gate is a courtesy and protects nothing. It opens when its holder dies, as all such locks do;
// should he be stopped there, the others ask for the lock itself after a while, as they would
// without it.
#pragma once

#include "base/clock.h"
#include "state/file/lock_file.h"

namespace whycache {

// Takes the lock's byte of this lock file. False: not before the deadline. Throws Error if the file
// cannot be locked.
bool wait_for_lock(const LockFile& file, StateLock which, const Deadline& deadline);
// Its holder lets go of it in a moment: whoever is next may wake up meanwhile, which takes about as
// long.
void wake_next_waiter(const LockFile& file, StateLock which) noexcept;
// Lets go of it, and wakes one who waits.
void release_lock(const LockFile& file, StateLock which) noexcept;

}  // namespace whycache
