// std::timed_mutex waits by pthread_mutex_clocklock(), which ThreadSanitizer of gcc up to 13 does
// not intercept. It takes the mutex for free while it is held, and reports its unlocking. This
// replacement uses only functions that it intercepts.
#if defined(__SANITIZE_THREAD__)

#include <pthread.h>
#include <time.h>

#include <cerrno>
#include <utility>

extern "C" int pthread_mutex_clocklock(pthread_mutex_t* mutex, clockid_t clock,
                                       const struct timespec* until) noexcept {
  for (;;) {
    if (const int code = ::pthread_mutex_trylock(mutex); code != EBUSY) return code;
    struct timespec now;
    ::clock_gettime(clock, &now);
    if (std::pair(now.tv_sec, now.tv_nsec) >= std::pair(until->tv_sec, until->tv_nsec))
      return ETIMEDOUT;
    const struct timespec pause = {.tv_sec = 0, .tv_nsec = 100'000};
    ::nanosleep(&pause, nullptr);
  }
}

#endif
