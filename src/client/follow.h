// Following: the state applies what the log has beyond the applied id. The verb users see is
// update().
//
//   take StateLock::follow                one process of a machine asks; those who waited find that it was done for
//   them
//     read a page from the applied id on
//     does it continue what we have?      no: build a new state (rebuild.h)
//     take the writer lock, apply, let go  (it is not held while the log is asked)
//     again, until there is nothing beyond
//     note when the log was asked
//
// What comes from something in front of the store (Log::look) is applied only if all of it
// continues what we have; else the store is asked before anything is believed to be wrong.
//
// The rows that come must be those we ask for, one id after the other: what is missing or damaged
// is an error that says so, and the state stays at the id before it.
#pragma once

#include <cstdint>

#include "base/backoff.h"
#include "client/log_page.h"
#include "client/session.h"

namespace whycache {

// Applies all that the log had when this began, and goes on until `at_least` is applied. Returns
// the applied id. Throws Error: unavailable when the patience is at its end, corrupt, limit.
// `age_max`: what the log had that long before this began will do, or, with nullopt, what stands in
// front of its store answers (Log::look). Who is about to write, or to rewrite, has to ask the
// store.
UpdateId follow(Session& session, Backoff& backoff, UpdateId at_least = 0,
                StalenessMax staleness_max = zero_staleness);

// Whether some process of this machine read the log no more than `staleness_max` before `since_ns`
// and applied all it got, and nothing contradicts that in this process: it knows its log, and no
// read found the state damaged. With a staleness_max of 0, only a read from the log's store counts;
// nullopt means 0, but whatever stands in front of the store counts too. Costs nanoseconds.
bool is_fresh(const Session& session, std::int64_t since_ns, StalenessMax staleness_max);

// Whether some process of this machine read the log's store at or after `since_ns` and applied all
// it got. An answer from a tier in front of the store does not count.
bool store_asked_since(const State& state, std::int64_t since_ns);

}  // namespace whycache
