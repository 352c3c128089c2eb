// Signals: which ones reach threads that the library starts, and those that its calls must not
// raise.
#pragma once

#include <pthread.h>
#include <signal.h>
#include <sys/resource.h>

#include <cerrno>
#include <ctime>
#include <optional>

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

// Keeps a signal that a system call raises in the thread that makes it, SIGPIPE or SIGXFSZ, from
// the application until the end of the scope, in this thread only: the call fails with an errno
// instead (EPIPE, EFBIG). The default of both is to end the process. Leaves the disposition of the
// signal alone, and also a signal that was pending before. Costs a few system calls.
class ThreadSignalBlocker {
 public:
  explicit ThreadSignalBlocker(int signal) : signal_(signal), was_pending_(is_pending(signal)) {
    if (was_pending_) return;
    const sigset_t blocked = set_of(signal);
    ::pthread_sigmask(SIG_BLOCK, &blocked, &previous_mask_);
  }
  ThreadSignalBlocker(const ThreadSignalBlocker&) = delete;
  ThreadSignalBlocker& operator=(const ThreadSignalBlocker&) = delete;
  ~ThreadSignalBlocker() {
    if (was_pending_) return;  // the application blocks it already
    const int error = errno;
    if (is_pending(signal_)) {
      constexpr timespec at_once{0, 0};
      const sigset_t raised = set_of(signal_);
      while (::sigtimedwait(&raised, nullptr, &at_once) < 0 && errno == EINTR) {
      }
    }
    ::pthread_sigmask(SIG_SETMASK, &previous_mask_, nullptr);
    errno = error;
  }

  static bool is_pending(int signal) noexcept {
    sigset_t pending;
    return ::sigpending(&pending) == 0 && sigismember(&pending, signal) == 1;
  }

 private:
  static sigset_t set_of(int signal) noexcept {
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    return set;
  }

  int signal_;
  bool was_pending_;
  sigset_t previous_mask_{};
};

// While it exists, a write of this thread beyond RLIMIT_FSIZE fails with EFBIG and nothing more.
// Otherwise it also raises SIGXFSZ. Costs one system call without a limit.
class BlockedFileSizeSignal {
 public:
  BlockedFileSizeSignal() {
    struct rlimit limit;
    if (::getrlimit(RLIMIT_FSIZE, &limit) != 0 || limit.rlim_cur != RLIM_INFINITY)
      blocker_.emplace(SIGXFSZ);
  }

 private:
  std::optional<ThreadSignalBlocker> blocker_;
};

}  // namespace whycache
