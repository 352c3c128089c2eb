#include "value/format.h"

#include <algorithm>
#include <array>
#include <cstring>

#include "base/bytes.h"

namespace whycache {
namespace {

constexpr std::int64_t day_microseconds = std::int64_t{86'400} * 1'000'000;
constexpr std::int32_t timedelta_days_max = 999'999'999;

bool is_leap_year(unsigned year) noexcept {
  return year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
}

unsigned days_of_month(unsigned year, unsigned month) noexcept {
  constexpr std::array<std::uint8_t, 12> days{31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
  return days[month - 1] + (month == 2 && is_leap_year(year) ? 1U : 0U);
}

bool is_digit(char byte) noexcept { return byte >= '0' && byte <= '9'; }

// Removes the digits at the front, and returns whether there are any.
bool take_digits(std::string_view& text) noexcept {
  const auto end = std::ranges::find_if_not(text, is_digit);
  const auto count = static_cast<std::size_t>(end - text.begin());
  text.remove_prefix(count);
  return count > 0;
}

bool take_prefix(std::string_view& text, std::string_view prefix) noexcept {
  if (!text.starts_with(prefix)) return false;
  text.remove_prefix(prefix.size());
  return true;
}

// The name becomes part of a path where the zone is looked up.
bool is_valid_zone_name(std::string_view name) noexcept {
  const auto is_allowed = [](char byte) {
    return is_digit(byte) || (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z') ||
           std::string_view("_+-/.").find(byte) != std::string_view::npos;
  };
  return !name.empty() && name.size() <= zone_name_bytes_max && name.front() != '/' &&
         name.back() != '/' && std::ranges::all_of(name, is_allowed) &&
         name.find("..") == std::string_view::npos && name.find("//") == std::string_view::npos;
}

bool is_valid_zone(const ValueZone& zone) noexcept {
  switch (zone.kind) {
    case ValueZone::Kind::none: return zone.name.empty() && zone.offset_microseconds == 0;
    case ValueZone::Kind::offset:
      return zone.offset_microseconds > -day_microseconds &&
             zone.offset_microseconds < day_microseconds &&
             zone.name.size() <= zone_name_bytes_max &&
             check_value_text(zone.name) <= TextCheck::utf8;
    case ValueZone::Kind::named:
      return zone.offset_microseconds == 0 && is_valid_zone_name(zone.name);
  }
  return false;
}

// Returns the size of the sequence of two to four bytes at the front; 0 if there is none.
std::size_t long_sequence_bytes(const unsigned char* at, std::size_t bytes_left,
                                bool& is_surrogate) noexcept {
  const unsigned char first = at[0];
  const std::size_t size = first < 0xc2 ? 0 : first < 0xe0 ? 2 : first < 0xf0 ? 3 : 4;
  if (size == 0 || first > 0xf4 || size > bytes_left) return 0;
  for (std::size_t i = 1; i < size; ++i) {
    if ((at[i] & 0xc0) != 0x80) return 0;
  }
  if ((first == 0xe0 && at[1] < 0xa0) || (first == 0xf0 && at[1] < 0x90) ||
      (first == 0xf4 && at[1] >= 0x90))
    return 0;
  is_surrogate = first == 0xed && at[1] >= 0xa0;
  return size;
}

}  // namespace

TextCheck check_value_text(std::string_view text) noexcept {
  constexpr std::uint64_t high_bits = 0x8080808080808080;
  const auto* at = reinterpret_cast<const unsigned char*>(text.data());
  const unsigned char* const end = at + text.size();
  TextCheck result = TextCheck::ascii;
  while (at != end) {
    if (end - at >= 8 && (load_little_endian<std::uint64_t>(at) & high_bits) == 0) {
      at += 8;
    } else if (*at < 0x80) {
      ++at;
    } else {
      bool is_surrogate = false;
      const std::size_t size =
          long_sequence_bytes(at, static_cast<std::size_t>(end - at), is_surrogate);
      if (size == 0) return TextCheck::invalid;
      at += size;
      result = std::max(result, is_surrogate ? TextCheck::surrogates : TextCheck::utf8);
    }
  }
  return result;
}

bool is_valid(const ValueDate& date) noexcept {
  return date.year >= 1 && date.year <= 9999 && date.month >= 1 && date.month <= 12 &&
         date.day >= 1 && date.day <= days_of_month(date.year, date.month);
}

bool is_valid(const ValueTime& time) noexcept {
  return time.hour < 24 && time.minute < 60 && time.second < 60 && time.microsecond < 1'000'000 &&
         is_valid_zone(time.zone);
}

bool is_valid(const ValueTimedelta& timedelta) noexcept {
  return timedelta.days >= -timedelta_days_max && timedelta.days <= timedelta_days_max &&
         timedelta.seconds < 86'400 && timedelta.microseconds < 1'000'000;
}

bool is_valid_decimal(std::string_view text) noexcept {
  take_prefix(text, "-");
  if (text == "Infinity") return true;
  if (take_prefix(text, "NaN") || take_prefix(text, "sNaN")) {
    take_digits(text);
    return text.empty();
  }
  if (!take_digits(text)) return false;
  if (take_prefix(text, ".") && !take_digits(text)) return false;
  if (take_prefix(text, "E")) {
    if (!take_prefix(text, "+") && !take_prefix(text, "-")) return false;
    if (!take_digits(text)) return false;
  }
  return text.empty();
}

bool is_signaling_decimal(std::string_view text) noexcept {
  take_prefix(text, "-");
  return text.starts_with('s');
}

std::string_view without_needless_bytes(std::string_view integer) noexcept {
  while (integer.size() > 1) {
    const bool next_is_negative = (static_cast<unsigned char>(integer[1]) & 0x80) != 0;
    if (integer[0] != (next_is_negative ? '\xff' : '\0')) break;
    integer.remove_prefix(1);
  }
  return integer;
}

}  // namespace whycache
