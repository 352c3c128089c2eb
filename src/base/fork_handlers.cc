#include "base/fork_handlers.h"

#include <pthread.h>

#include <algorithm>
#include <vector>

#include "base/mutex.h"

namespace whycache {

constinit std::atomic<std::uint64_t> detail::fork_counter{0};

namespace {

struct ForkHandlerRegistry {
  // The forking thread holds it across the fork, so that the child's list is consistent.
  Mutex mutex;
  std::vector<ForkHandler*> handlers WHYCACHE_GUARDED_BY(mutex);
};

// Initialized at compile time, so that no thread can be constructing it when another one forks.
// Never destroyed: a thread may still unregister while the process exits.
union StaticRegistry {
  constexpr StaticRegistry() : registry() {}
  constexpr ~StaticRegistry() {}  // NOLINT(modernize-use-equals-default): that would delete it
  ForkHandlerRegistry registry;
};
constinit StaticRegistry static_registry;

ForkHandlerRegistry& registry() { return static_registry.registry; }

void prepare_fork() WHYCACHE_ACQUIRE(registry().mutex) {
  registry().mutex.lock();
  for (ForkHandler* handler : registry().handlers) handler->before_fork();
}

void finish_fork_in_parent() WHYCACHE_RELEASE(registry().mutex) {
  for (ForkHandler* handler : registry().handlers) handler->after_fork_in_parent();
  registry().mutex.unlock();
}

void finish_fork_in_child() WHYCACHE_RELEASE(registry().mutex) {
  detail::fork_counter.fetch_add(1, std::memory_order_relaxed);
  for (ForkHandler* handler : registry().handlers) handler->after_fork_in_child();
  registry().mutex.unlock();
}

[[maybe_unused]] const int atfork_result =
    ::pthread_atfork(prepare_fork, finish_fork_in_parent, finish_fork_in_child);

}  // namespace

void register_fork_handler(ForkHandler* handler) {
  const MutexLock lock(registry().mutex);
  registry().handlers.push_back(handler);
}

void register_fork_handler(ForkHandler* handler, const std::function<void()>& prepare) {
  const MutexLock lock(registry().mutex);
  registry().handlers.push_back(handler);
  try {
    prepare();
  } catch (...) {
    registry().handlers.pop_back();
    throw;
  }
}

void unregister_fork_handler(ForkHandler* handler) noexcept {
  const MutexLock lock(registry().mutex);
  std::erase(registry().handlers, handler);
}

}  // namespace whycache
