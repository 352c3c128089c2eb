// Lets threads into a library whose locks must not be copied into a child as they stand, and fork()
// only when none is there.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <new>
#include <optional>

#include "base/fork_handlers.h"

namespace whycache {

// There is one for each such library, and it is never destroyed: threads may be inside while the
// process exits.
class ForkExclusion final : ForkHandler {
  struct ExclusionState {
    std::mutex mutex;
    std::condition_variable changed;
    std::size_t inside_count = 0;
    std::size_t forking_count = 0;
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
      std::unique_lock lock(state_.mutex);
      state_.changed.wait(lock, [&] { return state_.forking_count == 0; });
      ++state_.inside_count;
    }
    NoForkSection(const NoForkSection&) = delete;
    NoForkSection& operator=(const NoForkSection&) = delete;
    ~NoForkSection() {
      const std::lock_guard lock(state_.mutex);
      --state_.inside_count;
      state_.changed.notify_all();
    }

   private:
    ExclusionState& state_;
  };

 private:
  void before_fork() noexcept override {
    std::unique_lock lock(state_->mutex);
    ++state_->forking_count;
    const auto nobody_is_inside = [&] { return state_->inside_count == 0; };
    if (timeout_) {
      state_->changed.wait_for(lock, *timeout_, nobody_is_inside);
    } else {
      state_->changed.wait(lock, nobody_is_inside);
    }
    lock.release();  // stays locked until after the fork
  }
  void after_fork_in_parent() noexcept override {
    --state_->forking_count;
    state_->mutex.unlock();
    state_->changed.notify_all();
  }
  // In the room wait threads that do not exist here: it is made anew, not cleared.
  void after_fork_in_child() noexcept override {
    state_->mutex.unlock();
    new (state_) ExclusionState;
  }

  const std::optional<std::chrono::milliseconds> timeout_;
  ExclusionState* const state_ = new ExclusionState;
};

}  // namespace whycache
