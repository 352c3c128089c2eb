#include "log/socket_timeout.h"

#include <sys/socket.h>

#include <algorithm>
#include <condition_variable>
#include <limits>
#include <map>
#include <new>
#include <system_error>
#include <thread>
#include <utility>

#include "base/fork_handlers.h"
#include "base/mutex.h"
#include "base/signals.h"

namespace whycache {
namespace {

// The sockets of this process that are being watched, and the thread that watches them. Never
// destroyed: the thread runs until the process exits.
class SocketWatch final : ForkHandler {
 public:
  static SocketWatch& instance() {
    static auto* const watch = new SocketWatch;
    return *watch;
  }

  // Returns the number under which the socket is watched.
  std::uint64_t add(int socket, std::int64_t at_ns) {
    WatchState& state = *state_;
    const MutexLock lock(state.mutex);
    if (!state.has_thread) start_thread(state);
    const std::uint64_t number = ++state.last_number;
    state.sockets.emplace(number, WatchedSocket{socket, at_ns});
    if (at_ns < state.wakes_at_ns) state.changed.notify_one();
    return number;
  }
  // After it returns, the socket is left alone.
  void remove(std::uint64_t number) noexcept {
    const MutexLock lock(state_->mutex);
    state_->sockets.erase(number);
  }
  void shut_down(std::uint64_t number) noexcept {
    const MutexLock lock(state_->mutex);
    const auto found = state_->sockets.find(number);
    if (found != state_->sockets.end()) ::shutdown(found->second.socket, SHUT_RDWR);
  }

 private:
  struct WatchedSocket {
    int socket;
    std::int64_t at_ns;
  };
  struct WatchState {
    Mutex mutex;
    std::condition_variable changed;
    std::map<std::uint64_t, WatchedSocket> sockets WHYCACHE_GUARDED_BY(mutex);
    std::uint64_t last_number WHYCACHE_GUARDED_BY(mutex) = 0;
    // When the thread looks next, unless it is notified.
    std::int64_t wakes_at_ns WHYCACHE_GUARDED_BY(mutex) = 0;
    bool has_thread WHYCACHE_GUARDED_BY(mutex) = false;
  };
  static constexpr std::int64_t never = std::numeric_limits<std::int64_t>::max();

  SocketWatch() { register_fork_handler(this); }

  // Without a thread to spare, the library's own timeouts remain.
  static void start_thread(WatchState& state) WHYCACHE_REQUIRES(state.mutex) {
    try {
      const BlockedSignals blocked;
      std::thread([&state] { watch(state); }).detach();
      state.has_thread = true;
    } catch (const std::system_error&) {
    }
  }

  static void watch(WatchState& state) {
    MutexLock lock(state.mutex);
    for (;;) {
      const std::int64_t now_ns = boot_time_ns();
      state.wakes_at_ns = never;
      for (auto& [number, watched] : state.sockets) {
        if (watched.at_ns <= now_ns) {
          ::shutdown(watched.socket, SHUT_RDWR);
          watched.at_ns = never;
        }
        state.wakes_at_ns = std::min(state.wakes_at_ns, watched.at_ns);
      }
      if (state.wakes_at_ns == never) {
        state.changed.wait(lock.native());
      } else {
        state.changed.wait_for(lock.native(), std::chrono::nanoseconds(state.wakes_at_ns - now_ns));
      }
    }
  }

  void before_fork() noexcept override WHYCACHE_NO_THREAD_SAFETY_ANALYSIS { state_->mutex.lock(); }
  void after_fork_in_parent() noexcept override WHYCACHE_NO_THREAD_SAFETY_ANALYSIS {
    state_->mutex.unlock();
  }
  // The child has neither the thread nor the calls. Constructs the state again rather than clearing
  // it: the copied condition variable counts the parent's thread.
  void after_fork_in_child() noexcept override WHYCACHE_NO_THREAD_SAFETY_ANALYSIS {
    // A stop callback of the parent may still run with one of its numbers.
    const std::uint64_t last_number = state_->last_number;
    state_->mutex.unlock();
    state_->sockets.~map();
    new (state_) WatchState;
    state_->last_number = last_number;
  }

  WatchState* const state_ = new WatchState;
};

// Created before there are threads, see register_fork_handler().
[[maybe_unused]] const SocketWatch& early_instance = SocketWatch::instance();

}  // namespace

SocketTimeout::SocketTimeout(std::shared_ptr<const FileDescriptor> socket, const Deadline& deadline)
    : socket_(std::move(socket)),
      number_(SocketWatch::instance().add(
          socket_->number(),
          boot_time_ns() +
              std::max<std::int64_t>(deadline.time_left().count(),
                                     std::chrono::nanoseconds(shortest_wait).count()))) {
  if (deadline.stop().stop_possible()) on_stop_.emplace(deadline.stop(), Stop{number_});
}

SocketTimeout::~SocketTimeout() {
  on_stop_.reset();  // waits for a callback that is running
  SocketWatch::instance().remove(number_);
}

void SocketTimeout::Stop::operator()() const noexcept { SocketWatch::instance().shut_down(number); }

}  // namespace whycache
