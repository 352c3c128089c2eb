// Leases: one holder at a time, for a limited time, across machines.
//
//   if (std::optional<whycache::Lease> lease = cache.acquire("importer", 30s)) {
//     while (has_work() && cache.renew(*lease)) work_for_less_than_30_s(lease->token);
//     cache.release(*lease);
//   }
//
// A lease is the value of its key: the token, the holder, and by the holder's wall clock when the
// lease was granted or renewed, and for how long. Another holder replaces it, in one atomic step,
// once its own wall clock is past the end of that time by LeaseOptions::clock_skew_max.
//
// Two holders never overlap if each wall clock stays within half of clock_skew_max of the true
// time, and a holder stops when remaining() is 0. No clock can promise the second: a process may be
// stopped between its look at the clock and what it does then. Work that must not be done twice
// needs the fencing token, which is greater than those of all earlier leases of the key. Let the
// store that is written compare it. To write to the cache, use a transaction that calls
// Transaction::holds(): it commits only if the lease is still held, whatever the clocks say.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <stop_token>
#include <string>

#include <whycache/types.h>

namespace whycache {

struct Lease {
  std::string key;
  // The id of the update that granted it. Renewing it keeps the token.
  UpdateId token = 0;
  std::chrono::milliseconds ttl{0};
  // Random, so that a lease of a history that the log has lost is not taken for this one.
  std::uint64_t nonce = 0;
  // CLOCK_BOOTTIME at the end of the ttl, which began before the lease was written.
  std::chrono::nanoseconds end{0};

  // Returns how long the holder may rely on the lease: 0 once the ttl is over. Renewing resets it.
  [[nodiscard]] WHYCACHE_API std::chrono::nanoseconds remaining() const noexcept;
};

struct LeaseOptions {
  // Stored with the lease for people to read, at most 255 bytes. Default: Options::writer_name.
  std::string holder{};
  // How far the wall clocks of two machines may differ, at any two times. A lease of another holder
  // has expired only this long after its end. Give the same to every call for a key.
  std::chrono::milliseconds clock_skew_max{5'000};
  // Default: Options::deadline.
  std::optional<std::chrono::milliseconds> deadline{};
  // A stop request makes the call give up. To release a lease after that, call without the token.
  std::stop_token stop{};
};

}  // namespace whycache
