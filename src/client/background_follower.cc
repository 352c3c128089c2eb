#include "client/background_follower.h"

#include <chrono>
#include <exception>
#include <new>
#include <optional>
#include <string>
#include <system_error>

#include "base/clock.h"
#include "base/outage.h"
#include "base/signals.h"
#include "client/follow_loop.h"

namespace whycache {
namespace {

// The failures that Session does not report: all but those of a log that does not answer.
class FollowProblems {
 public:
  explicit FollowProblems(Session& session) : session_(session) {}

  void note_failure(const char* message) {
    const std::optional<std::chrono::nanoseconds> lasted = outage_.note_failure();
    if (!lasted) return;
    try {
      session_.report(Event::Kind::not_following,
                      std::string("cannot follow the log, trying again: log=") +
                          session_.log.name() + " state=" + session_.state.path() +
                          for_seconds(" for_seconds=", *lasted) + ": " + message);
    } catch (const std::bad_alloc&) {  // the next report is due later
    }
  }
  void note_success() {
    if (const std::optional<std::chrono::nanoseconds> lasted = outage_.note_success()) {
      session_.report(Event::Kind::following,
                      "following the log again: log=" + session_.log.name() +
                          for_seconds(" after_seconds=", *lasted));
    }
  }

 private:
  static std::string for_seconds(const char* name, std::chrono::nanoseconds lasted) {
    const auto seconds = std::chrono::duration_cast<std::chrono::seconds>(lasted).count();
    return name + std::to_string(seconds);
  }

  Session& session_;
  Outage outage_;
};

}  // namespace

void BackgroundFollower::start() {
  if (!session_.options.follow || thread_.joinable()) return;
  try {
    const BlockedSignals blocked;
    thread_ = std::jthread([this](const std::stop_token& stop) { run(stop); });
  } catch (const std::system_error& error) {
    throw Error(ErrorKind::limit,
                std::string("cannot start a thread for Options::follow: ") + error.what() +
                    " (raise the limit on threads, which ulimit -u sets)",
                error.code().value());
  }
}

void BackgroundFollower::stop() noexcept {
  if (!thread_.joinable()) return;
  thread_.request_stop();
  thread_.join();
}

// Whatever ends an attempt, the next one may succeed: the server, its certificate, its grants, the
// disk and the files may all come back.
void BackgroundFollower::run(const std::stop_token& stop) noexcept {
  FollowLoop loop(session_, session_.options.follow_pace, FollowLoop::WakeFor::polls,
                  MappingPolicy::unmap);
  FollowProblems problems(session_);
  FailurePauses pauses(session_.options.follow_pace.interval_min);
  while (!stop.stop_requested()) {
    try {
      loop.poll_if_due(stop);
      pauses.reset();
      problems.note_success();
      loop.wait(stop);
      continue;
    } catch (const LogError& error) {
      if (stop.stop_requested()) return;
      loop.note_failure(error.kind());
      if (error.kind() == ErrorKind::unavailable) {
        session_.note_outage(error);
      } else {
        problems.note_failure(error.what());
      }
    } catch (const Error& error) {
      if (stop.stop_requested()) return;
      loop.note_failure(error.kind());
      problems.note_failure(error.what());
    } catch (const std::exception& error) {  // out of memory
      loop.note_failure(ErrorKind::limit);
      problems.note_failure(error.what());
    }
    Deadline(std::chrono::milliseconds::max(), stop).sleep(pauses.next());
  }
}

}  // namespace whycache
