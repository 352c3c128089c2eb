// Bytes, times and numbers as text, both ways.
//
// Keys and values are any bytes. On a line of text they are escaped, so that a line is a line and
// nothing is lost:
//
//   \\ \t \n \r     backslash, tab, line feed, carriage return
//   \xNN            every other control character, and every byte that is not part of valid UTF-8
//
// Lines that are read (keys for mget and del, items for import) are unescaped by the same rule.
// JSON has strings for valid UTF-8, and base64 in a field whose name ends in _base64 for everything
// else.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

#include <whycache/types.h>

namespace whycache::cli {

bool is_utf8(std::string_view bytes) noexcept;

std::string escape(std::string_view bytes);
// nullopt: a backslash that begins none of the above.
std::optional<std::string> unescape(std::string_view text);

std::string encode_base64(std::string_view bytes);
// nullopt: not base64 (RFC 4648, with padding).
std::optional<std::string> decode_base64(std::string_view text);

// "1,234,567"
std::string format_with_commas(std::uint64_t number);
// "512 B", "12.3 KiB", "4.0 GiB"
std::string format_bytes(std::uint64_t bytes);
// "850 ns", "12.3 ms", "4.2 s", "3 min 20 s", "2 h 5 min", "3 d 4 h"
std::string format_duration(std::chrono::nanoseconds duration);
// "2026-01-31T23:59:59.123456Z"
std::string format_time(std::int64_t wall_time_us);
// "0x", then 16 hexadecimal digits.
std::string format_hash(std::uint64_t hash);

// "250ms", "5s", "1.5m", "2h", "10us", "100ns"; a number alone is seconds. nullopt: none of these,
// or below 0.
std::optional<std::chrono::nanoseconds> parse_duration(std::string_view text);

}  // namespace whycache::cli
