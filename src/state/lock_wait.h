// Waiting for a StateLock that another process holds. The kernel has no waiting for such a lock with a time limit, so
// it is asked again and again: soon at first, then every millisecond.
//
// That alone is unjust: who holds the lock most of the time, as writers do that write again and again, has it again
// before anybody else wakes up, and they get hardly anything. So those who want StateLock::append pass a gate, a byte
// of its own: who holds it is next, asks for the lock ten times as often, and opens the gate when he has it. Who has
// just let go of the lock stands at the gate with all others.
//
// The gate is a courtesy and protects nothing. It opens when its holder dies, as all such locks do; should he be
// stopped there, the others ask for the lock itself after a while, as they would without it.
#pragma once

#include "base/clock.h"
#include "state/state.h"

namespace whycache {

// Takes the lock's byte of this lock file. False: not before the deadline. Throws Error if the file cannot be locked.
bool wait_for_lock(int lock_file, StateLock which, const Deadline& deadline);

}  // namespace whycache
