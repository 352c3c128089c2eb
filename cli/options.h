// Options that several commands have, and how their text is read.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <whycache/view.h>

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace whycache::cli {

// --json
void add_json_option(CLI::App& parser, bool& json);
// --null
void add_null_option(CLI::App& parser, bool& null_separated, const char* help);
// --yes
void add_yes_option(CLI::App& parser, bool& yes, const char* help);
// --quiet
void add_quiet_option(CLI::App& parser, bool& quiet);
// --note
void add_note_option(CLI::App& parser, std::string& note);

// A duration: "250ms", "5s", "2m", "1h"; a number alone is seconds.
CLI::Option* add_duration_option(CLI::App& parser, const char* name,
                                 std::optional<std::chrono::nanoseconds>& duration,
                                 const char* help);

// Any number of keys as arguments, byte for byte. keys_of() gives them once the command line has
// been read.
void allow_keys(CLI::App& parser);
std::vector<std::string> keys_of(const CLI::App& parser);

// Which keys: [PREFIX], --from, --to, --limit.
struct RangeOptions {
  std::string prefix;
  std::optional<std::string> from;
  std::optional<std::string> to;
  std::uint64_t limit = 0;  // 0: all

  // What prefix, from and to have in common.
  KeyRange key_range() const;
};
void add_range_options(CLI::App& parser, RangeOptions& range);

// What to read before anything is looked up: --update, --staleness-max.
struct FreshnessOptions {
  bool update = false;
  std::optional<std::chrono::nanoseconds> staleness_max;
};
void add_freshness_options(CLI::App& parser, FreshnessOptions& freshness);

}  // namespace whycache::cli
