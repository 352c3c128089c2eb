#include "client/lease.h"

#include <algorithm>
#include <utility>

#include "base/clock.h"
#include "base/random.h"
#include "client/lease_record.h"
#include "client/transact.h"

namespace whycache {
namespace {

constexpr std::size_t holder_bytes_max = 255;

std::int64_t wall_time_ms() { return wall_time_us() / 1000; }

void check_options(std::chrono::milliseconds ttl, const LeaseOptions& options) {
  if (ttl.count() < 1 || ttl.count() > lease_ttl_ms_max) {
    throw Error(ErrorKind::invalid, "ttl out of range: ttl_ms=" + std::to_string(ttl.count()) +
                                        " range=1.." + std::to_string(lease_ttl_ms_max));
  }
  if (options.clock_skew_max.count() < 0 || options.clock_skew_max.count() > lease_ttl_ms_max) {
    throw Error(ErrorKind::invalid, "clock_skew_max out of range: clock_skew_ms=" +
                                        std::to_string(options.clock_skew_max.count()) +
                                        " range=0.." + std::to_string(lease_ttl_ms_max));
  }
  if (options.holder.size() > holder_bytes_max) {
    throw Error(ErrorKind::invalid,
                "holder too long: bytes=" + std::to_string(options.holder.size()) +
                    " bytes_max=" + std::to_string(holder_bytes_max));
  }
}

// Returns the lease that is the value of the key, or nullopt if the key is absent.
std::optional<LeaseRecord> present_lease(const View& view, std::string_view key) {
  const std::optional<std::string_view> value = view.get(key);
  if (!value) return std::nullopt;
  std::optional<LeaseRecord> record = decode_lease(*value);
  if (!record) {
    throw Error(ErrorKind::invalid,
                "value of the key is not a lease, nothing was written: value_bytes=" +
                    std::to_string(value->size()));
  }
  return record;
}

// Returns the value of the lease's key if it is this lease.
std::optional<LeaseRecord> held_lease(const View& view, const Lease& lease) {
  const std::optional<std::string_view> value = view.get(lease.key);
  std::optional<LeaseRecord> record = value ? decode_lease(*value) : std::nullopt;
  return record && record->is_of(lease) ? record : std::nullopt;
}

WriteOptions write_options(const LeaseOptions& options) {
  return {.note = {}, .deadline = options.deadline, .stop = options.stop};
}

// Writes `record` with the present time, which is not before that of `previous`, and makes `lease`
// last from now on. Reads the clocks before the update is appended: for the holder the lease ends
// first.
Change grant(LeaseRecord& record, const LeaseRecord* previous, Lease& lease, std::string& value) {
  lease.end = std::chrono::nanoseconds(boot_time_ns()) + lease.ttl;
  record.granted_ms = wall_time_ms();
  if (previous != nullptr) record.granted_ms = std::max(record.granted_ms, previous->granted_ms);
  value = encode_lease(record);
  return Change::set(lease.key, value);
}

}  // namespace

std::chrono::nanoseconds Lease::remaining() const noexcept {
  return std::max(end - std::chrono::nanoseconds(boot_time_ns()), std::chrono::nanoseconds(0));
}

std::optional<Lease> acquire_lease(Session& session, Appender& appender, std::string_view key,
                                   std::chrono::milliseconds ttl, const LeaseOptions& options) {
  check_options(ttl, options);
  Lease lease{.key = std::string(key), .ttl = ttl, .nonce = random_u64()};
  LeaseRecord record{.nonce = lease.nonce,
                     .ttl_ms = ttl.count(),
                     .holder = options.holder.empty() ? session.writer_name() : options.holder};
  std::string value;
  const std::optional<UpdateId> granted = write_decided(
      session, appender,
      [&](const View& view) -> std::vector<Change> {
        const std::optional<LeaseRecord> previous = present_lease(view, key);
        if (previous && !has_expired(*previous, wall_time_ms(), options.clock_skew_max)) return {};
        record.token = view.id() + 1;
        return {grant(record, previous ? &*previous : nullptr, lease, value)};
      },
      write_options(options));
  if (!granted) return std::nullopt;
  lease.token = *granted;
  return lease;
}

bool renew_lease(Session& session, Appender& appender, Lease& lease, const LeaseOptions& options) {
  check_options(lease.ttl, options);
  Lease renewed = lease;
  std::string value;
  const std::optional<UpdateId> id = write_decided(
      session, appender,
      [&](const View& view) -> std::vector<Change> {
        std::optional<LeaseRecord> record = held_lease(view, lease);
        if (!record) return {};
        const LeaseRecord previous = *record;
        record->ttl_ms = lease.ttl.count();
        if (!options.holder.empty()) record->holder = options.holder;
        return {grant(*record, &previous, renewed, value)};
      },
      write_options(options));
  if (!id) return false;
  lease = std::move(renewed);
  return true;
}

bool release_lease(Session& session, Appender& appender, const Lease& lease,
                   const LeaseOptions& options) {
  const std::optional<UpdateId> id = write_decided(
      session, appender,
      [&](const View& view) -> std::vector<Change> {
        if (!held_lease(view, lease)) return {};
        return {Change::erase(lease.key)};
      },
      write_options(options));
  return id.has_value();
}

}  // namespace whycache
