// Following: the state applies what the log has beyond the applied id. Users call it update().
//
//   take StateLock::follow      one process of a machine asks; those that waited use its result
//     read a page from the applied id on
//     does it continue the history of the state?     no: build a new state (rebuild.h)
//     take the writer lock, apply, release it        (not held while the log is asked)
//     repeat until the log has nothing further
//     record when the log was asked
//
// A tier in front of the store may answer (Log::poll). Its answer is applied only if all of it
// continues the history. Otherwise the store is asked before anything is reported as wrong.
//
// The rows must have the ids that were asked for, without a gap. If one is missing or damaged,
// follow() throws an error that names it, and the state stays at the previous id.
#pragma once

#include <cstdint>

#include "base/backoff.h"
#include "client/log_page.h"
#include "client/session.h"
#include "state/write/mapping_policy.h"

namespace whycache {

// Applies everything that the log had when the call began, and polls until `at_least` is applied.
// Returns the applied id.
//
// `staleness_max`: accepts what the log had that long before the call. nullopt accepts the answer
// of a tier in front of the store, within the log's options. Pass 0, which asks the store, before a
// write or a rewrite.
//
// `mapping`: whether the mapping through which updates were applied is kept for the next ones. Only
// processes that do nothing else keep it: in others, the state stays mapped read-only while nothing
// is applied.
//
// Throws Error(unavailable) if the backoff runs out, Error(corrupt) if an update is missing or
// damaged, and Error(limit) if an update does not fit into the state.
UpdateId follow(Session& session, Backoff& backoff, UpdateId at_least = 0,
                StalenessMax staleness_max = zero_staleness,
                MappingPolicy mapping = MappingPolicy::unmap);

// Builds the state if there is none to read, as after OpenMode::now. Throws as follow().
void build_missing_state(Session& session, Backoff& backoff);

// Whether some process of this machine read the log at most `staleness_max` before `since_ns`, and
// applied all it got. An answer from a tier counts, unless staleness_max is 0. Returns false if
// this process has not seen its log yet, or has found the state damaged. Does not check that the
// state is usable and of the log that was seen: follow() does, under its lock. Costs nanoseconds.
bool is_fresh(const Session& session, std::int64_t since_ns, StalenessMax staleness_max);

// Whether some process of this machine read the log's store at or after `since_ns`, and applied all
// it got. An answer from a tier does not count.
bool store_asked_since(const State& state, std::int64_t since_ns);

}  // namespace whycache
