// Rewriting history: the entries as of one update id are put in place of the updates up to it.
//
// The entries come from a view of the state if it stands at that id, else from a state that is
// built for the purpose from the log alone and never put in place. While they are written they are
// counted and hashed once more: what does not amount to what the state says of itself must not
// become the truth.
#pragma once

#include <whycache/cache.h>

#include "client/appender.h"
#include "client/session.h"

namespace whycache {

// Returns the base after it.
UpdateId rewrite_history(Session& session, Appender& appender, const RewriteOptions& options);

// Appends an update that erases everything, and makes it the base.
UpdateId delete_all_history(Session& session, Appender& appender);

}  // namespace whycache
