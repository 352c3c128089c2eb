// Log::wait() of a log in local files: the kernel wakes it when a writer of this machine changes
// them.
#pragma once

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "base/call_limit.h"
#include "base/file_watch.h"

namespace whycache {

class UpdateWatch {
 public:
  UpdateWatch(std::string log_name, std::vector<FileWatch::WatchedFile> targets)
      : log_name_(std::move(log_name)), watch_(std::move(targets)) {}

  // As Log::notifies(): false once wait() has thrown.
  bool notifies() const noexcept { return can_watch_.load(std::memory_order_relaxed); }
  // As Log::wait(). `has_update` returns whether the log has the update that is waited for. Returns
  // after `poll_interval` at the latest, since no event tells of another machine's update.
  bool wait(std::chrono::nanoseconds at_most, const std::function<bool()>& has_update) {
    if (!notifies()) {
      CallLimit::sleep(at_most);
      return false;
    }
    // Before the question: an update that the answer does not know is an event.
    const std::uint64_t seen = begin();
    if (has_update()) return true;
    return watch_.wait(seen, std::min({at_most, CallLimit::remaining(), poll_interval}),
                       CallLimit::stop());
  }

 private:
  static constexpr std::chrono::nanoseconds poll_interval = std::chrono::seconds(2);

  std::uint64_t begin() {
    try {
      return watch_.begin();
    } catch (const Error& error) {
      can_watch_.store(false, std::memory_order_relaxed);
      throw Error(error.kind(),
                  "log cannot wake this process: log=" + log_name_ + ": " + error.what(),
                  error.system_error());
    }
  }

  const std::string log_name_;
  FileWatch watch_;
  std::atomic<bool> can_watch_{true};
};

}  // namespace whycache
