// Rebuilding: a new state is made from the log's base and the updates after it, beside the present
// one, which goes on serving reads, and is then put in its place. It is always right to do so: the
// state is a cache of the log.
//
// The base comes in parts, whose items are loaded; what was loaded must have the count and the
// digest that the last part names. A base that is replaced midway, or a log that no longer
// continues what was built, means to begin again.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

#include "base/backoff.h"
#include "client/session.h"
#include "state/state.h"

namespace whycache {

enum class RebuildReason {
  no_state,     // there was no state
  removed,      // somebody removed it while we had it open
  damaged,      // it cannot be used
  behind_base,  // the log was rewritten beyond it
  diverged,     // the log was restored, forked or lost its tail
  replaced      // the log has another uuid
};

struct RebuildCause {
  RebuildReason reason;
  std::string details;  // values that show it, for messages
};

// Why a state that is not usable() has to be rebuilt: no_state, removed or damaged.
RebuildCause unusable_state_cause(const Session& session);

// Builds a state up to the head of the log and puts it in place. The caller holds
// StateLock::follow. Throws Error; the old state, if there is one, stays then. False: it stays
// since it was behind the base only for a moment, and a writer has brought it farther than what was
// built.
bool rebuild(Session& session, const RebuildCause& rebuilding, Backoff& backoff);

// A state as of update `last`, or of the head if the log ends before, which is never put in place:
// the stuff for a base. nullptr: the base is beyond `last`.
std::unique_ptr<StateBuilder> build_as_of(Session& session, UpdateId last, Backoff& backoff);

// Counts and reports that the writer before us died midway, if it did.
void report_recovery(Session& session, const StateWriter& writer);

}  // namespace whycache
