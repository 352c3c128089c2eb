// The record of a lease: the value of its key.
//
//   lease token=12 nonce=0123456789abcdef granted_ms=1764432000000 ttl_ms=30000 holder=berlin:4711
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <whycache/lease.h>

namespace whycache {

// The longest time to live, a year: longer ones are mistakes, and their ends could overflow.
inline constexpr std::int64_t lease_ttl_ms_max = std::int64_t{366} * 24 * 3600 * 1000;

struct LeaseRecord {
  UpdateId token = 0;
  std::uint64_t nonce = 0;
  std::int64_t granted_ms = 0;  // wall clock of the holder
  std::int64_t ttl_ms = 0;
  std::string holder;

  bool is_of(const Lease& lease) const { return token == lease.token && nonce == lease.nonce; }
};

std::string encode_lease(const LeaseRecord& record);
// Returns nullopt if the value is not a lease.
std::optional<LeaseRecord> decode_lease(std::string_view value);
// Whether the record has expired for another holder, whose wall clock shows `now_ms`.
bool has_expired(const LeaseRecord& record, std::int64_t now_ms,
                 std::chrono::milliseconds clock_skew_max);

}  // namespace whycache
