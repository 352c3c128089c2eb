// Cache::notify_fd(): an eventfd that becomes readable when an update was applied, by whichever
// process of the machine.
//
// The kernel offers no descriptor for a futex, so a thread waits for updates as Cache::wait() does,
// and writes to the eventfd. One thread per cache, and only if the application asks for a
// descriptor: a thread can sleep on the applied id of one file at a time. (futex_waitv(2) could
// wait for several, from Linux 5.16 on, but would have to be interrupted for each new cache.)
#pragma once

#include <stop_token>
#include <thread>

#include "base/file.h"
#include "base/fork_handlers.h"
#include "client/session.h"

namespace whycache {

// The caller keeps its functions from running at the same time.
class UpdateNotifier final : ForkHandler {
 public:
  explicit UpdateNotifier(Session& session);
  UpdateNotifier(const UpdateNotifier&) = delete;
  UpdateNotifier& operator=(const UpdateNotifier&) = delete;
  ~UpdateNotifier();

  // Returns the descriptor. Starts the thread if the cache is open, and if it does not run yet.
  // Throws Error(limit).
  int start(bool is_open);
  // The cache is being closed: ends the thread, and makes the descriptor readable.
  void stop() noexcept;
  // The cache is open again: starts the thread if there is a descriptor.
  void restart();

 private:
  // The parent's thread does not exist in the child, and what the child reads from the descriptor
  // would be missing in the parent.
  void after_fork_in_child() noexcept override { event_.close(); }

  void run(UpdateId seen, const std::stop_token& stop) noexcept;
  void notify() const noexcept;

  Session& session_;
  FileDescriptor event_;
  std::jthread thread_;
};

}  // namespace whycache
