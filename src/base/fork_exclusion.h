// Lets threads into a library whose locks must not be copied into a child as they stand, and fork()
// only when none is there.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <new>
#include <optional>

#include "base/fork_handlers.h"
#include "base/mutex.h"

namespace whycache {

// There is one for each such library, and it is never destroyed: threads may be inside while the
// process exits.
class ForkExclusion final : ForkHandler {
  struct ExclusionState {
    Mutex mutex;
    std::condition_variable changed;
    std::size_t inside_count WHYCACHE_GUARDED_BY(mutex) = 0;
    std::size_t forking_count WHYCACHE_GUARDED_BY(mutex) = 0;
  };

 public:
  // How long fork() waits for those inside: for ever by default. A bound is for libraries that hold
  // their locks for moments only, but may wait for others inside.
  explicit ForkExclusion(std::optional<std::chrono::milliseconds> patience = std::nullopt)
      : timeout_(patience) {
    register_fork_handler(this);
  }

  // While it lives, its thread is inside.
  class NoForkSection {
   public:
    explicit NoForkSection(ForkExclusion& gate) : state_(*gate.state_) {
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

 private:
  // The mutex stays locked until after the fork, in another function: not for the analysis.
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
  // In the room wait threads that do not exist here: it is made anew, not cleared.
  void after_fork_in_child() noexcept override WHYCACHE_NO_THREAD_SAFETY_ANALYSIS {
    state_->mutex.unlock();
    new (state_) ExclusionState;
  }

  const std::optional<std::chrono::milliseconds> timeout_;
  ExclusionState* const state_ = new ExclusionState;
};

}  // namespace whycache
