// The two clocks there are. Which one a figure is taken with stands at the top of each program.
#pragma once

#include <time.h>

namespace bench {

inline double clock_ns(clockid_t clock) {
  struct timespec time;
  ::clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) * 1e9 + static_cast<double>(time.tv_nsec);
}

// Processor time of this thread: what other programs take of the machine is not counted.
inline double thread_cpu_time_ns() { return clock_ns(CLOCK_THREAD_CPUTIME_ID); }
// Time on the wall, for what waits for others.
inline double monotonic_time_ns() { return clock_ns(CLOCK_MONOTONIC); }

}  // namespace bench
