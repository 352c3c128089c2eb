#include "cli/options.h"
#include "cli/format.h"

#include <fmt/format.h>
#include <CLI/CLI.hpp>

#include <algorithm>

#include "cli/exit_code.h"

namespace whycache::cli {

void add_json_option(CLI::App& parser, bool& json) {
  parser.add_flag("--json", json, "one JSON object per line");
}

void add_raw_bytes_option(CLI::App& parser, ValueForm& form) {
  parser.add_flag_function(
      "--raw-bytes", [&form](std::int64_t /*count*/) { form = ValueForm::raw; },
      "print typed values as they are stored, not as JSON");
}

void add_null_option(CLI::App& parser, bool& null_separated, const char* help) {
  parser.add_flag("-0,--null", null_separated, help);
}

void add_yes_option(CLI::App& parser, bool& yes, const char* help) {
  parser.add_flag("--yes", yes, help);
}

void add_quiet_option(CLI::App& parser, bool& quiet) {
  parser.add_flag("-q,--quiet", quiet, "no progress on standard error");
}

void add_note_option(CLI::App& parser, std::string& note) {
  parser.add_option("--note", note, "a remark stored with the update, at most 255 bytes")
      ->type_name("TEXT");
}

void EraseOptions::require_consent(const std::string& what, std::uint64_t erased, std::uint64_t all,
                                   std::uint64_t free_max) const {
  const bool is_too_much = erase_max && erased > *erase_max;
  const bool agrees = yes || (erase_max && !needs_yes);
  if (!is_too_much && (agrees || (erased <= free_max && !needs_yes))) return;
  const double percent =
      100.0 * static_cast<double>(erased) / static_cast<double>(std::max({all, erased, 1UL}));
  throw Failure(
      ExitCode::refused,
      fmt::format("{}: {} of {} keys ({:.3g}%) would be erased on every machine{}", what,
                  format_with_commas(erased), format_with_commas(all), percent,
                  is_too_much ? fmt::format(", more than --erase-max {}", *erase_max) : ""),
      is_too_much && needs_yes && !yes ? "raise --erase-max if it is meant, and add --yes"
      : is_too_much                    ? "raise --erase-max if it is meant"
      : needs_yes
          ? fmt::format("add --yes to proceed; --erase-max {} besides it refuses if it is more by "
                        "then",
                        erased)
          : fmt::format("add --yes to proceed, or --erase-max {} to proceed if it is not more by "
                        "then",
                        erased));
}

void add_erase_options(CLI::App& parser, EraseOptions& options) {
  add_yes_option(parser, options.yes, "erase however many keys; without it, print how many");
  parser
      .add_option("--erase-max", options.erase_max,
                  "erase up to N keys, and refuse to change anything if there are more")
      ->type_name("N");
}

CLI::Option* add_duration_option(CLI::App& parser, const char* name,
                                 std::optional<std::chrono::nanoseconds>& duration,
                                 const char* help) {
  const auto parse = [&duration, name](const std::string& text) {
    duration = parse_duration(text);
    if (!duration)
      throw CLI::ValidationError(name, "not a duration like 250ms, 5s, 2m or 1h: " + text);
  };
  return parser.add_option_function<std::string>(name, parse, help)->type_name("DURATION");
}

// Not a positional vector, because there CLI11 takes "[a,b]" for two arguments. It leaves extra
// arguments as they are.
void allow_keys(CLI::App& parser) { parser.allow_extras(); }

std::vector<std::string> keys_of(const CLI::App& parser) {
  std::vector<std::string> keys;
  bool options_ended = false;
  for (const std::string& argument : parser.remaining()) {
    if (!options_ended && argument == "--") {
      options_ended = true;
      continue;
    }
    // A negative number is not an option, as in CLI11.
    const bool is_option =
        argument.size() > 1 && argument[0] == '-' && (argument[1] < '0' || argument[1] > '9');
    if (is_option && !options_ended) throw CLI::ExtrasError({argument});
    keys.push_back(argument);
  }
  return keys;
}

KeyRange RangeOptions::key_range() const {
  KeyRange range = KeyRange::prefix(prefix);
  if (from) range.begin = std::max(range.begin, *from);
  if (to) range.end = range.end ? std::min(*range.end, *to) : *to;
  return range;
}

void add_range_options(CLI::App& parser, RangeOptions& range) {
  parser.add_option("PREFIX", range.prefix, "only keys that begin with this")->type_name("");
  parser.add_option("--from", range.from, "first key, inclusive")->type_name("KEY");
  parser.add_option("--to", range.to, "last key, exclusive")->type_name("KEY");
  parser.add_option("--limit", range.limit, "maximum number of keys")
      ->type_name("N")
      ->check(CLI::PositiveNumber);
}

void add_freshness_options(CLI::App& parser, FreshnessOptions& freshness) {
  parser.add_flag("--update", freshness.update, "contact the log first and apply new updates");
  add_duration_option(parser, "--staleness-max", freshness.staleness_max,
                      "contact the log first unless this machine did so within DURATION");
}

}  // namespace whycache::cli
