// Callbacks around fork().
//
// A child shares its parent's open files and with them its OFD locks. It also inherits mutexes that
// threads which do not exist in it may have locked. A ForkHandler repairs what it owns in the
// child, before fork() returns there.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace whycache {

class ForkHandler {
 public:
  // Called before the fork, in the thread that forks. Locks mutexes that are only held briefly, so
  // that the child gets what they guard in a consistent state.
  virtual void before_fork() noexcept {}
  // Called in the parent. Unlocks them.
  virtual void after_fork_in_parent() noexcept {}
  // Called in the child, by its only thread. Must not throw, and must not wait for a lock.
  virtual void after_fork_in_child() noexcept = 0;

 protected:
  ForkHandler() = default;
  ForkHandler(const ForkHandler&) = delete;
  ForkHandler& operator=(const ForkHandler&) = delete;
  ~ForkHandler() = default;
};

// An object registers when it is fully constructed, and unregisters before it is destroyed. Any
// thread may call these functions; they may wait until another thread has forked. A caller must
// therefore hold nothing that the child needs released, such as the initialization of a function's
// static variable: in the child it would never finish.
void register_fork_handler(ForkHandler* handler);
// Registers, and calls `prepare` with no fork in between, for example to open a file that a child
// must close. If `prepare` throws, nothing is registered.
void register_fork_handler(ForkHandler* handler, const std::function<void()>& prepare);
void unregister_fork_handler(ForkHandler* handler) noexcept;

namespace detail {
extern constinit std::atomic<std::uint64_t> fork_counter;
}

// Returns how many forks led to this process since the library was loaded. If the number differs
// from an earlier one, this is another process. Relaxed: only a child's first thread changes the
// counter, before fork() returns there.
inline std::uint64_t fork_count() noexcept {
  return detail::fork_counter.load(std::memory_order_relaxed);
}

}  // namespace whycache
