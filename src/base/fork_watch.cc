#include "base/fork_watch.h"

#include <pthread.h>

#include <algorithm>
#include <mutex>
#include <vector>

namespace whycache {

constinit std::atomic<std::uint64_t> detail::forks{0};

namespace {

struct Listeners {
  std::mutex mutex;
  std::vector<ForkListener*> all;
};

// Never destroyed: a thread may still unregister while the process exits.
Listeners& listeners() {
  static Listeners* const instance = [] {
    auto* made = new Listeners;
    // The forking thread holds the mutex across the fork, so that the child finds the list whole.
    ::pthread_atfork(
        [] {
          listeners().mutex.lock();
          for (ForkListener* listener : listeners().all) listener->before_fork();
        },
        [] {
          for (ForkListener* listener : listeners().all) listener->after_fork_in_parent();
          listeners().mutex.unlock();
        },
        [] {
          detail::forks.fetch_add(1, std::memory_order_relaxed);
          for (ForkListener* listener : listeners().all) listener->after_fork_in_child();
          listeners().mutex.unlock();
        });
    return made;
  }();
  return *instance;
}

}  // namespace

void register_fork_listener(ForkListener* listener) {
  const std::lock_guard guard(listeners().mutex);
  listeners().all.push_back(listener);
}

void unregister_fork_listener(ForkListener* listener) noexcept {
  const std::lock_guard guard(listeners().mutex);
  std::erase(listeners().all, listener);
}

}  // namespace whycache
