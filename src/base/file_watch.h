// Waiting until files change, by inotify. The kernel reports what processes of this machine do,
// and nothing that other machines do to a network file system. A wake-up is therefore a hint, and
// its absence proves nothing.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <stop_token>
#include <string>
#include <vector>

#include "base/file.h"
#include "base/fork_handlers.h"
#include "base/mutex.h"

namespace whycache {

// Any number of threads may wait at once. One of them sleeps in the kernel and wakes the others.
// Opens an inotify instance with the first wait, and keeps it. A forked child closes it, and opens
// one of its own if it waits.
class FileWatch final : ForkHandler {
 public:
  struct WatchedFile {
    std::string path;      // of a file or a directory; need not exist yet
    std::uint32_t events;  // IN_MODIFY and the like
  };
  explicit FileWatch(std::vector<WatchedFile> targets);
  FileWatch(const FileWatch&) = delete;
  FileWatch& operator=(const FileWatch&) = delete;
  ~FileWatch();

  // Begins to watch what is at the paths now. Returns a number that wait() compares: what happens
  // after this call ends the wait. Throws Error if the kernel cannot watch them, which does not
  // pass by itself: limit, if a limit on inotify is reached.
  std::uint64_t begin();
  // Waits until something has happened to the targets since begin() returned `since`. Returns
  // false if the time has passed or a stop was requested before.
  bool wait(std::uint64_t since, std::chrono::nanoseconds at_most, const std::stop_token& stop);

 private:
  struct SharedEvents {
    Mutex mutex;
    std::condition_variable changed;
    std::uint64_t event_count WHYCACHE_GUARDED_BY(mutex) = 0;
    // Whether a thread sleeps in the kernel for all.
    bool has_sleeper WHYCACHE_GUARDED_BY(mutex) = false;
  };

  void before_fork() noexcept override;
  void after_fork_in_parent() noexcept override;
  void after_fork_in_child() noexcept override;

  void open() WHYCACHE_REQUIRES(state_->mutex);
  void add_watches() WHYCACHE_REQUIRES(state_->mutex);
  // Returns whether there was an event.
  bool take_events() WHYCACHE_REQUIRES(state_->mutex);
  void wake_sleeper() const noexcept;

  const std::vector<WatchedFile> targets_;
  SharedEvents* const state_;
  // Opened once under the mutex, and closed by a forked child before it has threads.
  FileDescriptor inotify_;
  FileDescriptor wake_up_;  // an eventfd: a waiter is to look at its stop
};

}  // namespace whycache
