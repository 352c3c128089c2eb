#include "base/fork_handlers.h"

#include <pthread.h>

#include <algorithm>
#include <mutex>
#include <vector>

namespace whycache {

constinit std::atomic<std::uint64_t> detail::fork_counter{0};

namespace {

struct ForkHandlerRegistry {
  // The forking thread holds it across the fork, so that the child finds the list whole.
  std::mutex mutex;
  std::vector<ForkHandler*> handlers;
};

// There from the beginning, so that no thread can be in the midst of making it when another one
// forks; and never destroyed: a thread may still unregister while the process exits.
union StaticRegistry {
  constexpr StaticRegistry() : registry() {}
  constexpr ~StaticRegistry() {}  // NOLINT(modernize-use-equals-default): there would be none
  ForkHandlerRegistry registry;
};
constinit StaticRegistry static_registry;

ForkHandlerRegistry& registry() { return static_registry.registry; }

[[maybe_unused]] const int atfork_result = ::pthread_atfork(
    [] {
      registry().mutex.lock();
      for (ForkHandler* listener : registry().handlers) listener->before_fork();
    },
    [] {
      for (ForkHandler* listener : registry().handlers) listener->after_fork_in_parent();
      registry().mutex.unlock();
    },
    [] {
      detail::fork_counter.fetch_add(1, std::memory_order_relaxed);
      for (ForkHandler* listener : registry().handlers) listener->after_fork_in_child();
      registry().mutex.unlock();
    });

}  // namespace

void register_fork_handler(ForkHandler* listener) {
  const std::lock_guard guard(registry().mutex);
  registry().handlers.push_back(listener);
}

void register_fork_handler(ForkHandler* listener, const std::function<void()>& prepare) {
  const std::lock_guard guard(registry().mutex);
  registry().handlers.push_back(listener);
  try {
    prepare();
  } catch (...) {
    registry().handlers.pop_back();
    throw;
  }
}

void unregister_fork_handler(ForkHandler* listener) noexcept {
  const std::lock_guard guard(registry().mutex);
  std::erase(registry().handlers, listener);
}

}  // namespace whycache
