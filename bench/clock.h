// The two clocks of the benchmarks. The comment at the top of each program says which one it uses.
#pragma once

#include <time.h>

namespace bench {

inline double clock_ns(clockid_t clock) {
  struct timespec time;
  ::clock_gettime(clock, &time);
  return static_cast<double>(time.tv_sec) * 1e9 + static_cast<double>(time.tv_nsec);
}

// Processor time of this thread, which excludes the time of other programs.
inline double thread_cpu_time_ns() { return clock_ns(CLOCK_THREAD_CPUTIME_ID); }
// Wall time, for work that waits for other processes.
inline double monotonic_time_ns() { return clock_ns(CLOCK_MONOTONIC); }

}  // namespace bench
