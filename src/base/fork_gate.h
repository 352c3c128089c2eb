// Lets threads into a library whose locks must not be copied into a child as they stand, and fork() only when none is
// there.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <new>
#include <optional>

#include "base/fork_handlers.h"

namespace whycache {

// There is one for each such library, and it is never destroyed: threads may be inside while the process exits.
class ForkGate final : ForkListener {
  struct Room {
    std::mutex mutex;
    std::condition_variable changed;
    std::size_t inside = 0;
    std::size_t forking = 0;
  };

 public:
  // How long fork() waits for those inside: for ever by default. A bound is for libraries that hold their locks for
  // moments only, but may wait for others inside.
  explicit ForkGate(std::optional<std::chrono::milliseconds> patience = std::nullopt) : patience_(patience) {
    register_fork_listener(this);
  }

  // While it lives, its thread is inside.
  class Inside {
   public:
    explicit Inside(ForkGate& gate) : room_(*gate.room_) {
      std::unique_lock lock(room_.mutex);
      room_.changed.wait(lock, [&] { return room_.forking == 0; });
      ++room_.inside;
    }
    Inside(const Inside&) = delete;
    Inside& operator=(const Inside&) = delete;
    ~Inside() {
      const std::lock_guard lock(room_.mutex);
      --room_.inside;
      room_.changed.notify_all();
    }

   private:
    Room& room_;
  };

 private:
  void before_fork() noexcept override {
    std::unique_lock lock(room_->mutex);
    ++room_->forking;
    const auto nobody_is_inside = [&] { return room_->inside == 0; };
    if (patience_) {
      room_->changed.wait_for(lock, *patience_, nobody_is_inside);
    } else {
      room_->changed.wait(lock, nobody_is_inside);
    }
    lock.release();  // stays locked until after the fork
  }
  void after_fork_in_parent() noexcept override {
    --room_->forking;
    room_->mutex.unlock();
    room_->changed.notify_all();
  }
  // In the room wait threads that do not exist here: it is made anew, not cleared.
  void after_fork_in_child() noexcept override {
    room_->mutex.unlock();
    new (room_) Room;
  }

  const std::optional<std::chrono::milliseconds> patience_;
  Room* const room_ = new Room;
};

}  // namespace whycache
