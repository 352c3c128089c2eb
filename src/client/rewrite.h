// Rewriting history: the items as of one update id, the new base, replace the updates up to it.
//
// If the state is at that id, the items come from a view of it. Otherwise they come from a state
// that is built from the log for this purpose and never installed. The items are counted and hashed
// again while they are written. If count or digest differ from those of the state, the rewrite
// fails, since its result would become the truth.
#pragma once

#include <whycache/cache.h>

#include "client/appender.h"
#include "client/session.h"

namespace whycache {

// Rewrites history as Cache::rewrite_history() says. Returns the base of the log afterwards.
UpdateId rewrite_history(Session& session, Appender& appender, const RewriteOptions& options);

// Appends an update that erases everything, then makes it the base. Returns the base of the log
// afterwards.
UpdateId delete_all_history(Session& session, Appender& appender, const WriteOptions& options);

}  // namespace whycache
