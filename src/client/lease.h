// Leases: records in the values of keys, replaced by conditional updates
// (include/whycache/lease.h).
//
// The token of a lease is the id of the update that grants it. It is known when the record is made,
// since that update directly follows the state that was read (Appender::append_prepared()).
#pragma once

#include <chrono>
#include <optional>
#include <string_view>

#include <whycache/lease.h>

#include "client/appender.h"
#include "client/session.h"

namespace whycache {

// As Cache::acquire(), renew() and release() say.
std::optional<Lease> acquire_lease(Session& session, Appender& appender, std::string_view key,
                                   std::chrono::milliseconds ttl, const LeaseOptions& options);
bool renew_lease(Session& session, Appender& appender, Lease& lease, const LeaseOptions& options);
bool release_lease(Session& session, Appender& appender, const Lease& lease,
                   const LeaseOptions& options);

}  // namespace whycache
