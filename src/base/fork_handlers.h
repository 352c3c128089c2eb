// Who needs to know that the process forked.
//
// A child shares its parent's open files and with them its OFD locks, and may have inherited
// mutexes that a thread which does not exist in it had locked. So whoever owns such things is told,
// in the child, before fork() returns there.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace whycache {

class ForkHandler {
 public:
  // Called before the fork, in the thread that forks: take the mutexes that are only ever held for
  // a moment, so that what they guard is whole in the child.
  virtual void before_fork() noexcept {}
  // Called in the parent: let go of them.
  virtual void after_fork_in_parent() noexcept {}
  // Called in the child by the only thread there is. Must not throw, and must not wait for a lock.
  virtual void after_fork_in_child() noexcept = 0;

 protected:
  ForkHandler() = default;
  ForkHandler(const ForkHandler&) = delete;
  ForkHandler& operator=(const ForkHandler&) = delete;
  ~ForkHandler() = default;
};

// The owner registers when it is whole, and unregisters before it comes apart. Safe from any
// thread; but it may wait until another thread has forked. So it must not be done while holding
// what a child cannot do without, such as the initialization of a function's static variable: in
// the child it would stay begun for ever.
void register_fork_handler(ForkHandler* handler);
// Registers, and does what `prepare` does, with no fork in between: opens what a child has to let
// go of. If it throws, nothing is registered.
void register_fork_handler(ForkHandler* handler, const std::function<void()>& prepare);
void unregister_fork_handler(ForkHandler* handler) noexcept;

namespace detail {
extern constinit std::atomic<std::uint64_t> fork_counter;
}

// How often this process's line of ancestors forked since the library was loaded: another number
// means another process.
inline std::uint64_t fork_count() noexcept {
  return detail::fork_counter.load(std::memory_order_relaxed);
}

}  // namespace whycache
