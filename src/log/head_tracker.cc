#include "log/head_tracker.h"

#include <algorithm>

namespace whycache {
namespace {

// A record that was published later than this after its poll has to be dated to prove anything.
constexpr std::int64_t prompt_publish_delay_ns_max = 1'000'000'000;

std::int64_t to_ns(std::chrono::nanoseconds duration) { return duration.count(); }

// Less than `duration`.
std::int64_t part_of(std::chrono::nanoseconds duration, std::uint64_t random) {
  return static_cast<std::int64_t>(random % static_cast<std::uint64_t>(to_ns(duration)));
}

}  // namespace

HeadTracker::HeadTracker(const Extent& extent, std::chrono::nanoseconds confirm_interval,
                         std::chrono::nanoseconds own_poll_interval, std::uint64_t random)
    : own_poll_interval_(own_poll_interval),
      served_staleness_max_(2 * confirm_interval + std::chrono::seconds(3)),
      staleness_jitter_(part_of(served_staleness_max_ / 6, random)),
      known_extent_(extent) {}

// --- What the log returned. ---

void HeadTracker::record_extent(const Extent& extent) {
  if (!is_same_log(known_extent_, extent)) {
    invalidated_id_ = 0;
    last_record_id_ = 0;
    last_record_at_ns_ = 0;
    own_poll_at_ns_ = 0;
  }
  known_extent_ = extent;
  if (invalidated_id_ <= extent.head) invalidated_id_ = 0;
}

bool HeadTracker::record_own_poll(const OwnPoll& poll, UpdateId head, std::uint64_t random) {
  if (poll.began_at_ns <= own_poll_at_ns_) return false;
  own_poll_at_ns_ = confirmed_at_ns_ = poll.began_at_ns;
  own_poll_head_ = confirmed_head_ = head;
  own_poll_prepared_at_ns_ = poll.prepared_at_ns;
  own_poll_lease_id_ = poll.lease_id;
  if (poll.record_id && last_record_at_ns_ < poll.prepared_at_ns) {
    last_record_id_ = *poll.record_id;
    last_record_at_ns_ = poll.prepared_at_ns;
  }
  // Processes that were started together must not poll together.
  next_own_poll_at_ns_ =
      poll.began_at_ns + to_ns(own_poll_interval_) - part_of(own_poll_interval_ / 4, random);
  return true;
}

void HeadTracker::record_append(UpdateId id) {
  known_extent_.head = std::max(known_extent_.head, id);
  own_poll_head_ = std::max(own_poll_head_, id);
  if (invalidated_id_ <= id) invalidated_id_ = 0;
}

void HeadTracker::invalidate_from(UpdateId id, std::int64_t now_ns) {
  invalidated_id_ = std::max(invalidated_id_, id);
  invalidated_until_ns_ = now_ns + to_ns(served_staleness_max_);
}

// --- What the tier returned. ---

bool HeadTracker::must_poll_log(UpdateId first, std::chrono::nanoseconds staleness_max,
                                std::int64_t now_ns) const {
  if (to_ns(staleness_max) <= 0) return true;
  if (own_poll_at_ns_ == 0 || now_ns >= next_own_poll_at_ns_) return true;
  if (invalidated_id_ != 0 && now_ns < invalidated_until_ns_) return true;
  return first < known_extent_.base;
}

std::int64_t HeadTracker::earliest_poll_at_ns(const HeadRecord& record,
                                              const std::optional<PollLease>& lease,
                                              std::int64_t now_ns) const {
  std::int64_t polled_at_ns = 0;
  // The record was put after we found another one.
  if (record.record_id != last_record_id_ && last_record_at_ns_ != 0)
    polled_at_ns = last_record_at_ns_ - record.publish_delay_ns;
  // The lease was stored before that poll, and is still there. Stores count whole seconds.
  if (lease && record.lease_id != 0 && lease->lease_id == record.lease_id) {
    const std::chrono::seconds age_max(std::int64_t{lease->duration_seconds} + 1);
    polled_at_ns = std::max(polled_at_ns, now_ns - to_ns(age_max));
  }
  return polled_at_ns;
}

bool HeadTracker::postdates_own_poll(const HeadRecord& record,
                                     std::int64_t earliest_poll_at_ns) const {
  if (earliest_poll_at_ns > own_poll_at_ns_) return true;
  if (own_poll_lease_id_ != 0 && record.lease_id == own_poll_lease_id_) return true;
  // It was not there yet when we were about to poll. A writer's append may begin before our poll
  // and end after it, so a short delay is allowed.
  return record.record_id != last_record_id_ && last_record_at_ns_ >= own_poll_prepared_at_ns_ &&
         record.publish_delay_ns <= prompt_publish_delay_ns_max;
}

HeadVerdict HeadTracker::judge(const HeadRecord& record, UpdateId first,
                               std::int64_t earliest_poll_at_ns) const {
  // The log may have lost what is beyond our own poll.
  if (record.head > own_poll_head_ && !postdates_own_poll(record, earliest_poll_at_ns))
    return HeadVerdict::unproven;
  if (record.head < known_extent_.head) return HeadVerdict::poll_log;
  const bool is_empty_log = record.head == 0 && first == 1;
  if (record.head < first && !is_empty_log) {
    // Either the log has lost updates, or the head that the caller knows could not be published.
    // Polling the log once for this record finds out.
    return record.record_id == last_record_id_ ? HeadVerdict::unusable : HeadVerdict::poll_log;
  }
  if (record.head != known_extent_.base) return HeadVerdict::needs_updates;
  return record.head_chain == known_extent_.base_chain ? HeadVerdict::usable
                                                       : HeadVerdict::poll_log;
}

void HeadTracker::record_seen(const HeadRecord& record, std::int64_t now_ns) {
  last_record_id_ = record.record_id;
  last_record_at_ns_ = now_ns;
}

void HeadTracker::record_used(const HeadRecord& record, std::int64_t earliest_poll_at_ns,
                              std::int64_t now_ns) {
  if (earliest_poll_at_ns > confirmed_at_ns_) {
    confirmed_at_ns_ = earliest_poll_at_ns;
    confirmed_head_ = record.head;
  }
  known_extent_.head = record.head;
  record_seen(record, now_ns);
}

bool HeadTracker::has_nothing_new_after(UpdateId first) const {
  if (first == 1 && confirmed_head_ == 0) return false;
  return confirmed_head_ <= first;
}

std::optional<std::chrono::nanoseconds> HeadTracker::staleness(
    std::chrono::nanoseconds staleness_max, std::int64_t now_ns) const {
  const std::chrono::nanoseconds age(std::max<std::int64_t>(now_ns - confirmed_at_ns_, 1));
  if (age > std::min(staleness_max, served_staleness_max_ - staleness_jitter_)) return std::nullopt;
  return age;
}

}  // namespace whycache
