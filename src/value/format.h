// What is valid in a typed value, for the reader and the writer alike. Format:
// docs/formats/value.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>

#include <whycache/value.h>

namespace whycache {

// Numbers of the MessagePack extensions.
enum class ValueExtension : std::uint8_t {
  big_integer = 1,
  tuple = 2,
  set = 3,
  frozenset = 4,
  datetime = 5,
  date = 6,
  time = 7,
  timedelta = 8,
  decimal = 9,
  uuid = 10,
  surrogate_text = 11,
};

inline constexpr std::size_t date_bytes = 4;
inline constexpr std::size_t time_bytes = 6;  // without its zone
inline constexpr std::size_t timedelta_bytes = 12;
inline constexpr std::uint32_t fold_bit = 1U << 23;  // in the microseconds of a time
inline constexpr std::size_t zone_name_bytes_max = 255;
// Kinds of zones, the byte before the zone.
inline constexpr std::uint8_t zone_is_offset = 1;
inline constexpr std::uint8_t zone_is_named = 2;

enum class TextCheck : std::uint8_t {
  ascii,
  utf8,
  surrogates,  // UTF-8, except that surrogates are encoded like other code points
  invalid,
};
TextCheck check_value_text(std::string_view text) noexcept;

bool is_valid(const ValueDate& date) noexcept;
bool is_valid(const ValueTime& time) noexcept;
bool is_valid(const ValueTimedelta& timedelta) noexcept;
// Returns whether the text is [-]digits[.digits][E(+|-)digits], [-]Infinity, [-]NaN[digits] or
// [-]sNaN[digits].
bool is_valid_decimal(std::string_view text) noexcept;
// A signaling NaN compares equal to nothing, and Python refuses it in sets.
bool is_signaling_decimal(std::string_view text) noexcept;
// Returns the integer, which is in two's complement with the most significant byte first, without
// the bytes that only repeat its sign.
std::string_view without_needless_bytes(std::string_view integer) noexcept;

}  // namespace whycache
