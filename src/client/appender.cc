#include "client/appender.h"

#include <algorithm>
#include <cassert>
#include <chrono>
#include <exception>
#include <new>
#include <utility>

#include "client/follow.h"
#include "client/guards.h"
#include "client/rebuild.h"
#include "client/write_outcome.h"
#include "state/read/pin.h"
#include "state/write/writer.h"
#include "update/format.h"

namespace whycache {
namespace {

// A log that was restored or replaced must not get an update that continues another history. A
// writer therefore follows before it appends, unless some process of this machine did so within
// this time. Two later checks cover the time itself: the log takes an update only if it has the
// previous one, and after any failure the writer reads back. (docs/decisions/look-before-append.md)
constexpr std::int64_t append_staleness_max_ns = 100'000'000;
// How long applying an update that was appended at the last moment may take beyond the deadline.
constexpr std::chrono::milliseconds apply_time_min{25};

// Follows before a write, or after another update took its id.
void follow_before_write(Session& session, Backoff& backoff) {
  before_write([&] { return follow(session, backoff); });
}

}  // namespace

HeldLock Appender::lock_and_follow(Backoff& backoff) {
  HeldLock lock = before_write([&] { return session_.lock_for_log(StateLock::append, backoff); });
  session_.state.switch_if_replaced(backoff.deadline());
  if (!store_asked_since(session_.state, boot_time_ns() - append_staleness_max_ns) ||
      !session_.state.usable() || !session_.has_followed() ||
      !session_.has_seen_log(session_.state.log_position().log_uuid)) {
    follow_before_write(session_, backoff);
  }
  return lock;
}

UpdateId Appender::append(Draft& draft, Backoff& backoff, const Check& check) {
  for (;;) {
    LogPosition position = session_.state.log_position();
    // The state is looked at after its position was. If it has moved on, the next id is taken.
    if (check && has_log_guards(session_.state)) {
      const std::shared_ptr<const detail::Pin> pin = session_.state.pin();
      position = LogPosition{pin->mapping().header().fixed.log_uuid, pin->id(), pin->block().chain};
      check(View(pin));
    }
    if (try_append(position, draft, backoff)) return position.id + 1;
  }
}

std::optional<LogPosition> Appender::append_prepared(const Prepare& prepare, Backoff& backoff,
                                                     const std::function<void()>& before_read) {
  const HeldLock appending = lock_and_follow(backoff);
  for (;;) {
    if (before_read) before_read();
    const Uuid log_uuid = session_.state.log_position().log_uuid;
    const std::shared_ptr<const detail::Pin> pin = session_.state.pin();
    const LogPosition position{log_uuid, pin->id(), pin->block().chain};
    std::optional<Draft> draft = prepare(pin);
    if (!draft) return std::nullopt;
    if (try_append(position, *draft, backoff))
      return LogPosition{log_uuid, position.id + 1, draft->chain()};
  }
}

// Appends the draft as the update after `position`, and applies it. Returns false if another update
// has the id; that one has been followed.
bool Appender::try_append(const LogPosition& position, Draft& draft, Backoff& backoff) {
  const UpdateId id = position.id + 1;
  const std::string_view bytes = draft.seal(id, position.chain);
  Update update;
  draft.decode_sealed(update);  // an update that cannot be decoded must not get into the log
  try {
    if (append_and_resolve(position, bytes, backoff)) {
      session_.counters.add(&Counters::updates_written);
      session_.state.announce_release(StateLock::append);
      apply_appended(position, update, backoff.deadline());
      return true;
    }
  } catch (const std::bad_alloc&) {  // not even memory for a message
    throw Error(memory_ran_out_);
  }
  session_.counters.add(&Counters::append_conflicts);
  if (backoff.deadline().passed()) {
    throw Error(ErrorKind::unavailable,
                "others were always first until the deadline, nothing was written: id=" +
                    std::to_string(id) +
                    " deadline_ms=" + std::to_string(backoff.timeout().count()));
  }
  follow_before_write(session_, backoff);
  // The log must show which update has the id.
  if (session_.state.log_position().chain == position.chain && !backoff.pause()) {
    throw LogError(
        ErrorKind::unavailable,
        "log says that an id is taken but shows no update there, nothing was written: id=" +
            std::to_string(id) + " log=" + session_.log.name());
  }
  return false;
}

// Puts the bytes into the log after `position`, exactly once. Returns false if another update is
// there. Throws when the backoff has run out: uncertain if an attempt is in doubt, else
// unavailable.
bool Appender::append_and_resolve(const LogPosition& position, std::string_view bytes,
                                  Backoff& backoff) {
  const UpdateId id = position.id + 1;
  bool failed = false;    // an attempt failed: read back before the next one, whatever the error
  bool in_doubt = false;  // an attempt may have succeeded, or may still do so
  const auto uncertain = [&](const std::string& why) {
    return Error(ErrorKind::uncertain,
                 "write may or may not be in the log: id=" + std::to_string(id) +
                     " log=" + session_.log.name() + ": " + why +
                     " (update(), or `whycache get KEY --update`, and look before "
                     "repeating it)");
  };
  const auto append_once = [&] {
    try {
      return session_.call_log(backoff.deadline(), [&](Log& log) {
        return log.append(id, bytes);
      }) == Log::Appended::yes;
    } catch (const LogError& error) {
      in_doubt = in_doubt || error.kind() == ErrorKind::uncertain;
      throw;
    }
  };
  for (;;) {
    try {
      if (failed) {
        std::string why;
        const ReadBackResult found = read_back(position, bytes, backoff.deadline(), why);
        if (found == ReadBackResult::ours) return true;
        if (found == ReadBackResult::other_update) return false;
        if (found == ReadBackResult::other_log && in_doubt) throw uncertain(why);
        if (found == ReadBackResult::other_log) return false;
      }
      if (append_once()) return true;
      if (!failed) return false;
      // The next read_back() shows whose update took the id.
      throw LogError(ErrorKind::unavailable, "the id was taken between two looks");
    } catch (const LogError& error) {
      failed = true;
      try {
        session_.back_off_after(error, backoff);
      } catch (const LogError& last) {
        if (in_doubt) throw uncertain(last.what());
        throw LogError(with_nothing_written(last));
      }
    }
  }
}

// Reads which update the log now has after `position`. Sets `why` if it is another log.
Appender::ReadBackResult Appender::read_back(const LogPosition& position, std::string_view bytes,
                                             const Deadline& deadline, std::string& why) {
  const LogPage page = session_.call_log(deadline, [&](Log& log) {
    return read_page(log, first_id_to_read(position.id), position.id + 1);
  });
  if (compare_history(page, position, why) != HistoryMatch::matches)
    return ReadBackResult::other_log;
  for (std::size_t i = 0; i < page.row_count(); ++i) {
    if (page.row(i).id == position.id + 1)
      return page.row(i).bytes == bytes ? ReadBackResult::ours : ReadBackResult::other_update;
  }
  return ReadBackResult::absent;
}

// Makes the update that was appended after `position` visible to this machine.
void Appender::apply_appended(const LogPosition& position, const Update& update,
                              const Deadline& deadline) {
  // The update is written and has to become visible, even if the append took all of the time, or a
  // stop is requested.
  Backoff backoff(std::max(
      std::chrono::duration_cast<std::chrono::milliseconds>(deadline.time_left()), apply_time_min));
  try {
    if (apply_if_next(position, update, backoff.deadline())) return;
  } catch (const std::exception&) {  // follow() reports the fault, and repairs what it can
  }
  const auto not_applied = [&](const std::string& why, int system_error) {
    return Error(ErrorKind::uncertain,
                 "write is in the log, but could not be applied on this machine: id=" +
                     std::to_string(update.id) + ": " + why,
                 system_error);
  };
  try {
    follow(session_, backoff, update.id);
  } catch (const Error& error) {
    throw not_applied(std::string(to_string(error.kind())) + ": " + error.what(),
                      error.system_error());
  } catch (const std::exception& error) {  // std::bad_alloc
    throw not_applied(error.what(), 0);
  }
}

// Applies the update if the state is still at `position`. Returns true if the update is in the
// state now, applied here or by a follower; false if the log has to be followed.
bool Appender::apply_if_next(const LogPosition& position, const Update& update,
                             const Deadline& deadline) {
  assert(update.id == position.id + 1);
  const std::unique_ptr<StateWriter> writer =
      session_.state.begin_write(deadline, MappingPolicy::cache);
  report_recovery(session_, *writer);
  const LogPosition now = writer->log_position();
  if (now.log_uuid != position.log_uuid) return false;
  if (now == position) {
    writer->apply(update);
    report_ring_fault(session_, *writer);
    session_.counters.add(&Counters::updates_applied);
  }
  writer->add_counters(session_.counters.take_unreported());
  if (now == position) return true;
  return now.id > update.id || (now.id == update.id && now.chain == update.chain);
}

}  // namespace whycache
