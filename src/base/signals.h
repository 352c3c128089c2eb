// Signals: which ones reach threads that the library starts, and one that its writes must not
// raise.
#pragma once

#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>

#include <cerrno>
#include <ctime>

namespace whycache {

// Blocks the signals of this thread, and of those that it starts, until the end of the scope.
// Leaves those that report a fault of the thread itself, and the one of profilers.
class BlockedSignals {
 public:
  BlockedSignals() {
    sigset_t all;
    ::sigfillset(&all);
    for (const int of_thread : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, SIGPROF})
      ::sigdelset(&all, of_thread);
    ::pthread_sigmask(SIG_SETMASK, &all, &previous_mask_);
  }
  BlockedSignals(const BlockedSignals&) = delete;
  BlockedSignals& operator=(const BlockedSignals&) = delete;
  ~BlockedSignals() { ::pthread_sigmask(SIG_SETMASK, &previous_mask_, nullptr); }

 private:
  sigset_t previous_mask_;
};

// While it exists, a write of this thread beyond RLIMIT_FSIZE fails with EFBIG and nothing more.
// Otherwise it also raises SIGXFSZ, which ends the process. Costs one system call without a limit.
class BlockedFileSizeSignal {
 public:
  BlockedFileSizeSignal() {
    struct rlimit limit;
    if (::getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur == RLIM_INFINITY) return;
    sigset_t pending;
    // A signal that was pending before is the application's.
    if (::sigpending(&pending) == 0 && ::sigismember(&pending, SIGXFSZ) == 1) return;
    ::sigemptyset(&signal_);
    ::sigaddset(&signal_, SIGXFSZ);
    is_blocked_ = ::pthread_sigmask(SIG_BLOCK, &signal_, &previous_mask_) == 0;
  }
  BlockedFileSizeSignal(const BlockedFileSizeSignal&) = delete;
  BlockedFileSizeSignal& operator=(const BlockedFileSizeSignal&) = delete;
  ~BlockedFileSizeSignal() {
    if (!is_blocked_) return;
    const int error = errno;
    // The kernel raises it in the thread that writes, so it is pending here if it was raised.
    constexpr timespec no_wait{0, 0};
    while (::sigtimedwait(&signal_, nullptr, &no_wait) < 0 && errno == EINTR) {
    }
    ::pthread_sigmask(SIG_SETMASK, &previous_mask_, nullptr);
    errno = error;
  }

 private:
  sigset_t signal_;
  sigset_t previous_mask_;
  bool is_blocked_ = false;
};

}  // namespace whycache
