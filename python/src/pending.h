// The outcome of a write or another call that waits, to be had later: by a thread that waits for
// it, or by an event loop that is woken.
#pragma once

#include "base/mutex.h"
#include "client/write_queue.h"
#include "module.h"

#include <whycache/lease.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <stop_token>
#include <variant>

namespace whycache::python {

class PendingState;

// Wakes an event loop by a file descriptor (eventfd). Library threads call it, without the GIL.
class LoopWaker : public WriteWaker {
 public:
  // Throws Error(limit) if there is no descriptor left.
  LoopWaker();
  ~LoopWaker() override;
  LoopWaker(const LoopWaker&) = delete;
  LoopWaker& operator=(const LoopWaker&) = delete;

  int descriptor() const { return descriptor_; }
  void wake() noexcept override;
  void add(PendingState& finished) noexcept;
  // Returns what has finished since the last call, as a list that PendingState::next_finished
  // links.
  std::shared_ptr<PendingState> take() noexcept;
  // Drops what has finished, and from now on what finishes: the event loop has ended. Without it,
  // this object and the list would keep each other.
  void abandon() noexcept;

 private:
  const int descriptor_;
  Mutex mutex_;
  std::shared_ptr<PendingState> first_ WHYCACHE_GUARDED_BY(mutex_);
  PendingState* last_ WHYCACHE_GUARDED_BY(mutex_) = nullptr;
  bool abandoned_ WHYCACHE_GUARDED_BY(mutex_) = false;
};

// None, an update id, a sum, yes or no, or a lease.
using Outcome = std::variant<std::monostate, UpdateId, std::int64_t, bool, Lease>;

class PendingState : public WriteCompletion, public std::enable_shared_from_this<PendingState> {
 public:
  // `calls_under_way` counts it until it has finished.
  PendingState(std::shared_ptr<LoopWaker> waker,
               std::shared_ptr<std::atomic<std::size_t>> calls_under_way);
  ~PendingState() override;

  void finish(UpdateId id, const std::exception_ptr& failure) noexcept override {
    finish_with(id, failure);
    // The queue calls the waker after the whole group.
  }
  // Runs a call on this thread, and takes its outcome.
  void run(const std::function<Outcome(std::stop_token)>& call) noexcept;

  bool done() const;
  // Waits at most so long. Returns done().
  bool wait_for(std::chrono::milliseconds time);
  // After done(). Throws what the call has thrown.
  Outcome outcome() const;
  void request_stop() { stop_.request_stop(); }
  std::stop_token stop_token() const { return stop_.get_token(); }
  // Whether this process has been forked from the one that made the call.
  bool is_of_parent() const;

  // The Python object of this state, while there is one. Needs the GIL.
  PyObject* object = nullptr;
  // Guarded by the mutex of the waker.
  std::shared_ptr<PendingState> next_finished;

 private:
  void finish_with(const Outcome& outcome, const std::exception_ptr& failure) noexcept;

  const std::shared_ptr<LoopWaker> loop_waker_;
  const std::shared_ptr<std::atomic<std::size_t>> calls_under_way_;
  const std::int64_t process_id_;
  std::stop_source stop_;
  mutable Mutex mutex_;
  std::condition_variable finished_;
  bool done_ WHYCACHE_GUARDED_BY(mutex_) = false;
  Outcome outcome_ WHYCACHE_GUARDED_BY(mutex_);
  std::exception_ptr failure_ WHYCACHE_GUARDED_BY(mutex_);
};

// Returns a new Pending object, or null with an exception set. `cache` stays alive as long as it.
PyObject* make_pending(ModuleState& module, std::shared_ptr<PendingState> state, PyObject* cache);
// Returns the waker of a Completions object; null for None. Returns false with an exception set for
// anything else.
bool waker_of(ModuleState& module, PyObject* completions, std::shared_ptr<LoopWaker>& waker);

}  // namespace whycache::python
