// What std::timed_mutex waits with, for gcc's ThreadSanitizer, which up to gcc 13 does not see
// pthread_mutex_clocklock(): it takes the mutex for free while it is held, and reports its
// unlocking. Here it is, in terms of what it does see.
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
