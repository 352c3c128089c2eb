#include "base/fork_handlers.h"

#include <pthread.h>

#include <algorithm>
#include <mutex>
#include <vector>

namespace whycache {

constinit std::atomic<std::uint64_t> detail::forks{0};

namespace {

struct Listeners {
  // The forking thread holds it across the fork, so that the child finds the list whole.
  std::mutex mutex;
  std::vector<ForkListener*> all;
};

// There from the beginning, so that no thread can be in the midst of making it when another one forks; and never
// destroyed: a thread may still unregister while the process exits.
union Lasting {
  constexpr Lasting() : listeners() {}
  constexpr ~Lasting() {}  // NOLINT(modernize-use-equals-default): there would be none
  Listeners listeners;
};
constinit Lasting lasting;

Listeners& listeners() { return lasting.listeners; }

[[maybe_unused]] const int watching = ::pthread_atfork(
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

}  // namespace

void register_fork_listener(ForkListener* listener) {
  const std::lock_guard guard(listeners().mutex);
  listeners().all.push_back(listener);
}

void register_fork_listener(ForkListener* listener, const std::function<void()>& prepare) {
  const std::lock_guard guard(listeners().mutex);
  listeners().all.push_back(listener);
  try {
    prepare();
  } catch (...) {
    listeners().all.pop_back();
    throw;
  }
}

void unregister_fork_listener(ForkListener* listener) noexcept {
  const std::lock_guard guard(listeners().mutex);
  std::erase(listeners().all, listener);
}

}  // namespace whycache
