#include "client/follow.h"

#include <memory>
#include <optional>

#include "client/rebuild.h"
#include "state/write/writer.h"

namespace whycache {
namespace {

// A log of another uuid: was ours replaced, or is this state another log's? Only what was ours is
// built anew.
void reject_state_of_another_log(const Session& link, const StateInfo& info, const Extent& extent) {
  if (link.has_seen_log(info.log_uuid) || info.log_name == link.log.name() || link.state.adopted())
    return;
  throw LogError(
      ErrorKind::corrupt,
      "state belongs to another log: path=" + link.state.path() + " state_log=" + info.log_name +
          " state_uuid=" + to_string(info.log_uuid) + " log=" + link.log.name() +
          " uuid=" + to_string(extent.uuid) +
          " (choose another name or state_path; or delete the state if it is no longer needed)");
}

RebuildReason reason_of(HistoryMatch fit) {
  switch (fit) {
    case HistoryMatch::replaced: return RebuildReason::replaced;
    case HistoryMatch::behind_base: return RebuildReason::behind_base;
    default: return RebuildReason::diverged;
  }
}

// Why the state has to be built anew before anything can be applied to it, if so.
std::optional<RebuildCause> find_rebuild_cause(Session& link) {
  link.state.switch_if_replaced();
  if (!link.state.usable()) return diagnose_unusable_state(link);
  if (link.is_damaged(link.state.info()))
    return RebuildCause{RebuildReason::damaged, "a read found it so"};
  return std::nullopt;
}

// Applies the rows of a page that nobody applied since we looked.
void apply_page(Session& link, const LogPage& page, const LogPosition& place,
                const Deadline& deadline) {
  if (page.row_count() == 0 || page.row(page.row_count() - 1).id <= place.id) return;
  const std::unique_ptr<StateWriter> writer = link.state.begin_write(deadline);
  report_recovery(link, *writer);
  LogPosition now = position_of(writer->info());
  // Who appends applies, too, without asking the log. If that is not the update we read, the next
  // page tells why.
  if (!page.agrees_with(now)) return;
  apply_updates(page, now, [&](const Update& update) {
    writer->apply(update);
    link.counters.add(&Counters::updates_applied);
  });
}

// What an older answer says does not take the place of what is known already.
void note_asked(const Session& link, std::int64_t asked_at_ns, const LogPage& page) {
  asked_at_ns -= page.staleness().count();
  const bool by_store = page.staleness() == zero_staleness;
  if (!log_asked_since(link.state, asked_at_ns))
    link.state.record_poll(asked_at_ns, page.extent().head, by_store);
}

// Reads the log to its end, applying. Returns why that needs a new state, if it does. The caller
// holds StateLock::follow.
std::optional<RebuildCause> catch_up(Session& link, Backoff& patience, StalenessMax age_max) {
  UpdateId promised = 0;  // the head that the last answer named, if its rows did not reach it
  for (;;) {
    const std::int64_t asked_at_ns = boot_time_ns();
    const StateInfo info = link.state.info();
    const LogPosition place = position_of(info);
    const LogPage page = link.call_log([&](Log& log) { return poll_page(log, place, age_max); });

    std::string why;
    const HistoryMatch fit = compare_history(page, place, why);
    if (fit != HistoryMatch::matches) {
      // Who appends applies, too: while the log was asked, a writer may have brought the state to
      // where the page fits. One built anew without need could lack what is applied meanwhile.
      if (position_of(link.state.info()) != place && !patience.deadline().passed()) continue;
      if (fit == HistoryMatch::replaced) reject_state_of_another_log(link, info, page.extent());
      return RebuildCause{reason_of(fit), why};
    }
    link.note_seen_log(place.log_uuid);

    apply_page(link, page, place, patience.deadline());
    const UpdateId applied = link.state.applied_id();
    if (page.is_complete()) {
      check_head_reached(link.log, applied, promised);
      // A head beyond the rows came after them, or its rows are missing: the next answer tells.
      if (promised != 0 || page.extent().head <= applied) {
        note_asked(link, asked_at_ns, page);
        return std::nullopt;
      }
      promised = page.extent().head;
    }
    if (patience.deadline().passed()) {
      throw Error(ErrorKind::unavailable,
                  "log not read to its end before the deadline, go on with update(): applied_id=" +
                      std::to_string(applied) + " head=" + std::to_string(page.extent().head) +
                      " deadline_ms=" + std::to_string(patience.timeout().count()));
    }
  }
}

// The same, but a state that proves damaged is one more reason to build a new one.
std::optional<RebuildCause> try_catch_up(Session& link, Backoff& patience, StalenessMax age_max) {
  try {
    if (std::optional<RebuildCause> needed = find_rebuild_cause(link)) return needed;
    return catch_up(link, patience, age_max);
  } catch (const LogError&) {
    throw;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::corrupt) throw;
    return RebuildCause{RebuildReason::damaged, error.what()};
  }
}

// Whether another thread or process did, since `began_ns`, what we were about to do.
bool is_fresh(Session& link, std::int64_t began_ns, StalenessMax age_max) {
  const bool asked =
      age_max && *age_max == zero_staleness
          ? store_asked_since(link.state, began_ns)
          : log_asked_since(link.state, began_ns - age_max.value_or(zero_staleness).count());
  return asked && !link.has_damage() && link.state.usable() &&
         link.has_seen_log(link.state.info().log_uuid);
}

}  // namespace

UpdateId follow(Session& link, Backoff& patience, UpdateId at_least, StalenessMax age_max) {
  std::int64_t began_ns = boot_time_ns();
  for (;;) {
    std::optional<LogError> failure;
    try {
      const HeldLock following = link.state.lock(StateLock::follow, patience.deadline());
      if (!is_fresh(link, began_ns, age_max)) {
        while (const std::optional<RebuildCause> needed = try_catch_up(link, patience, age_max)) {
          if (rebuild(link, *needed, patience)) break;
        }
        link.clear_damage();
        link.note_followed();
      }
    } catch (const LogError& error) {
      failure = error;
    }
    if (failure) {  // without the lock: others may try meanwhile
      link.back_off_after(*failure, patience);
      continue;
    }
    const UpdateId applied = link.state.applied_id();
    if (applied >= at_least) return applied;
    if (!patience.pause()) {
      throw Error(ErrorKind::unavailable,
                  "log does not have the update yet: at_least=" + std::to_string(at_least) +
                      " applied_id=" + std::to_string(applied) +
                      " deadline_ms=" + std::to_string(patience.timeout().count()));
    }
    began_ns = boot_time_ns();
    age_max = zero_staleness;  // what stands in front of it need not have heard of the update
  }
}

bool log_asked_since(const State& state, std::int64_t since_ns) {
  const std::optional<std::int64_t> asked = state.last_poll_time_ns();
  return asked && *asked >= since_ns;
}

bool store_asked_since(const State& state, std::int64_t since_ns) {
  const std::optional<std::int64_t> asked = state.last_store_poll_time_ns();
  return asked && *asked >= since_ns;
}

}  // namespace whycache
