#include "client/follow.h"

#include <memory>
#include <optional>

#include "client/rebuild.h"

namespace whycache {
namespace {

// A log of another uuid: was ours replaced, or is this state another log's? Only what was ours is built anew.
void refuse_state_of_another_log(const Link& link, const StateInfo& info, const Extent& extent) {
  if (link.has_seen_log(info.log_uuid) || info.log_name == link.log.name() || link.state.adopted()) return;
  throw LogError(ErrorKind::corrupt,
                 "state belongs to another log: path=" + link.state.path() + " state_log=" + info.log_name +
                     " state_uuid=" + to_string(info.log_uuid) + " log=" + link.log.name() +
                     " uuid=" + to_string(extent.uuid) +
                     " (choose another name or state_path; or delete the state if it is no longer needed)");
}

RebuildReason reason_of(Fit fit) {
  switch (fit) {
    case Fit::replaced: return RebuildReason::replaced;
    case Fit::behind_base: return RebuildReason::behind_base;
    default: return RebuildReason::diverged;
  }
}

// Why the state has to be built anew before anything can be applied to it, if so.
std::optional<Rebuilding> look_at_state(Link& link) {
  link.state.follow_switch();
  if (!link.state.usable()) return why_no_state(link);
  if (link.is_damaged(link.state.info())) return Rebuilding{RebuildReason::damaged, "a read found it so"};
  return std::nullopt;
}

// Applies the rows of a page that nobody applied since we looked.
void apply(Link& link, const Page& page, const Place& place, const Deadline& deadline) {
  if (page.row_count() == 0 || page.row(page.row_count() - 1).id <= place.id) return;
  const std::unique_ptr<StateWriter> writer = link.state.begin_write(deadline);
  note_recovery(link, *writer);
  Place now = place_of(writer->info());
  // Who appends applies, too, without asking the log. If that is not the update we read, the next page tells why.
  if (!page.agrees_with(now)) return;
  replay(page, now, [&](const Update& update) {
    writer->apply(update);
    link.tally.add(&Counters::updates_applied);
  });
}

// What an older answer says does not take the place of what is known already.
void note_asked(const Link& link, std::int64_t asked_at_ns, const Page& page) {
  asked_at_ns -= page.age().count();
  const bool by_store = page.age() == from_the_store;
  if (!asked_since(link.state, asked_at_ns)) link.state.set_asked(asked_at_ns, page.extent().head, by_store);
}

// Reads the log to its end, applying. Returns why that needs a new state, if it does. The caller holds
// StateLock::follow.
std::optional<Rebuilding> read_to_the_end(Link& link, Patience& patience, AgeMax age_max) {
  UpdateId promised = 0;  // the head that the last answer named, if its rows did not reach it
  for (;;) {
    const std::int64_t asked_at_ns = boot_time_ns();
    const StateInfo info = link.state.info();
    const Place place = place_of(info);
    const Page page = link.ask([&](Log& log) { return look_beyond(log, place, age_max); });

    std::string why;
    const Fit fit = fit_of(page, place, why);
    if (fit != Fit::fits) {
      // Who appends applies, too: while the log was asked, a writer may have brought the state to where the page fits.
      // One built anew without need could lack what is applied meanwhile.
      if (place_of(link.state.info()) != place && !patience.deadline().passed()) continue;
      if (fit == Fit::replaced) refuse_state_of_another_log(link, info, page.extent());
      return Rebuilding{reason_of(fit), why};
    }
    link.saw_log(place.log_uuid);

    apply(link, page, place, patience.deadline());
    const UpdateId applied = link.state.applied_id();
    if (page.complete()) {
      check_promise(link.log, applied, promised);
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
                      " deadline_ms=" + std::to_string(patience.limit().count()));
    }
  }
}

// The same, but a state that proves damaged is one more reason to build a new one.
std::optional<Rebuilding> catch_up(Link& link, Patience& patience, AgeMax age_max) {
  try {
    if (std::optional<Rebuilding> needed = look_at_state(link)) return needed;
    return read_to_the_end(link, patience, age_max);
  } catch (const LogError&) {
    throw;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::corrupt) throw;
    return Rebuilding{RebuildReason::damaged, error.what()};
  }
}

// Whether another thread or process did, since `began_ns`, what we were about to do.
bool was_done_for_us(Link& link, std::int64_t began_ns, AgeMax age_max) {
  const bool asked = age_max && *age_max == from_the_store
                         ? store_asked_since(link.state, began_ns)
                         : asked_since(link.state, began_ns - age_max.value_or(from_the_store).count());
  return asked && !link.has_damage() && link.state.usable() && link.has_seen_log(link.state.info().log_uuid);
}

}  // namespace

UpdateId follow(Link& link, Patience& patience, UpdateId at_least, AgeMax age_max) {
  std::int64_t began_ns = boot_time_ns();
  for (;;) {
    std::optional<LogError> failure;
    try {
      const HeldLock following = link.state.lock(StateLock::follow, patience.deadline());
      if (!was_done_for_us(link, began_ns, age_max)) {
        while (const std::optional<Rebuilding> needed = catch_up(link, patience, age_max)) {
          if (rebuild(link, *needed, patience)) break;
        }
        link.forget_damage();
        link.note_followed();
      }
    } catch (const LogError& error) {
      failure = error;
    }
    if (failure) {  // without the lock: others may try meanwhile
      link.wait_after(*failure, patience);
      continue;
    }
    const UpdateId applied = link.state.applied_id();
    if (applied >= at_least) return applied;
    if (!patience.pause()) {
      throw Error(ErrorKind::unavailable, "log does not have the update yet: at_least=" + std::to_string(at_least) +
                                              " applied_id=" + std::to_string(applied) +
                                              " deadline_ms=" + std::to_string(patience.limit().count()));
    }
    began_ns = boot_time_ns();
    age_max = from_the_store;  // what stands in front of it need not have heard of the update
  }
}

bool asked_since(const State& state, std::int64_t since_ns) {
  const std::optional<std::int64_t> asked = state.asked_at_ns();
  return asked && *asked >= since_ns;
}

bool store_asked_since(const State& state, std::int64_t since_ns) {
  const std::optional<std::int64_t> asked = state.store_asked_at_ns();
  return asked && *asked >= since_ns;
}

}  // namespace whycache
