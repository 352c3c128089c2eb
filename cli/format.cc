#include "cli/format.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <ctime>
#include <utility>

namespace whycache::cli {

std::string format_with_commas(std::uint64_t number) {
  std::string digits = std::to_string(number);
  for (std::size_t at = digits.size(); at > 3;) {
    at -= 3;
    digits.insert(at, 1, ',');
  }
  return digits;
}

std::string format_count(std::uint64_t count, std::string_view noun) {
  return fmt::format("{} {}{}", format_with_commas(count), noun, count == 1 ? "" : "s");
}

std::string format_bytes(std::uint64_t bytes) {
  static constexpr std::array units = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
  auto amount = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (amount >= 1024 && unit + 1 < units.size()) {
    amount /= 1024;
    ++unit;
  }
  return unit == 0 ? fmt::format("{} B", bytes) : fmt::format("{:.1f} {}", amount, units[unit]);
}

std::string format_duration(std::chrono::nanoseconds duration) {
  const std::int64_t ns = duration.count();
  if (ns < 1'000) return fmt::format("{} ns", ns);
  if (ns < 1'000'000) return fmt::format("{:.1f} us", static_cast<double>(ns) / 1e3);
  if (ns < 1'000'000'000) return fmt::format("{:.1f} ms", static_cast<double>(ns) / 1e6);
  const std::int64_t seconds = ns / 1'000'000'000;
  if (seconds < 60) return fmt::format("{:.1f} s", static_cast<double>(ns) / 1e9);
  if (seconds < 3600) return fmt::format("{} min {} s", seconds / 60, seconds % 60);
  if (seconds < 86400) return fmt::format("{} h {} min", seconds / 3600, seconds / 60 % 60);
  return fmt::format("{} d {} h", seconds / 86400, seconds / 3600 % 24);
}

std::string format_time(std::int64_t wall_time_us) {
  std::int64_t microseconds = wall_time_us % 1'000'000;
  std::time_t seconds = wall_time_us / 1'000'000;
  if (microseconds < 0) {
    microseconds += 1'000'000;
    --seconds;
  }
  std::tm parts{};
  // The calendar cannot represent every time that an update may contain.
  if (::gmtime_r(&seconds, &parts) == nullptr) return fmt::format("{} us since 1970", wall_time_us);
  return fmt::format("{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{:06}Z",
                     std::int64_t{parts.tm_year} + 1900, parts.tm_mon + 1, parts.tm_mday,
                     parts.tm_hour, parts.tm_min, parts.tm_sec, microseconds);
}

std::string format_hash(std::uint64_t hash) { return fmt::format("0x{:016x}", hash); }

std::optional<std::chrono::nanoseconds> parse_duration(std::string_view text) {
  static constexpr std::array<std::pair<std::string_view, double>, 9> units = {{{"", 1e9},
                                                                                {"ns", 1},
                                                                                {"us", 1e3},
                                                                                {"ms", 1e6},
                                                                                {"s", 1e9},
                                                                                {"m", 60e9},
                                                                                {"min", 60e9},
                                                                                {"h", 3600e9},
                                                                                {"d", 86400e9}}};
  double amount = 0;
  const auto [end, error] =
      std::from_chars(text.data(), text.data() + text.size(), amount, std::chars_format::fixed);
  if (error != std::errc{} || !std::isfinite(amount) || amount < 0) return std::nullopt;
  const std::string_view suffix(end, static_cast<std::size_t>(text.data() + text.size() - end));
  for (const auto& [unit, ns] : units) {
    if (suffix != unit) continue;
    // About a hundred years: long enough, and sums of two do not overflow.
    return std::chrono::nanoseconds(static_cast<std::int64_t>(std::min(amount * ns, 3.15e18)));
  }
  return std::nullopt;
}

namespace {

// Takes a decimal number of exactly `digits` digits from the front of `text`.
std::optional<int> take_digits(std::string_view& text, std::size_t digits) {
  int number = 0;
  if (text.size() < digits) return std::nullopt;
  for (const char digit : text.substr(0, digits)) {
    if (digit < '0' || digit > '9') return std::nullopt;
    number = number * 10 + (digit - '0');
  }
  text.remove_prefix(digits);
  return number;
}

bool take(std::string_view& text, char byte) {
  if (!text.starts_with(byte)) return false;
  text.remove_prefix(1);
  return true;
}

// Takes ":MM" or ":SS" if the text continues with a colon; 0 if it does not.
std::optional<int> take_optional_part(std::string_view& text) {
  return take(text, ':') ? take_digits(text, 2) : std::optional(0);
}

// Takes "Z", "+01:00" or "-01:00"; 0 at the end. Returns seconds.
std::optional<std::int64_t> take_offset(std::string_view& text) {
  if (text.empty() || take(text, 'Z') || take(text, 'z')) return 0;
  const bool is_east = text.starts_with('+');
  if (!is_east && !text.starts_with('-')) return std::nullopt;
  text.remove_prefix(1);
  const std::optional<int> hours = take_digits(text, 2);
  take(text, ':');
  const std::optional<int> minutes = take_digits(text, 2);
  if (!hours || !minutes || *hours > 23 || *minutes > 59) return std::nullopt;
  const std::int64_t seconds = std::int64_t{*hours} * 3600 + std::int64_t{*minutes} * 60;
  return is_east ? seconds : -seconds;
}

}  // namespace

std::optional<std::int64_t> parse_time(std::string_view text, std::int64_t now_us) {
  if (const auto ago = parse_duration(text)) return now_us - ago->count() / 1000;
  const std::optional<int> year = take_digits(text, 4);
  if (!year || !take(text, '-')) return std::nullopt;
  const std::optional<int> month = take_digits(text, 2);
  if (!month || !take(text, '-')) return std::nullopt;
  const std::optional<int> day = take_digits(text, 2);
  const std::chrono::year_month_day date(std::chrono::year(*year),
                                         std::chrono::month(static_cast<unsigned>(*month)),
                                         std::chrono::day(static_cast<unsigned>(day.value_or(0))));
  if (!date.ok()) return std::nullopt;
  std::int64_t seconds =
      std::int64_t{std::chrono::sys_days(date).time_since_epoch().count()} * 86400;
  std::int64_t microseconds = 0;
  if (text.empty()) return seconds * 1'000'000;
  if (!take(text, 'T') && !take(text, 't') && !take(text, ' ')) return std::nullopt;
  const std::optional<int> hour = take_digits(text, 2);
  if (!hour || !text.starts_with(':')) return std::nullopt;
  const std::optional<int> minute = take_optional_part(text);
  const std::optional<int> second = minute ? take_optional_part(text) : std::nullopt;
  if (!second || *hour > 23 || *minute > 59 || *second > 60) return std::nullopt;
  if (take(text, '.')) {
    std::int64_t unit = 100'000;
    if (text.empty() || text[0] < '0' || text[0] > '9') return std::nullopt;
    for (; !text.empty() && '0' <= text[0] && text[0] <= '9'; text.remove_prefix(1)) {
      microseconds += (text[0] - '0') * unit;
      unit /= 10;
    }
  }
  const std::optional<std::int64_t> offset = take_offset(text);
  if (!offset || !text.empty()) return std::nullopt;
  seconds += std::int64_t{*hour} * 3600 + std::int64_t{*minute} * 60 + *second - *offset;
  return seconds * 1'000'000 + microseconds;
}

}  // namespace whycache::cli
