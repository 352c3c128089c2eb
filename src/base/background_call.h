// Makes a call on a thread of its own, so that its caller can give up. For functions that may block
// for long and that nothing can interrupt: resolving a host name, a handshake with a server.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <new>
#include <optional>
#include <system_error>
#include <thread>
#include <utility>

#include "base/clock.h"
#include "base/mutex.h"
#include "base/signals.h"

namespace whycache {

// How many threads of background calls there are.
class BackgroundThreads {
 public:
  struct RunningCall {
    RunningCall() { count.fetch_add(1, std::memory_order_relaxed); }
    RunningCall(const RunningCall&) = delete;
    RunningCall& operator=(const RunningCall&) = delete;
    ~RunningCall() { count.fetch_sub(1, std::memory_order_release); }
  };
  static bool are_running() noexcept { return count.load(std::memory_order_acquire) != 0; }
  // Waits until there are none, or until `timeout`. For a handler of atexit() that runs before a
  // library's own.
  static void wait_for_none(std::chrono::milliseconds timeout) noexcept {
    const Deadline deadline(timeout);
    while (are_running() && !deadline.passed())
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }

 private:
  // Each thread adds itself (relaxed) and subtracts itself when it is done (release). The exiting
  // thread loads it (acquire, in are_running()): at 0, all that those threads did is behind it.
  static inline constinit std::atomic<int> count{0};
};

// The thread blocks signals. It owns what it needs: if the caller gives up, the thread finishes
// alone, and then destroys the result. Costs the start of a thread, some 20 us.
//
// exit() destroys what libraries need, while such a thread may be inside one. BackgroundThreads
// delays it a little.
template <typename Result>
class BackgroundCall {
 public:
  // Without a thread to spare, makes the call at once on this one.
  explicit BackgroundCall(std::function<Result()> function)
      : outcome_(std::make_shared<CallOutcome>()) {
    const auto run = [outcome = outcome_, function = std::move(function)] {
      const BackgroundThreads::RunningCall running;
      std::optional<Result> result;
      std::exception_ptr failure;
      try {
        result.emplace(function());
      } catch (...) {
        failure = std::current_exception();
      }
      {
        const MutexLock lock(outcome->mutex);
        outcome->result = std::move(result);
        outcome->failure = std::move(failure);
        outcome->done = true;
      }
      outcome->changed.notify_all();
    };
    try {
      const BlockedSignals blocked;
      std::thread(run).detach();
    } catch (const std::system_error&) {
      run();
    }
  }

  std::int64_t began_at_ns() const { return began_at_ns_; }
  bool is_done() const {
    const MutexLock lock(outcome_->mutex);
    return outcome_->done;
  }
  // For a forked child: the result is of the parent, and must never be destroyed.
  void leak_result() noexcept {
    static_cast<void>(new (std::nothrow) std::shared_ptr<CallOutcome>(outcome_));
  }
  // Returns what the function returned, or throws what it threw. Returns nullopt if it has not
  // finished when the deadline passes; the caller may wait again. To be called until it returns or
  // throws once.
  std::optional<Result> wait(const Deadline& deadline) {
    CallOutcome& outcome = *outcome_;
    MutexLock lock(outcome.mutex);
    // The mutex is held while it runs.
    const auto is_done = [&]() WHYCACHE_NO_THREAD_SAFETY_ANALYSIS { return outcome.done; };
    if (!deadline.wait(lock.native(), outcome.changed, is_done)) return std::nullopt;
    if (outcome.failure) std::rethrow_exception(std::exchange(outcome.failure, nullptr));
    return std::move(outcome.result);
  }

 private:
  struct CallOutcome {
    Mutex mutex;
    std::condition_variable changed;
    bool done WHYCACHE_GUARDED_BY(mutex) = false;
    std::optional<Result> result WHYCACHE_GUARDED_BY(mutex);
    std::exception_ptr failure WHYCACHE_GUARDED_BY(mutex);
  };

  std::int64_t began_at_ns_ = boot_time_ns();
  std::shared_ptr<CallOutcome> outcome_;
};

}  // namespace whycache
