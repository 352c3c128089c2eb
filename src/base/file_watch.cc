#include "base/file_watch.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <new>
#include <optional>
#include <utility>

#include "base/clock.h"

namespace whycache {
namespace {

constexpr std::uint32_t replaced_events = IN_DELETE_SELF | IN_MOVE_SELF;

Error watch_error(const char* what, const std::string& path, int error) {
  const std::string hint =
      error == EMFILE || error == ENFILE
          ? " (raise fs.inotify.max_user_instances, or the limit on open files)"
      : error == ENOSPC ? " (raise fs.inotify.max_user_watches)"
                        : "";
  const Error described = system_error(what, path, error);
  return Error(described.kind(), described.what() + hint, error);
}

}  // namespace

FileWatch::FileWatch(std::vector<WatchedFile> targets)
    : targets_(std::move(targets)), state_(new SharedEvents) {
  register_fork_handler(this);
}

FileWatch::~FileWatch() {
  unregister_fork_handler(this);
  delete state_;
}

// The mutex stays locked until another function unlocks it, after the fork.
void FileWatch::before_fork() noexcept WHYCACHE_NO_THREAD_SAFETY_ANALYSIS { state_->mutex.lock(); }

void FileWatch::after_fork_in_parent() noexcept WHYCACHE_NO_THREAD_SAFETY_ANALYSIS {
  state_->mutex.unlock();
}

// Constructs the state again: the copied condition variable counts threads that do not exist in the
// child, and so may has_sleeper.
void FileWatch::after_fork_in_child() noexcept WHYCACHE_NO_THREAD_SAFETY_ANALYSIS {
  inotify_.close();
  wake_up_.close();
  state_->mutex.unlock();
  new (state_) SharedEvents;
}

std::uint64_t FileWatch::begin() {
  const MutexLock lock(state_->mutex);
  if (!inotify_) open();
  add_watches();
  return state_->event_count;
}

void FileWatch::open() {
  FileDescriptor wake_up(::eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_up) throw watch_error("cannot watch files", targets_.front().path, errno);
  FileDescriptor inotify(::inotify_init1(IN_CLOEXEC | IN_NONBLOCK));
  if (!inotify) throw watch_error("cannot watch files", targets_.front().path, errno);
  wake_up_ = std::move(wake_up);
  inotify_ = std::move(inotify);
}

// Adding a watch that exists changes nothing. If another file has come to the path, it is watched
// from now on. One that is missing appears in a directory that is watched, too, or at the next
// attempt.
void FileWatch::add_watches() {
  for (const WatchedFile& target : targets_) {
    const std::uint32_t events = target.events | replaced_events;
    if (::inotify_add_watch(inotify_.number(), target.path.c_str(), events) >= 0) continue;
    if (errno != ENOENT && errno != ENOTDIR)
      throw watch_error("cannot watch file", target.path, errno);
  }
}

bool FileWatch::take_events() {
  alignas(inotify_event) char events[4096];
  bool found = false;
  for (;;) {
    const ssize_t bytes = ::read(inotify_.number(), events, sizeof events);
    if (bytes < 0 && errno == EINTR) continue;
    if (bytes <= 0) return found;
    found = true;
    for (ssize_t offset = 0; offset < bytes;) {
      inotify_event event;
      std::memcpy(&event, events + offset, sizeof event);
      // A file that was moved away is no longer of interest.
      if ((event.mask & IN_MOVE_SELF) != 0) ::inotify_rm_watch(inotify_.number(), event.wd);
      offset += static_cast<ssize_t>(sizeof event + event.len);
    }
  }
}

void FileWatch::wake_sleeper() const noexcept {
  const std::uint64_t one = 1;
  [[maybe_unused]] const ssize_t written = ::write(wake_up_.number(), &one, sizeof one);
}

bool FileWatch::wait(std::uint64_t since, std::chrono::nanoseconds at_most,
                     const std::stop_token& stop) {
  const Deadline deadline(
      std::chrono::ceil<std::chrono::milliseconds>(std::max(at_most, std::chrono::nanoseconds(0))),
      stop);
  const std::stop_callback on_stop(stop, [this] {
    const MutexLock lock(state_->mutex);
    state_->changed.notify_all();
    wake_sleeper();
  });
  MutexLock lock(state_->mutex);
  for (;;) {
    if (state_->event_count != since) return true;
    const std::chrono::nanoseconds left = deadline.remaining();
    if (left.count() == 0) return false;
    if (state_->has_sleeper) {
      state_->changed.wait_for(lock.native(), left);
      continue;
    }
    state_->has_sleeper = true;
    lock.unlock();
    pollfd descriptors[] = {{inotify_.number(), POLLIN, 0}, {wake_up_.number(), POLLIN, 0}};
    const struct timespec time = {static_cast<std::time_t>(left.count() / 1'000'000'000),
                                  static_cast<long>(left.count() % 1'000'000'000)};
    ::ppoll(descriptors, 2, &time, nullptr);
    lock.lock();
    state_->has_sleeper = false;
    std::uint64_t ignored = 0;
    [[maybe_unused]] const ssize_t read = ::read(wake_up_.number(), &ignored, sizeof ignored);
    if (take_events()) ++state_->event_count;
    // One of the others sleeps in the kernel from now on.
    state_->changed.notify_all();
  }
}

}  // namespace whycache
