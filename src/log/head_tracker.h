// Decides which head records in the tier one process may trust. Protocol: log/tiered_log.h.
//
// HeadTracker does no I/O, reads no clock and draws no random numbers: its caller does. Times are
// those of boot_time_ns(); 0 means never. One thread at a time may use a tracker.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>

#include <whycache/log.h>
#include <whycache/types.h>

#include "log/head_record.h"

namespace whycache {

// Whether what is known of one log is true of the other: a copy on another server has the same
// uuid.
inline bool is_same_log(const Extent& a, const Extent& b) {
  return a.uuid == b.uuid && a.store_id == b.store_id;
}

// How a caller may use a head record.
enum class HeadVerdict {
  usable,         // The log ends where the base ends: there are no updates to hand out.
  needs_updates,  // Usable if the updates up to its head are there, and end in its chain.
  unproven,       // Its head is beyond that of our own poll, but the record may be older.
  unusable,       // It has nothing for this caller, and was already checked once.
  poll_log,       // Only the log can explain it.
};

// A poll of the log by this process, from before it contacted the tier.
struct OwnPoll {
  std::int64_t prepared_at_ns = 0;  // before the tier was contacted
  std::int64_t began_at_ns = 0;     // after that, before the log was read
  // The poll lease that this process stored for this poll alone; 0: none.
  std::uint64_t lease_id = 0;
  // The record that was in the tier at prepared_at_ns; nullopt: none, or one of another log.
  std::optional<std::uint64_t> record_id;
};

// Each member, what sets it and what reads it. "Own poll": a poll of the log by this process that
// reached the head, recorded by record_own_poll().
//
//   member                     set                               read
//   known_extent_              by each answer of the log; head   to reject lower heads; to find out
//                              also by an append, a used record  whether the log ends at its base
//   own_poll_at_ns_            own poll: when it began; 0 after  by must_poll_log(); to find out
//                              a rewrite, or by another uuid     whether a record postdates it
//   own_poll_prepared_at_ns_   own poll: before the tier         the same
//   own_poll_lease_id_         own poll: its lease, if its own   the same
//   own_poll_head_             own poll; raised by an append     a record beyond it has to postdate
//                                                                the own poll
//   next_own_poll_at_ns_       own poll: an interval later,      by must_poll_log()
//                              less up to a quarter
//   invalidated_id_            by a failed or lost append; 0     by must_poll_log()
//                              once the log has that id
//   invalidated_until_ns_      with invalidated_id_              by must_poll_log()
//   confirmed_at_ns_, _head_   own poll; raised by a used        for the staleness of an answer
//                              record that is newer
//   last_record_id_, _at_ns_   when a record was published or    a record with another id was
//                              used; own poll: the one before    published after that time
class HeadTracker {
 public:
  // `random`: any number, different in each process, so that they do not poll the log together.
  HeadTracker(const Extent& extent, std::chrono::nanoseconds confirm_interval,
              std::chrono::nanoseconds own_poll_interval, std::uint64_t random);

  // The extent as the log last returned it. Its head may have been raised since.
  const Extent& known_extent() const { return known_extent_; }
  // No answer from the tier is older, whatever the caller allows.
  std::chrono::nanoseconds served_staleness_max() const { return served_staleness_max_; }

  // --- What the log returned. ---

  // If the log was replaced (another uuid), forgets the time of this process's own poll (so that
  // the next poll asks the log), the last record, and invalidated appends.
  void record_extent(const Extent& extent);
  // Records that the log was read to `head`. Returns false, and does nothing, if a poll that began
  // later was recorded before. `random`: as for the constructor, another one each time.
  bool record_own_poll(const OwnPoll& poll, UpdateId head, std::uint64_t random);
  void record_append(UpdateId id);
  // The base has moved: the next poll asks the log for it.
  void record_rewrite() { own_poll_at_ns_ = 0; }
  // After an append failed or lost the race, only the log knows which update has the id. Until the
  // log has returned one there, must_poll_log() is true, but no longer than served_staleness_max().
  void invalidate_from(UpdateId id, std::int64_t now_ns);

  // --- What the tier returned. ---

  // Whether the tier cannot answer this poll, whatever it holds.
  bool must_poll_log(UpdateId first, std::chrono::nanoseconds staleness_max,
                     std::int64_t now_ns) const;
  // Returns the earliest time at which the log may have been polled for this record, 0 if that is
  // unknown. `lease`: the poll lease that is in the tier at `now_ns`.
  std::int64_t earliest_poll_at_ns(const HeadRecord& record, const std::optional<PollLease>& lease,
                                   std::int64_t now_ns) const;
  // Judges a record (record_id is not 0) for a caller that wants the updates from `first` on.
  HeadVerdict judge(const HeadRecord& record, UpdateId first,
                    std::int64_t earliest_poll_at_ns) const;
  // Whether this process stored the lease for its own poll.
  bool is_own_lease(const PollLease& lease) const {
    return own_poll_lease_id_ != 0 && lease.lease_id == own_poll_lease_id_;
  }
  // When the own poll began; 0: there is none.
  std::int64_t own_poll_at_ns() const { return own_poll_at_ns_; }
  // The least id after the head of our own poll: what an unproven record has beyond our knowledge.
  UpdateId first_unproven_id() const { return own_poll_head_ + 1; }
  // Records that `record` was in the tier at `now_ns`.
  void record_seen(const HeadRecord& record, std::int64_t now_ns);
  // The same for a record whose updates are handed out.
  void record_used(const HeadRecord& record, std::int64_t earliest_poll_at_ns, std::int64_t now_ns);
  // Whether a caller that has the update at `first` has all that is confirmed, so that "nothing
  // new" is an answer. Not for first = 1 while nothing is confirmed: that update is not confirmed
  // either.
  bool has_nothing_new_after(UpdateId first) const;
  // Returns how old an answer from the tier is, nullopt if that is older than allowed.
  std::optional<std::chrono::nanoseconds> staleness(std::chrono::nanoseconds staleness_max,
                                                    std::int64_t now_ns) const;

 private:
  bool postdates_own_poll(const HeadRecord& record, std::int64_t earliest_poll_at_ns) const;

  std::chrono::nanoseconds own_poll_interval_;
  std::chrono::nanoseconds served_staleness_max_;
  // Set by the constructor: this process polls the log so much before its answers are too old.
  std::chrono::nanoseconds staleness_jitter_;

  Extent known_extent_;

  std::int64_t own_poll_at_ns_ = 0;
  std::int64_t own_poll_prepared_at_ns_ = 0;
  // The first record with this lease was published by this process after the log had answered. A
  // process that repeats it had seen that record before it polled the log.
  std::uint64_t own_poll_lease_id_ = 0;
  UpdateId own_poll_head_ = 0;
  std::int64_t next_own_poll_at_ns_ = 0;

  UpdateId invalidated_id_ = 0;
  std::int64_t invalidated_until_ns_ = 0;

  // All that the log had at confirmed_at_ns_ ends at confirmed_head_.
  std::int64_t confirmed_at_ns_ = 0;
  UpdateId confirmed_head_ = 0;

  // This record was in the tier at last_record_at_ns_.
  std::uint64_t last_record_id_ = 0;
  std::int64_t last_record_at_ns_ = 0;
};

}  // namespace whycache
