#include "client/follow_loop.h"

#include <algorithm>
#include <exception>
#include <string>
#include <utility>

#include "base/backoff.h"
#include "base/call_limit.h"
#include "base/clock.h"
#include "base/random.h"
#include "client/follow.h"

namespace whycache {
namespace {

// How often a process that stands by tries the lock, so that it follows within half a second of the
// follower's end.
constexpr std::chrono::milliseconds standby_interval{400};
// Between attempts after failures. Long enough for a server that all machines ask.
constexpr std::chrono::seconds longest_pause{15};
// When a mapping that was used last is idle (writable_mapping_cache.h), and a little later.
constexpr std::chrono::milliseconds mapping_idle_after{105};

Deadline deadline_after(std::chrono::nanoseconds time, const std::stop_token& stop) {
  return Deadline(std::chrono::ceil<std::chrono::milliseconds>(time), stop);
}

}  // namespace

FollowLoop::FollowLoop(Session& session, const FollowPace& pace, WakeFor wake_for,
                       MappingPolicy mapping)
    : session_(session),
      pace_(pace),
      wake_for_(wake_for),
      mapping_(mapping),
      pacer_(std::in_place, pace) {}

bool FollowLoop::try_to_become_follower() {
  std::optional<HeldLock> lock = session_.state.try_lock(StateLock::follower);
  if (!lock) return false;
  following_.emplace(std::move(*lock));
  pacer_.emplace(pace_);  // the first poll is due
  return true;
}

UpdateId FollowLoop::applied_id() const {
  return session_.state.usable() ? session_.state.applied_id() : 0;
}

// Returns how many updates this cache has applied that it had not written. Others than these say
// nothing about the traffic in the log: the process that writes on this machine applies them.
std::uint64_t FollowLoop::updates_of_others() const {
  const Counters counters = session_.counters.read();
  return counters.updates_applied - std::min(counters.updates_written, counters.updates_applied);
}

void FollowLoop::poll_if_due(const std::stop_token& stop) {
  session_.state.unmap_whole_if_idle();
  if (is_follower() || try_to_become_follower()) {
    if (pacer_->time_left(PollPacer::Clock::now()).count() > 0) return;
  } else if (session_.has_seen_any_log() && session_.state.usable()) {
    has_failed_ = false;
    return;
  }
  Backoff backoff(session_.options.deadline, stop);
  if (has_failed_) session_.call_log(backoff.deadline(), [](Log& log) { return log.extent(); });
  const PollPacer::Clock::time_point now = PollPacer::Clock::now();
  const std::uint64_t before = updates_of_others();
  follow(session_, backoff, 0, std::nullopt, mapping_);
  pacer_->note_poll(now, updates_of_others() > before, session_.log.notifies());
  has_failed_ = false;
}

void FollowLoop::wait(const std::stop_token& stop) {
  std::chrono::nanoseconds left =
      standby_interval - standby_interval / 4000 * (random_u64() % 1000);
  if (is_follower()) {
    left = pacer_->time_left(PollPacer::Clock::now());
    if (left.count() <= 0) return;
    // After a notification, the pacer may delay the poll.
    if (session_.log.notifies() && !pacer_->was_notified())
      return wait_for_log(left, at_most_until_idle(left), stop);
  }
  left = at_most_until_idle(left);
  const Deadline deadline = deadline_after(left, stop);
  if (wake_for_ == WakeFor::updates && session_.state.usable()) {
    session_.state.wait(session_.state.applied_id(), deadline);
  } else {
    deadline.sleep(left);
  }
}

std::chrono::nanoseconds FollowLoop::at_most_until_idle(std::chrono::nanoseconds time) const {
  return session_.state.has_cached_mapping()
             ? std::min<std::chrono::nanoseconds>(time, mapping_idle_after)
             : time;
}

// Waits for `at_most`, when a poll is due in `left`.
void FollowLoop::wait_for_log(std::chrono::nanoseconds left, std::chrono::nanoseconds at_most,
                              const std::stop_token& stop) {
  const Deadline deadline = deadline_after(at_most, stop);
  const bool is_woken = session_.wait_for_log(deadline, applied_id(), at_most).value_or(true);
  const PollPacer::Clock::time_point now = PollPacer::Clock::now();
  if (is_woken) {
    pacer_->note_notification(now);
  } else if (at_most == left) {
    pacer_->note_silence(now);
  }
}

void FollowLoop::note_failure(ErrorKind kind) {
  // A log that does not answer one process does not answer the others.
  if (kind != ErrorKind::unavailable) following_.reset();
  session_.state.unmap_cached();  // the pause may be long
  has_failed_ = true;
}

std::chrono::nanoseconds FailurePauses::next() {
  const std::chrono::nanoseconds longest =
      std::max<std::chrono::nanoseconds>(first_, longest_pause);
  const unsigned doublings = std::min(++failure_count_, 20U);
  const std::chrono::nanoseconds pause = first_ > longest / (std::int64_t{1} << doublings)
                                             ? longest
                                             : first_ * (std::int64_t{1} << doublings);
  // Machines that failed together do not come back together.
  return pause - pause / 2000 * static_cast<std::int64_t>(random_u64() % 1000);
}

}  // namespace whycache
