// A thread that makes calls for an object, one after another. The object waits for each until a
// deadline. For libraries whose calls may block for longer, and that nothing can interrupt.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/fork_handlers.h"
#include "base/mutex.h"
#include "base/signals.h"

namespace whycache {

// The thread starts with the first call and blocks signals. It owns what its calls need: if the
// object is destroyed while a call is under way, the thread finishes alone. One thread at a time
// may use a Worker, and only the process that made it. A call costs two switches of threads, some
// 10 us.
class Worker {
 public:
  Worker() = default;
  Worker(const Worker&) = delete;
  Worker& operator=(const Worker&) = delete;
  ~Worker() {
    if (fork_count() != owner_fork_count_) return;  // the thread may have held the mutex
    {
      const MutexLock lock(shared_->mutex);
      shared_->ending = true;
    }
    shared_->changed.notify_all();
  }

  // Whether a call is under way whose caller has given up.
  bool is_busy() const {
    const MutexLock lock(shared_->mutex);
    return shared_->is_busy;
  }

  // Returns what the function returns, or throws what it throws. Returns nullopt if the deadline
  // passes first, or if the worker is busy. Without a thread to spare, makes the call on this one.
  template <typename Result>
  std::optional<Result> call(std::function<Result()> function, const Deadline& deadline) {
    const auto outcome = std::make_shared<JobOutcome<Result>>();
    Shared& shared = *shared_;
    MutexLock lock(shared.mutex);
    if (shared.is_busy) return std::nullopt;
    if (!start()) {
      lock.unlock();
      return function();
    }
    shared.job = [outcome, function = std::move(function)] {
      try {
        outcome->result.emplace(function());
      } catch (...) {
        outcome->failure = std::current_exception();
      }
    };
    shared.is_busy = true;
    shared.changed.notify_all();
    // The mutex is held while it runs.
    const auto is_idle = [&]() WHYCACHE_NO_THREAD_SAFETY_ANALYSIS { return !shared.is_busy; };
    if (!deadline.wait(lock.native(), shared.changed, is_idle)) return std::nullopt;
    if (outcome->failure) std::rethrow_exception(outcome->failure);
    return std::move(outcome->result);
  }

 private:
  template <typename Result>
  struct JobOutcome {
    std::optional<Result> result;
    std::exception_ptr failure;
  };
  struct Shared {
    Mutex mutex;
    std::condition_variable changed;  // is_busy or ending
    std::function<void()> job WHYCACHE_GUARDED_BY(mutex);
    bool is_busy WHYCACHE_GUARDED_BY(mutex) = false;
    bool ending WHYCACHE_GUARDED_BY(mutex) = false;
  };

  bool start() {
    if (has_thread_) return true;
    try {
      const BlockedSignals blocked;
      std::thread([shared = shared_] { run(*shared); }).detach();
      has_thread_ = true;
    } catch (const std::system_error&) {
    }
    return has_thread_;
  }

  static void run(Shared& shared) {
    MutexLock lock(shared.mutex);
    for (;;) {
      while (!shared.is_busy && !shared.ending) shared.changed.wait(lock.native());
      if (!shared.is_busy) return;
      std::function<void()> job = std::exchange(shared.job, nullptr);
      lock.unlock();
      job();
      job = nullptr;  // may be the last to own what the call needed
      lock.lock();
      shared.is_busy = false;
      shared.changed.notify_all();
    }
  }

  const std::shared_ptr<Shared> shared_ = std::make_shared<Shared>();
  const std::uint64_t owner_fork_count_ = fork_count();
  bool has_thread_ = false;
};

}  // namespace whycache
