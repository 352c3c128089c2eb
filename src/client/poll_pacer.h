// Decides when a follower polls the log next: soon while updates arrive, seldom while none do.
//
//   a poll found updates       poll again after interval_min
//   a poll found none          after twice the last interval, up to a longest one
//   the log said that there    at once, unless it has said so many times for nothing
//   may be an update
//
// The longest interval is interval_max, or interval_max_notified for a log that says so. If it has
// said so before the poll that found updates, it can be relied on until the next time, and the
// interval is the longest one at once. If such a log did not say so, as when another machine writes
// to a network file system, the pace is that of a log that never does. A log that gives up waiting
// before its time is polled at interval_max at least.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <functional>
#include <utility>

#include <whycache/options.h>

#include "base/random.h"

namespace whycache {

// Not thread-safe. Gets the time from its caller.
class PollPacer {
 public:
  using Clock = std::chrono::steady_clock;
  // Returns a random number, for the jitter.
  using Random = std::function<std::uint64_t()>;

  explicit PollPacer(const FollowPace& pace, Random random = random_u64)
      : pace_{std::min(pace.interval_min, longest_interval),
              std::min(pace.interval_max, longest_interval),
              std::min(pace.interval_max_notified, longest_interval)},
        random_(std::move(random)),
        interval_(pace_.interval_min) {}

  // Records a poll that began at `now`. `notifies`: Log::notifies().
  void note_poll(Clock::time_point now, bool found_updates, bool notifies) {
    const std::chrono::nanoseconds longest =
        std::max(notifies ? pace_.interval_max_notified : pace_.interval_max, pace_.interval_min);
    if (found_updates) {
      interval_ = was_notified_ ? longest : pace_.interval_min;
      false_alarm_count_ = 0;
    } else if (was_notified_) {
      // The update may become visible a moment after the notification.
      ++false_alarm_count_;
      interval_ = std::max(pace_.interval_min, pause_after_false_alarms());
    } else {
      interval_ = std::min(interval_ * 2, longest);
    }
    interval_ = std::min(interval_, longest);
    was_notified_ = false;
    last_poll_at_ = now;
    next_poll_at_ = now + with_jitter(interval_);
  }

  // Records that the log said that there may be an update.
  void note_notification(Clock::time_point now) {
    was_notified_ = true;
    const Clock::time_point at_earliest = last_poll_at_ + pause_after_false_alarms();
    next_poll_at_ = std::min(next_poll_at_, std::max(now, at_earliest));
  }

  // Records that the log has waited for less time than it might have, and knows of no update. It
  // cannot rely on being told, as with files of a network file system.
  void note_silence(Clock::time_point now) {
    next_poll_at_ = std::min(next_poll_at_, std::max(now, last_poll_at_ + pace_.interval_max));
  }

  // Returns how long to wait for a notification. 0 or less: poll now.
  std::chrono::nanoseconds time_left(Clock::time_point now) const { return next_poll_at_ - now; }
  // Whether to wait for the log. After a notification that is not heeded yet, wait without it.
  bool was_notified() const { return was_notified_; }

 private:
  static constexpr std::chrono::nanoseconds longest_interval = std::chrono::hours(24 * 365);
  // Some for nothing are normal: one append may cause several, of which the last one counts, and
  // what a process of this machine writes is applied before the follower polls.
  static constexpr unsigned false_alarms_ignored = 4;
  static constexpr std::chrono::milliseconds first_pause{1};
  static constexpr std::chrono::milliseconds longest_pause{100};

  std::chrono::nanoseconds pause_after_false_alarms() const {
    if (false_alarm_count_ < false_alarms_ignored) return std::chrono::nanoseconds(0);
    const unsigned doublings = std::min(false_alarm_count_ - false_alarms_ignored, 20U);
    return std::min<std::chrono::nanoseconds>(first_pause * (1 << doublings), longest_pause);
  }

  // Leaves out up to a quarter. Adds it if only a lost notification makes the poll worth anything.
  std::chrono::nanoseconds with_jitter(std::chrono::nanoseconds interval) const {
    constexpr std::int64_t steps = 1 << 16;
    const auto part = static_cast<std::int64_t>(random_() % steps);
    const std::chrono::nanoseconds jitter = interval / 4 / steps * part;
    return interval > pace_.interval_max ? interval + jitter : interval - jitter;
  }

  const FollowPace pace_;
  const Random random_;
  std::chrono::nanoseconds interval_;
  Clock::time_point last_poll_at_{};
  Clock::time_point next_poll_at_{};  // at once
  bool was_notified_ = false;
  unsigned false_alarm_count_ = 0;
};

}  // namespace whycache
