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
  static constexpr std::array<std::pair<std::string_view, double>, 8> units = {{{"", 1e9},
                                                                                {"ns", 1},
                                                                                {"us", 1e3},
                                                                                {"ms", 1e6},
                                                                                {"s", 1e9},
                                                                                {"m", 60e9},
                                                                                {"min", 60e9},
                                                                                {"h", 3600e9}}};
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

}  // namespace whycache::cli
