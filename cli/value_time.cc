#include "cli/value_time.h"

#include <fmt/format.h>

#include <charconv>
#include <cstdint>

#include "base/hex.h"

namespace whycache::cli {
namespace {

constexpr std::int64_t second_microseconds = 1'000'000;
constexpr std::int64_t day_microseconds = 86'400 * second_microseconds;
constexpr std::string_view fold_mark = "[fold=1]";

// Returns ".5" for 500000, and nothing for 0.
std::string format_fraction(std::uint32_t microsecond) {
  if (microsecond == 0) return {};
  std::string digits = fmt::format(".{:06}", microsecond);
  digits.erase(digits.find_last_not_of('0') + 1);
  return digits;
}

std::string format_offset(std::int64_t microseconds) {
  const std::int64_t magnitude = microseconds < 0 ? -microseconds : microseconds;
  const std::int64_t seconds = magnitude / second_microseconds;
  const auto fraction = static_cast<std::uint32_t>(magnitude % second_microseconds);
  std::string text =
      fmt::format("{}{:02}:{:02}", microseconds < 0 ? '-' : '+', seconds / 3600, seconds / 60 % 60);
  if (seconds % 60 != 0 || fraction != 0)
    text += fmt::format(":{:02}{}", seconds % 60, format_fraction(fraction));
  return text;
}

std::string escape_zone_name(std::string_view name) {
  std::string text;
  for (const char byte : name) {
    if (byte == '%' || byte == '[' || byte == ']') {
      text += fmt::format("%{:02X}", static_cast<unsigned>(byte));
    } else {
      text += byte;
    }
  }
  return text;
}

std::optional<std::string> unescape_zone_name(std::string_view text) {
  std::string name;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '[' || text[i] == ']') return std::nullopt;
    if (text[i] != '%') {
      name += text[i];
      continue;
    }
    if (text.size() - i < 3 || hex_value(text[i + 1]) < 0 || hex_value(text[i + 2]) < 0)
      return std::nullopt;
    name += static_cast<char>(hex_value(text[i + 1]) << 4 | hex_value(text[i + 2]));
    i += 2;
  }
  return name;
}

// Takes text from its front.
class TextParser {
 public:
  explicit TextParser(std::string_view text) : text_(text) {}

  bool take(char byte) {
    if (!text_.starts_with(byte)) return false;
    text_.remove_prefix(1);
    return true;
  }
  // Takes exactly `count` digits.
  template <typename T>
  bool take_digits(std::size_t count, T& number) {
    std::uint32_t digits = 0;
    if (text_.size() < count) return false;
    for (const char byte : text_.substr(0, count)) {
      if (byte < '0' || byte > '9') return false;
      digits = digits * 10 + static_cast<std::uint32_t>(byte - '0');
    }
    text_.remove_prefix(count);
    number = static_cast<T>(digits);
    return true;
  }
  bool take_integer(std::int64_t& number) {
    const auto [end, error] = std::from_chars(text_.data(), text_.data() + text_.size(), number);
    if (error != std::errc()) return false;
    text_.remove_prefix(static_cast<std::size_t>(end - text_.data()));
    return true;
  }
  // Takes a point and one to six digits, if there is a point.
  bool take_fraction(std::uint32_t& microsecond) {
    microsecond = 0;
    if (!take('.')) return true;
    std::size_t count = 0;
    for (; count < 6; ++count) {
      std::uint32_t digit = 0;
      if (!take_digits(1, digit)) break;
      microsecond = microsecond * 10 + digit;
    }
    for (std::size_t i = count; i < 6; ++i) microsecond *= 10;
    return count > 0;
  }
  std::string_view rest() const { return text_; }

 private:
  std::string_view text_;
};

bool take_offset(TextParser& parser, std::int64_t& microseconds) {
  const bool is_negative = parser.rest().starts_with('-');
  if (!parser.take('+') && !parser.take('-')) return false;
  std::int64_t hours = 0;
  std::int64_t minutes = 0;
  std::int64_t seconds = 0;
  std::uint32_t fraction = 0;
  if (!parser.take_digits(2, hours) || !parser.take(':') || !parser.take_digits(2, minutes) ||
      minutes > 59)
    return false;
  if (parser.take(':') &&
      (!parser.take_digits(2, seconds) || seconds > 59 || !parser.take_fraction(fraction)))
    return false;
  microseconds = ((hours * 60 + minutes) * 60 + seconds) * second_microseconds + fraction;
  if (is_negative) microseconds = -microseconds;
  return true;
}

}  // namespace

std::string format_date(const ValueDate& date) {
  return fmt::format("{:04}-{:02}-{:02}", date.year, date.month, date.day);
}

std::string format_time_of_day(const ValueTime& time) {
  std::string text = fmt::format("{:02}:{:02}:{:02}{}", time.hour, time.minute, time.second,
                                 format_fraction(time.microsecond));
  if (time.zone.kind == ValueZone::Kind::offset)
    text += format_offset(time.zone.offset_microseconds);
  if (!time.zone.name.empty()) text += '[' + escape_zone_name(time.zone.name) + ']';
  if (time.fold) text += fold_mark;
  return text;
}

std::string format_timedelta(const ValueTimedelta& timedelta) {
  return fmt::format("{}d {}{}s", timedelta.days, timedelta.seconds,
                     format_fraction(timedelta.microseconds));
}

std::optional<ValueDate> parse_date(std::string_view text) {
  TextParser parser(text);
  ValueDate date;
  if (!parser.take_digits(4, date.year) || !parser.take('-') ||
      !parser.take_digits(2, date.month) || !parser.take('-') || !parser.take_digits(2, date.day) ||
      !parser.rest().empty())
    return std::nullopt;
  return date;
}

std::optional<ValueTime> parse_time_of_day(std::string_view text, std::string& zone_name) {
  ValueTime time;
  if (text.ends_with(fold_mark)) {
    time.fold = true;
    text.remove_suffix(fold_mark.size());
  }
  TextParser parser(text);
  if (!parser.take_digits(2, time.hour) || !parser.take(':') || !parser.take_digits(2, time.minute))
    return std::nullopt;
  if (parser.take(':') &&
      (!parser.take_digits(2, time.second) || !parser.take_fraction(time.microsecond)))
    return std::nullopt;
  if (parser.take('Z')) {
    time.zone.kind = ValueZone::Kind::offset;
  } else if (parser.rest().starts_with('+') || parser.rest().starts_with('-')) {
    time.zone.kind = ValueZone::Kind::offset;
    if (!take_offset(parser, time.zone.offset_microseconds)) return std::nullopt;
  }
  std::string_view rest = parser.rest();
  if (rest.empty()) return time;
  if (!rest.starts_with('[') || !rest.ends_with(']') || rest.size() < 3) return std::nullopt;
  rest.remove_prefix(1);
  rest.remove_suffix(1);
  std::optional<std::string> name = unescape_zone_name(rest);
  if (!name) return std::nullopt;
  zone_name = std::move(*name);
  time.zone.name = zone_name;
  if (time.zone.kind == ValueZone::Kind::none) time.zone.kind = ValueZone::Kind::named;
  return time;
}

std::optional<ValueTimedelta> parse_timedelta(std::string_view text) {
  constexpr std::int64_t number_max = 1'000'000'000'000;  // beyond the largest timedelta's days
  TextParser parser(text);
  std::int64_t days = 0;
  std::int64_t seconds = 0;
  std::uint32_t fraction = 0;
  bool is_negative = text.starts_with('-');
  if (!parser.take_integer(seconds)) return std::nullopt;
  if (parser.take('d')) {
    days = std::exchange(seconds, 0);
    const bool has_seconds = parser.take(' ');
    is_negative = parser.rest().starts_with('-');
    if (has_seconds && !parser.take_integer(seconds)) return std::nullopt;
    if (!has_seconds && parser.rest().empty()) parser = TextParser("s");
  }
  if (!parser.take_fraction(fraction) || !parser.take('s') || !parser.rest().empty())
    return std::nullopt;
  if (days > number_max || days < -number_max || seconds > number_max || seconds < -number_max)
    return std::nullopt;
  std::int64_t microseconds =
      seconds * second_microseconds + (is_negative ? -std::int64_t{fraction} : fraction);
  days += microseconds / day_microseconds;
  microseconds %= day_microseconds;
  if (microseconds < 0) {
    microseconds += day_microseconds;
    --days;
  }
  if (days > 999'999'999 || days < -999'999'999) return std::nullopt;
  return ValueTimedelta{static_cast<std::int32_t>(days),
                        static_cast<std::uint32_t>(microseconds / second_microseconds),
                        static_cast<std::uint32_t>(microseconds % second_microseconds)};
}

}  // namespace whycache::cli
