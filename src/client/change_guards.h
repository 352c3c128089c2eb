// Changes the guards of the log.
#pragma once

#include <functional>

#include <whycache/cache.h>

#include "client/appender.h"
#include "client/session.h"

namespace whycache {

// Changes the guards of the log in one atomic step. Calls `change` again if another writer was
// first. Returns the id of the update, or that of the state if there was nothing to change.
UpdateId change_log_guards(Session& session, Appender& appender,
                           const std::function<void(LogGuards&)>& change,
                           const WriteOptions& options);

}  // namespace whycache
