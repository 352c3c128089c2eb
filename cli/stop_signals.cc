#include "cli/stop_signals.h"

#include <pthread.h>
#include <signal.h>
#include <unistd.h>

#include <thread>
#include <utility>

namespace whycache::cli {

StopSignals::StopSignals() {
  sigset_t signals;
  ::sigemptyset(&signals);
  ::sigaddset(&signals, SIGINT);
  ::sigaddset(&signals, SIGTERM);
  for (const int signal : {SIGINT, SIGTERM}) ::signal(signal, SIG_DFL);  // may be ignored
  ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  std::thread([signals, stop = stop_]() mutable {
    int signal = 0;
    while (::sigwait(&signals, &signal) != 0) {
    }
    ::pthread_sigmask(SIG_UNBLOCK, &signals, nullptr);
    stop.request_stop();
    for (;;) ::pause();
  }).detach();
}

ProcessEndAtStop::ProcessEndAtStop(std::stop_token stop)
    : callback_(std::move(stop), [] { ::_exit(0); }) {}

}  // namespace whycache::cli
