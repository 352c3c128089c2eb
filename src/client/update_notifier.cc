#include "client/update_notifier.h"

#include <sys/eventfd.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdint>
#include <new>
#include <system_error>

#include "base/clock.h"
#include "base/signals.h"
#include "state/state.h"

namespace whycache {

UpdateNotifier::UpdateNotifier(Session& session) : session_(session) {
  register_fork_handler(this);
}

UpdateNotifier::~UpdateNotifier() {
  stop();
  unregister_fork_handler(this);
}

int UpdateNotifier::start(bool is_open) {
  if (!event_) {
    event_ = FileDescriptor(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
    if (!event_)
      throw system_error("cannot make a descriptor for notify_fd()", session_.state.path(), errno);
  }
  if (is_open) restart();
  return event_.number();
}

void UpdateNotifier::restart() {
  if (!event_ || thread_.joinable()) return;
  const UpdateId seen = session_.state.usable() ? session_.state.applied_id() : 0;
  try {
    const BlockedSignals blocked;
    thread_ = std::jthread([this, seen](const std::stop_token& stop) { run(seen, stop); });
  } catch (const std::system_error& error) {
    throw Error(ErrorKind::limit,
                std::string("cannot start a thread for notify_fd(): ") + error.what() +
                    " (raise the limit on threads, which ulimit -u sets)",
                error.code().value());
  }
}

void UpdateNotifier::stop() noexcept {
  if (!thread_.joinable()) return;
  thread_.request_stop();
  thread_.join();
  notify();
}

void UpdateNotifier::run(UpdateId seen, const std::stop_token& stop) noexcept {
  constexpr std::chrono::seconds retry_interval{1};
  while (!stop.stop_requested()) {
    const Deadline deadline(std::chrono::milliseconds::max(), stop);
    try {
      seen = session_.state.wait(seen, deadline, seen);
      if (!stop.stop_requested()) notify();
    } catch (const std::exception&) {
      // The application's next read throws it. What can be read may have changed.
      notify();
      deadline.sleep(retry_interval);
    }
  }
}

// Adds to the counter of the eventfd. It fails only if the counter is at its limit; then the
// descriptor is readable anyway.
void UpdateNotifier::notify() const noexcept {
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(event_.number(), &one, sizeof one);
}

}  // namespace whycache
