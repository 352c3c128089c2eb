// Rebuilding: builds a new state from the log's base and the updates after it, beside the current
// one, which continues to serve reads, and then installs it. This is always correct, since the
// state is a copy of the log.
//
// The base comes in parts, whose items are loaded. Their count and digest must match those that the
// last part names. If the base is replaced midway, or the log no longer continues what was built,
// the build restarts.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "base/backoff.h"
#include "client/session.h"
#include "state/state.h"

namespace whycache {

enum class RebuildReason {
  no_state,     // there was no state
  removed,      // the state was removed while this process had it open
  damaged,      // the state cannot be used
  behind_base,  // the log was rewritten beyond it
  diverged,     // the log was restored, forked or lost its tail
  replaced,     // the log has another uuid
  mostly_free,  // it is large, and most of it is free
  requested     // a user asked for it
};

struct RebuildCause {
  RebuildReason reason;
  std::string details;  // the values that show it, for messages
  // The log of a state that may be replaced although this process has not read it.
  std::optional<Uuid> other_log{};
};

// The state at the path, which `present` describes, is of another log than the session's, which has
// the uuid `log_uuid`. Throws LogError(corrupt) if it must not be replaced: processes that use that
// log may need it. It may be replaced if this process itself has seen its log, and so has seen it
// replaced. If it has the name of this log, or was brought here from elsewhere, it may be replaced
// while no other process uses it.
// Removes an alias that leads to a state that must not be replaced.
void check_may_replace(const Session& session, const LogIdentity& present, const Uuid& log_uuid);

// Returns why a state that is not usable() needs to be rebuilt: no_state, removed or damaged.
RebuildCause unusable_state_cause(const Session& session);

// Builds a state up to the head of the log and installs it. The caller holds StateLock::follow.
// Throws Error; the old state, if there is one, then stays. The exception is a disk without room
// for a second state: the old one is removed first, unless another process or a view has it open.
//
// Returns false if the caller has to look for the cause again. This happens if a writer brought the
// old state beyond the log's base, and beyond what was built; or if the log was rewritten or
// replaced meanwhile.
bool rebuild(Session& session, const RebuildCause& cause, Backoff& backoff);

// Does the same for a state that can be used: from the log because a user asked for it, or, because
// it is mostly free, from its own items. The new file has little free space.
// Holds no lock while it builds: other processes follow and write meanwhile. Never removes the old
// state first. The caller has just followed. Throws Error; the old state then stays.
void rebuild_beside(Session& session, RebuildReason reason, Backoff& backoff);

// Throws LogError(corrupt) if the log is empty and this machine has items from one that was not. A
// log that was created by mistake, as where its disk is not mounted, must not empty the machine.
void refuse_empty_log(const Session& session, const StateInfo& info, const Extent& extent);

// Builds a state as of update `last`, or as of the head if the log ends before it. The state is
// never installed; its items become a base. Returns nullptr if the log's base is beyond `last`.
std::unique_ptr<StateBuilder> build_as_of(Session& session, UpdateId last, Backoff& backoff);

// Counts and reports a recovery if the previous writer died while it applied an update.
void report_recovery(Session& session, const StateWriter& writer);
// Reports once that recent changes are not kept for feeds; called after an update was applied.
void report_ring_fault(Session& session, StateWriter& writer);

}  // namespace whycache
