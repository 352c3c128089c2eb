#include "client/follow.h"

#include <algorithm>
#include <chrono>
#include <exception>
#include <memory>
#include <optional>

#include "client/rebuild.h"
#include "state/write/writer.h"

namespace whycache {
namespace {

// `now_ns` as State::last_poll_time_ns().
bool log_asked_since(const State& state, std::int64_t since_ns, std::int64_t now_ns) {
  const std::optional<std::int64_t> asked = state.last_poll_time_ns(now_ns);
  return asked && *asked >= since_ns;
}

// Whether the state can be used and belongs to the log that this process has seen.
bool has_state_of_seen_log(const Session& session) {
  try {
    return session.state.usable() && session.has_seen_log(session.state.log_position().log_uuid);
  } catch (const Error&) {  // another file has taken its place
    return false;
  }
}

RebuildReason reason_of(HistoryMatch match) {
  switch (match) {
    case HistoryMatch::replaced: return RebuildReason::replaced;
    case HistoryMatch::behind_base: return RebuildReason::behind_base;
    default: return RebuildReason::diverged;
  }
}

// The file at the state's path is the state of another log than the one whose states this process
// has read. Asks the log. If it was replaced, the file is its state, or is to be replaced. If it
// was not, the path is in use for two logs; rebuilding the state for each of them in turn would
// only hide that.
std::optional<RebuildCause> resolve_other_log(Session& session, const LogIdentity& other,
                                              const Deadline& deadline) {
  const Extent extent = session.call_log(deadline, [](Log& log) { return log.extent(); });
  const bool was_replaced = !session.state.expects_log(extent.uuid);
  if (extent.uuid == other.uuid) {
    session.state.expect_log(extent.uuid);
    session.note_seen_log(extent.uuid);
    return std::nullopt;
  }
  if (was_replaced) {
    check_may_replace(session, other, extent.uuid);
    return RebuildCause{
        RebuildReason::replaced,
        "state_uuid=" + to_string(other.uuid) + " log_uuid=" + to_string(extent.uuid), other.uuid};
  }
  throw LogError(ErrorKind::corrupt,
                 "state belongs to another log: another process has replaced the state of this "
                 "process's log: path=" +
                     session.state.path() + " state_log=" + other.name +
                     " state_uuid=" + to_string(other.uuid) + " log=" + session.log.name() +
                     " uuid=" + to_string(extent.uuid) +
                     " (give each of the logs a state_path of its own)");
}

// Returns why the state must be rebuilt before anything can be applied to it, or nullopt.
std::optional<RebuildCause> find_rebuild_cause(Session& session, const Deadline& deadline) {
  while (const std::optional<LogIdentity> other = session.state.switch_if_replaced(deadline)) {
    if (std::optional<RebuildCause> cause = resolve_other_log(session, *other, deadline))
      return cause;
  }
  if (!session.state.usable()) {
    RebuildCause cause = unusable_state_cause(session);
    if (cause.reason == RebuildReason::damaged) {
      session.report(Event::Kind::stray_state, "state cannot be used, building a new one: path=" +
                                                   session.state.path() + ": " + cause.details);
    }
    return cause;
  }
  if (session.is_damaged(session.state.info()))
    return RebuildCause{RebuildReason::damaged, "a read found it damaged"};
  return std::nullopt;
}

// Applies the rows of a page, except those that were applied since the page was read.
void apply_page(Session& session, const LogPage& page, const LogPosition& position,
                MappingPolicy mapping, const Deadline& deadline) {
  if (page.row_count() == 0 || page.row(page.row_count() - 1).id <= position.id) return;
  const std::unique_ptr<StateWriter> writer = session.state.begin_write(deadline, mapping);
  report_recovery(session, *writer);
  LogPosition now = writer->log_position();
  // A writer applies what it appends, without asking the log. If its update is not the one on the
  // page, the next page shows why.
  if (!page.agrees_with(now)) return;
  apply_updates(page, now, [&](const Update& update) {
    writer->apply(update);
    session.counters.add(&Counters::updates_applied);
  });
  report_ring_fault(session, *writer);
  writer->add_counters(session.counters.take_unreported());
}

// Records when the log was asked, unless a newer answer is recorded already.
void note_asked(const Session& session, std::int64_t poll_time_ns, const LogPage& page) {
  // A tier may claim any staleness.
  poll_time_ns -= std::clamp<std::int64_t>(page.staleness().count(), 0, poll_time_ns);
  const bool by_store = page.staleness() == zero_staleness;
  if (!log_asked_since(session.state, poll_time_ns, 0))
    session.state.record_poll(poll_time_ns, page.extent().head, by_store);
}

// Reads the log to its end and applies it. Returns the cause if the state has to be rebuilt first.
// The caller holds StateLock::follow.
std::optional<RebuildCause> catch_up(Session& session, Backoff& backoff, StalenessMax staleness_max,
                                     MappingPolicy mapping) {
  UpdateId promised_head = 0;  // the head of the last answer, if its rows ended before it
  for (;;) {
    const std::int64_t poll_time_ns = boot_time_ns();
    const StateInfo info = session.state.info();
    const LogPosition position = position_of(info);
    const LogPage page = session.call_log(
        backoff.deadline(), [&](Log& log) { return poll_page(log, position, staleness_max); });

    std::string why;
    const HistoryMatch match = compare_history(page, position, why);
    if (match != HistoryMatch::matches) {
      // While the log was asked, a writer may have applied updates that make the page fit. Read
      // again: a state rebuilt without need could lack what is applied meanwhile.
      if (session.state.log_position() != position && !backoff.deadline().passed()) continue;
      if (match == HistoryMatch::replaced)
        check_may_replace(session, {info.log_uuid, info.log_name}, page.extent().uuid);
      refuse_empty_log(session, info, page.extent());
      return RebuildCause{reason_of(match), why};
    }
    session.note_seen_log(position.log_uuid);

    try {
      apply_page(session, page, position, mapping, backoff.deadline());
    } catch (const Error&) {  // a full disk, for example: this machine is behind, and knows it
      session.state.record_known_head(page.extent().head);
      throw;
    }
    const UpdateId applied = session.state.applied_id();
    if (page.is_complete()) {
      check_head_reached(session.log, applied, promised_head);
      // A head beyond the rows was appended after they were read, or its rows are missing. The next
      // answer shows which.
      if (promised_head != 0 || page.extent().head <= applied) {
        note_asked(session, poll_time_ns, page);
        return std::nullopt;
      }
      promised_head = page.extent().head;
    }
    if (backoff.deadline().passed()) {
      throw Error(
          ErrorKind::unavailable,
          "log not read to its end before the deadline, continue with update(): applied_id=" +
              std::to_string(applied) + " head=" + std::to_string(page.extent().head) +
              " deadline_ms=" + std::to_string(backoff.timeout().count()));
    }
  }
}

// Calls catch_up() if the state can be used. A state that turns out to be damaged is one more cause
// for a rebuild.
std::optional<RebuildCause> try_catch_up(Session& session, Backoff& backoff,
                                         StalenessMax staleness_max, MappingPolicy mapping) {
  try {
    if (std::optional<RebuildCause> needed = find_rebuild_cause(session, backoff.deadline()))
      return needed;
    return catch_up(session, backoff, staleness_max, mapping);
  } catch (const LogError&) {
    throw;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::corrupt) throw;
    return RebuildCause{RebuildReason::damaged, error.what()};
  }
}

// Pauses until the log says that it has an update beyond `applied`, until another process of this
// machine has applied one, or for the time of the backoff. Returns false, at once, if the deadline
// has passed.
bool pause_until_update(Session& session, Backoff& backoff, UpdateId applied) {
  const std::optional<std::chrono::nanoseconds> pause = backoff.next_pause();
  if (!pause) return false;
  const Deadline end =
      backoff.deadline().at_most(std::chrono::ceil<std::chrono::milliseconds>(*pause));
  if (session.log.notifies()) {
    if (!session.wait_for_log(end, applied, *pause)) end.sleep(*pause);
    return true;
  }
  try {
    session.state.wait(applied, end);
  } catch (const std::exception&) {
    // The next attempt to follow finds out what is wrong with the state.
    end.sleep(*pause);
  }
  return true;
}

}  // namespace

UpdateId follow(Session& session, Backoff& backoff, UpdateId at_least, StalenessMax staleness_max,
                MappingPolicy mapping) {
  std::int64_t began_ns = boot_time_ns();
  for (;;) {
    std::optional<LogError> failure;
    try {
      // A process that may only read asks for itself.
      std::optional<HeldLock> following;
      if (session.state.can_lock())
        following.emplace(session.lock_for_log(StateLock::follow, backoff));
      if (!is_fresh(session, began_ns, staleness_max) || !has_state_of_seen_log(session)) {
        while (const std::optional<RebuildCause> needed =
                   try_catch_up(session, backoff, staleness_max, mapping)) {
          if (rebuild(session, *needed, backoff)) break;
        }
        session.clear_damage();
        session.note_followed();
      }
    } catch (const LogError& error) {
      failure = error;
    }
    if (failure) {  // without the lock, so that others can try meanwhile
      session.back_off_after(*failure, backoff);
      continue;
    }
    UpdateId applied = session.state.applied_id();
    if (applied >= at_least) return applied;
    if (!pause_until_update(session, backoff, applied)) {
      const bool was_stopped = backoff.deadline().stop().stop_requested();
      throw Error(ErrorKind::unavailable,
                  std::string(was_stopped ? "call was stopped before the log had the update"
                                          : "log does not have the update yet") +
                      ": at_least=" + std::to_string(at_least) +
                      " applied_id=" + std::to_string(applied) +
                      " deadline_ms=" + std::to_string(backoff.timeout().count()));
    }
    applied = session.state.applied_id();
    if (applied >= at_least) return applied;
    began_ns = boot_time_ns();
    staleness_max = zero_staleness;  // a tier in front of the store may not have the update yet
  }
}

void build_missing_state(Session& session, Backoff& backoff) {
  if (!session.state.usable()) follow(session, backoff);
}

bool is_fresh(const Session& session, std::int64_t since_ns, StalenessMax staleness_max) {
  const std::int64_t accepted_ns =
      std::clamp<std::int64_t>(staleness_max.value_or(zero_staleness).count(), 0, since_ns);
  const bool asked = staleness_max == zero_staleness
                         ? store_asked_since(session.state, since_ns)
                         : log_asked_since(session.state, since_ns - accepted_ns, since_ns);
  return asked && session.has_seen_any_log() && !session.has_damage();
}

bool store_asked_since(const State& state, std::int64_t since_ns) {
  const std::optional<std::int64_t> asked = state.last_store_poll_time_ns(since_ns);
  return asked && *asked >= since_ns;
}

}  // namespace whycache
