// Dates and times of typed values as text, in the forms of ISO 8601 and RFC 9557:
//
//   2024-02-29   12:34:56.5   12:34:56+01:00[CET]   12:34:56[Europe/Berlin][fold=1]   -1d 0.5s
#pragma once

#include <optional>
#include <string>
#include <string_view>

#include <whycache/value.h>

namespace whycache::cli {

std::string format_date(const ValueDate& date);
std::string format_time_of_day(const ValueTime& time);
std::string format_timedelta(const ValueTimedelta& timedelta);

// Each returns nullopt if the text has another form. Which dates and times exist is not checked.
std::optional<ValueDate> parse_date(std::string_view text);
// `zone_name` is set to the name that the zone refers to.
std::optional<ValueTime> parse_time_of_day(std::string_view text, std::string& zone_name);
// Also accepts days or seconds alone, and any number of seconds.
std::optional<ValueTimedelta> parse_timedelta(std::string_view text);

}  // namespace whycache::cli
