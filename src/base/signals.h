// Signals of threads that the library starts: handlers of the application must not run there.
#pragma once

#include <pthread.h>
#include <signal.h>

namespace whycache {

// Blocks all signals of this thread, and of those that it starts, until the end of the scope.
class BlockedSignals {
 public:
  BlockedSignals() {
    sigset_t all;
    ::sigfillset(&all);
    ::pthread_sigmask(SIG_SETMASK, &all, &previous_mask_);
  }
  BlockedSignals(const BlockedSignals&) = delete;
  BlockedSignals& operator=(const BlockedSignals&) = delete;
  ~BlockedSignals() { ::pthread_sigmask(SIG_SETMASK, &previous_mask_, nullptr); }

 private:
  sigset_t previous_mask_;
};

}  // namespace whycache
