// Lets fork() run only while no thread is inside a library whose locks a child must not inherit in
// use.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <new>
#include <optional>

#include "base/fork_handlers.h"
#include "base/mutex.h"

namespace whycache {

// Each such library has one. It is never destroyed: threads may be inside while the process exits.
class ForkExclusion final : ForkHandler {
  struct ExclusionState {
    Mutex mutex;
    std::condition_variable changed;
    std::size_t inside_count WHYCACHE_GUARDED_BY(mutex) = 0;
    std::size_t forking_count WHYCACHE_GUARDED_BY(mutex) = 0;
  };

 public:
  // `timeout`: how long fork() waits for the threads inside; forever by default. A timeout suits a
  // library that holds its locks briefly, but inside which a thread may wait for others.
  explicit ForkExclusion(std::optional<std::chrono::milliseconds> timeout = std::nullopt)
      : timeout_(timeout) {
    register_fork_handler(this);
  }

  // Its thread is inside from the constructor to the destructor. The constructor waits while
  // another thread forks.
  class NoForkSection {
   public:
    explicit NoForkSection(ForkExclusion& exclusion) : state_(*exclusion.state_) {
      MutexLock lock(state_.mutex);
      while (state_.forking_count != 0) state_.changed.wait(lock.native());
      ++state_.inside_count;
    }
    NoForkSection(const NoForkSection&) = delete;
    NoForkSection& operator=(const NoForkSection&) = delete;
    ~NoForkSection() {
      const MutexLock lock(state_.mutex);
      --state_.inside_count;
      state_.changed.notify_all();
    }

   private:
    ExclusionState& state_;
  };

  // Its thread, which is inside, is outside from the constructor to the destructor: for a wait
  // within the library during which it holds no lock that a child needs. The destructor waits while
  // another thread forks.
  class ForkSection {
   public:
    explicit ForkSection(ForkExclusion& exclusion) : state_(*exclusion.state_) {
      const MutexLock lock(state_.mutex);
      --state_.inside_count;
      state_.changed.notify_all();
    }
    ForkSection(const ForkSection&) = delete;
    ForkSection& operator=(const ForkSection&) = delete;
    ~ForkSection() {
      MutexLock lock(state_.mutex);
      while (state_.forking_count != 0) state_.changed.wait(lock.native());
      ++state_.inside_count;
    }

   private:
    ExclusionState& state_;
  };

  // Returns whether a thread waits to fork until all threads are outside.
  bool is_fork_waiting() const {
    const MutexLock lock(state_->mutex);
    return state_->forking_count != 0;
  }

 private:
  // The mutex stays locked until another function unlocks it, after the fork. The analysis cannot
  // follow that.
  void before_fork() noexcept override WHYCACHE_NO_THREAD_SAFETY_ANALYSIS {
    MutexLock lock(state_->mutex);
    ++state_->forking_count;
    const auto is_empty = [&]() WHYCACHE_REQUIRES(state_->mutex) {
      return state_->inside_count == 0;
    };
    if (timeout_) {
      state_->changed.wait_for(lock.native(), *timeout_, is_empty);
    } else {
      state_->changed.wait(lock.native(), is_empty);
    }
    lock.native().release();
  }
  void after_fork_in_parent() noexcept override WHYCACHE_NO_THREAD_SAFETY_ANALYSIS {
    --state_->forking_count;
    state_->mutex.unlock();
    state_->changed.notify_all();
  }
  // Constructs the state again rather than clearing it: the copied condition variable counts
  // waiting threads that do not exist in the child.
  void after_fork_in_child() noexcept override WHYCACHE_NO_THREAD_SAFETY_ANALYSIS {
    state_->mutex.unlock();
    new (state_) ExclusionState;
  }

  const std::optional<std::chrono::milliseconds> timeout_;
  ExclusionState* const state_ = new ExclusionState;
};

}  // namespace whycache
