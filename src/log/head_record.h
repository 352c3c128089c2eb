// The items by which the processes of a fleet share the head of a log in a tier: the head record
// and the poll lease. Protocol: log/tiered_log.h.
//
// Head record, 48 bytes, little-endian:
//
//   0   record_id          random and not 0: differs in every record
//   8   head               the greatest id in the log, when the log was polled
//   16  head_chain         head_chain_of() the update there; the base chain if the base ends there
//   24  lease_id           of the poll lease that was in the tier before that poll; 0: unknown
//   32  publish_delay_ns   from the beginning of that poll until the record was sent; signed
//   40  hash               hash64() of the 40 bytes before
//
// Poll lease, 12 bytes: lease_id, and its duration in seconds (4 bytes).
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <whycache/types.h>

namespace whycache {

struct HeadRecord {
  std::uint64_t record_id = 0;
  UpdateId head = 0;
  std::uint64_t head_chain = 0;
  std::uint64_t lease_id = 0;
  std::int64_t publish_delay_ns = 0;
};

std::string encode_head_record(const HeadRecord& record);
// Returns a record with record_id 0 if the bytes are not a head record: a process that finds it
// polls the log, and replaces it. Limits publish_delay_ns to one hour.
HeadRecord decode_head_record(std::string_view bytes);

// Returns the chain of an update. A log holds opaque bytes: for others, returns their hash.
std::uint64_t head_chain_of(std::string_view update);

struct PollLease {
  std::uint64_t lease_id = 0;
  std::uint32_t duration_seconds = 0;
};

std::string encode_poll_lease(const PollLease& lease);
// Returns nullopt if the bytes are not a poll lease, or one that lasts longer than an hour.
std::optional<PollLease> decode_poll_lease(std::string_view bytes);

}  // namespace whycache
