// Tells a service manager with a watchdog (WatchdogSec= of systemd) that a thread is at work.
#pragma once

#include <time.h>

#include <chrono>
#include <condition_variable>
#include <thread>

#include "base/mutex.h"

namespace whycache::cli {

// A thread of its own sends WATCHDOG=1 at half the interval that the service manager expects, but
// only while the watched thread is at work. The service manager then ends and restarts a process
// that hangs: on a disk, in a deadlock, in a client library. Does nothing unless the service
// manager has asked this process for it (WATCHDOG_USEC, WATCHDOG_PID).
class Watchdog {
 public:
  // Watches the thread that makes it.
  Watchdog();
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // The watched thread calls one of these before each step. If it calls neither again within the
  // time that it gave, and half the interval of the watchdog on top, it hangs.

  // The thread is about to wait for `at_most`.
  void note_wait(std::chrono::nanoseconds at_most);
  // The thread is about to make calls that wait for `at_most` each, and to compute between them.
  // That may take long, as to build a state does: the time begins again whenever the thread has
  // run.
  void note_work(std::chrono::nanoseconds at_most);

 private:
  using Clock = std::chrono::steady_clock;

  void note(std::chrono::nanoseconds at_most, bool begins_again);
  void run();
  bool is_at_work() WHYCACHE_REQUIRES(mutex_);
  // Returns for how long the watched thread has run since it began.
  std::chrono::nanoseconds time_run() const;

  const std::chrono::nanoseconds interval_;  // between two messages; 0: there is no watchdog
  clockid_t thread_clock_{};
  Mutex mutex_;
  std::condition_variable ending_;
  bool is_ending_ WHYCACHE_GUARDED_BY(mutex_) = false;
  std::chrono::nanoseconds at_most_ WHYCACHE_GUARDED_BY(mutex_){0};
  bool begins_again_ WHYCACHE_GUARDED_BY(mutex_) = false;
  Clock::time_point end_ WHYCACHE_GUARDED_BY(mutex_){};
  std::chrono::nanoseconds time_run_before_ WHYCACHE_GUARDED_BY(mutex_){0};
  std::thread thread_;
};

}  // namespace whycache::cli
