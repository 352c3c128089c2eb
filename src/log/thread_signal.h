// Signals that a system call raises in the thread that makes it: SIGPIPE, and SIGXFSZ beyond the
// limit of the process on the size of files. Their default is to end the process.
#pragma once

#include <signal.h>

#include <cerrno>
#include <ctime>

namespace whycache {

// Keeps such a signal from the application until the end of the scope, in this thread only: the
// call fails with an errno instead (EPIPE, EFBIG). Leaves the disposition of the signal alone, and
// also a signal that was pending before. Costs a few system calls.
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
    if (is_pending(signal_)) {
      constexpr timespec at_once{0, 0};
      const sigset_t raised = set_of(signal_);
      while (::sigtimedwait(&raised, nullptr, &at_once) < 0 && errno == EINTR) {
      }
    }
    ::pthread_sigmask(SIG_SETMASK, &previous_mask_, nullptr);
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

}  // namespace whycache
