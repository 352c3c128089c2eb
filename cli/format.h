// Numbers, sizes, durations, times and hashes as text for people.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace whycache::cli {

// "1,234,567"
std::string format_with_commas(std::uint64_t number);
// "1 item", "1,234 items"
std::string format_count(std::uint64_t count, std::string_view noun);
// "512 B", "12.3 KiB", "4.0 GiB"
std::string format_bytes(std::uint64_t bytes);
// "850 ns", "12.3 ms", "4.2 s", "3 min 20 s", "2 h 5 min", "3 d 4 h"
std::string format_duration(std::chrono::nanoseconds duration);
// "2026-01-31T23:59:59.123456Z"
std::string format_time(std::int64_t wall_time_us);
// "0x" and 16 hexadecimal digits
std::string format_hash(std::uint64_t hash);

// Parses a time in microseconds since 1970: "2026-01-31T23:59:59.5Z", "2026-01-31 23:59",
// "2026-01-31" (all UTC), an offset like +01:00 in place of Z, or a duration before `now_us`.
// Returns nullopt for any other text.
std::optional<std::int64_t> parse_time(std::string_view text, std::int64_t now_us);

// Parses "250ms", "5s", "1.5m", "2h", "10us" or "100ns"; a number without a unit is seconds.
// Returns nullopt for any other text and for a negative number.
std::optional<std::chrono::nanoseconds> parse_duration(std::string_view text);

}  // namespace whycache::cli
