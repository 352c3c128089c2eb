// Signals of threads that the library starts: handlers of the application must not run there.
#pragma once

#include <pthread.h>
#include <signal.h>

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

}  // namespace whycache
