// Following without an end: the loop of Options::follow and of `whycache follow`.
//
//   one process of a machine holds StateLock::follower, the others stand by
//     the follower polls (follow.h) when the log or the pacer says so
//     a process that stands by tries the lock at intervals
//
// The kernel releases the lock however the follower ends. A process that may not use the lock file
// polls for itself.
#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <optional>
#include <stop_token>

#include "client/poll_pacer.h"
#include "client/session.h"
#include "state/file/state_lock.h"
#include "state/write/mapping_policy.h"

namespace whycache {

// The pauses after failures: each twice as long as the one before, up to 15 s, less a random part.
class FailurePauses {
 public:
  // `interval`: of polls that do not fail.
  explicit FailurePauses(std::chrono::nanoseconds interval)
      : first_(std::max<std::chrono::nanoseconds>(interval, std::chrono::milliseconds(20))) {}

  std::chrono::nanoseconds next();
  void reset() { failure_count_ = 0; }

 private:
  const std::chrono::nanoseconds first_;
  unsigned failure_count_ = 0;
};

// Used by one thread, which holds the lock.
class FollowLoop {
 public:
  // What ends FollowLoop::wait() early, besides a stop: only what makes a poll due, or also an
  // update that another process has applied.
  enum class WakeFor : std::uint8_t { polls, updates };

  // `mapping`: as for follow(). While a mapping is cached, wait() ends early, and poll_if_due()
  // unmaps it once it is idle.
  FollowLoop(Session& session, const FollowPace& pace, WakeFor wake_for, MappingPolicy mapping);

  // Polls the log if a poll is due and this process is the follower. Each process polls once in any
  // case: only then it relies on the polls of others (Session::note_seen_log). After a failure,
  // asks one question before it polls, which would ask again and again. Throws as follow().
  void poll_if_due(const std::stop_token& stop);
  // Waits until poll_if_due() has something to do.
  void wait(const std::stop_token& stop);
  // Records that poll_if_due() threw. If the reason may be this process's own, lets another process
  // follow meanwhile.
  void note_failure(ErrorKind kind);

  bool is_follower() const { return following_.has_value() || !session_.state.can_lock(); }

 private:
  bool try_to_become_follower();
  void wait_for_log(std::chrono::nanoseconds left, std::chrono::nanoseconds at_most,
                    const std::stop_token& stop);
  std::chrono::nanoseconds at_most_until_idle(std::chrono::nanoseconds time) const;
  UpdateId applied_id() const;
  std::uint64_t updates_of_others() const;

  Session& session_;
  const FollowPace pace_;
  const WakeFor wake_for_;
  const MappingPolicy mapping_;
  std::optional<PollPacer> pacer_;  // never empty; a new one for each time as the follower
  std::optional<HeldLock> following_;
  bool has_failed_ = false;
};

}  // namespace whycache
