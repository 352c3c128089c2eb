// The signals that end a command which runs until it is told to end.
#pragma once

#include <stop_token>

namespace whycache::cli {

// SIGINT and SIGTERM request a stop, which ends every wait and call of the log. A second signal
// ends the process, which does no harm to state or log. A thread waits for them, because a stop
// runs code that is not for a signal handler. All threads that start later block both signals.
class StopSignals {
 public:
  // Make one per process, before its other threads.
  StopSignals();

  std::stop_token token() const { return stop_.get_token(); }

 private:
  std::stop_source stop_;
};

// While it exists, a stop ends the process at once, with exit code 0. Use it while a cache is
// opened: that waits for as long as --deadline, and to end it midway harms neither state nor log.
class ProcessEndAtStop {
 public:
  explicit ProcessEndAtStop(std::stop_token stop);

 private:
  std::stop_callback<void (*)()> callback_;
};

}  // namespace whycache::cli
