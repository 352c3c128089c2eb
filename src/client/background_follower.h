// Options::follow: a thread that keeps the state fresh.
#pragma once

#include <stop_token>
#include <thread>

#include "client/session.h"

namespace whycache {

// The caller keeps start() and stop() from running at the same time.
class BackgroundFollower {
 public:
  explicit BackgroundFollower(Session& session) : session_(session) {}
  BackgroundFollower(const BackgroundFollower&) = delete;
  BackgroundFollower& operator=(const BackgroundFollower&) = delete;
  ~BackgroundFollower() { stop(); }

  // Starts the thread, if Options::follow says so and it does not run yet. Throws Error(limit).
  void start();
  // Ends the thread, and its call of the log.
  void stop() noexcept;

 private:
  void run(const std::stop_token& stop) noexcept;

  Session& session_;
  std::jthread thread_;
};

}  // namespace whycache
