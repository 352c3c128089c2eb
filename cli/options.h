// Options that several commands share, and the parsing of their text.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <whycache/view.h>

#include "cli/value_json.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace whycache::cli {

// --json
void add_json_option(CLI::App& parser, bool& json);
// --raw-bytes: print values as they are stored, also typed ones
void add_raw_bytes_option(CLI::App& parser, ValueForm& form);
// --null
void add_null_option(CLI::App& parser, bool& null_separated, const char* help);
// --yes
void add_yes_option(CLI::App& parser, bool& yes, const char* help);
// --quiet
void add_quiet_option(CLI::App& parser, bool& quiet);
// --note
void add_note_option(CLI::App& parser, std::string& note);

// Whether a command may erase many keys: --yes, --erase-max.
struct EraseOptions {
  bool yes = false;
  std::optional<std::uint64_t> erase_max;
  bool needs_yes = false;  // --erase-max does not replace --yes, since more than keys is lost

  // Throws Failure refused if more than `free_max` keys would be erased and neither option allows
  // it, or more than --erase-max. `what` begins the message.
  void require_consent(const std::string& what, std::uint64_t erased, std::uint64_t all,
                       std::uint64_t free_max) const;
};
void add_erase_options(CLI::App& parser, EraseOptions& options);
// How many keys `del` and `apply` erase without being told --yes.
inline constexpr std::uint64_t erased_keys_free_max = 1000;

// Adds a duration: "250ms", "5s", "2m", "1h"; a number without a unit is seconds.
CLI::Option* add_duration_option(CLI::App& parser, const char* name,
                                 std::optional<std::chrono::nanoseconds>& duration,
                                 const char* help);

// Accepts any number of keys as arguments, byte for byte. After parsing, keys_of() returns them.
void allow_keys(CLI::App& parser);
std::vector<std::string> keys_of(const CLI::App& parser);

// A range of keys: [PREFIX], --from, --to, --limit.
struct RangeOptions {
  std::string prefix;
  std::optional<std::string> from;
  std::optional<std::string> to;
  std::uint64_t limit = 0;  // 0 means no limit

  // Returns the intersection of prefix, from and to.
  KeyRange key_range() const;
};
void add_range_options(CLI::App& parser, RangeOptions& range);

// How fresh a read must be: --update, --staleness-max.
struct FreshnessOptions {
  bool update = false;
  std::optional<std::chrono::nanoseconds> staleness_max;
};
void add_freshness_options(CLI::App& parser, FreshnessOptions& freshness);

}  // namespace whycache::cli
