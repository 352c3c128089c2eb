// Whether another thread of this process is waiting for the network.
#pragma once

#include <sys/types.h>

namespace whycache {

// Returns whether the kernel has put a thread of this process to sleep in a system call that waits
// for a socket. Returns false if it runs, waits for something else, or cannot be asked. Costs some
// microseconds. Allocates no memory, so that a handler of fork() can call it.
bool waits_for_network(pid_t thread) noexcept;

}  // namespace whycache
