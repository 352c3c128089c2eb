#include "cli/common_options.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <array>
#include <cctype>
#include <cstdlib>
#include <optional>
#include <string_view>
#include <utility>

#include "cli/config_file.h"
#include "cli/exit_code.h"
#include "log/log_name.h"

namespace whycache::cli {
namespace {

struct CommonOption {
  enum class Kind { text, number, flag };

  std::string_view name;
  Kind kind;
  // Whether environment and configuration may give it.
  bool has_default = true;
  std::string_view short_name = {};
};

constexpr std::array common_options = {
    CommonOption{"log", CommonOption::Kind::text},
    CommonOption{"state", CommonOption::Kind::text},
    CommonOption{"deadline", CommonOption::Kind::number},
    CommonOption{"state-mode", CommonOption::Kind::text},
    CommonOption{"any-file-system", CommonOption::Kind::flag},
    CommonOption{"update-bytes-max", CommonOption::Kind::number},
    CommonOption{"json", CommonOption::Kind::flag},
    CommonOption{"writer", CommonOption::Kind::text},
    CommonOption{"quiet", CommonOption::Kind::flag, true, "-q"},
    CommonOption{"profile", CommonOption::Kind::text, false},
    CommonOption{"config", CommonOption::Kind::text, false},
};

const CommonOption* find_common_option(std::string_view name) {
  const auto* const found =
      std::find_if(common_options.begin(), common_options.end(),
                   [&](const CommonOption& option) { return option.name == name; });
  return found == common_options.end() ? nullptr : found;
}

// Returns the common option that the argument names, without the value after '='.
const CommonOption* common_option_of(std::string_view argument) {
  for (const CommonOption& option : common_options) {
    if (!option.short_name.empty() && argument == option.short_name) return &option;
  }
  if (!argument.starts_with("--")) return nullptr;
  return find_common_option(argument.substr(2, argument.find('=') - 2));
}

std::string join_keys() {
  std::vector<std::string_view> names;
  for (const CommonOption& option : common_options) {
    if (option.has_default) names.push_back(option.name);
  }
  return fmt::format("{}", fmt::join(names, ", "));
}

// An unset variable and an empty one are the same.
std::optional<std::string> read_environment(const std::string& option) {
  const char* const value = ::secure_getenv(environment_name(option).c_str());
  if (value == nullptr || *value == '\0') return std::nullopt;
  return value;
}

std::optional<std::string> given_value(const CLI::App& parser, const std::string& option) {
  const CLI::Option* const found = parser.get_option_no_throw("--" + option);
  if (found == nullptr || found->count() == 0) return std::nullopt;
  return found->results().back();
}

constexpr std::string_view profile_prefix = "profile.";

void check_entries(const ConfigFile& file) {
  const auto refuse = [&](const std::string& what, std::size_t line, const std::string& next) {
    throw Failure(
        ExitCode::usage,
        fmt::format("configuration file is wrong: path={} line={}: {}", file.path(), line, what),
        next);
  };
  for (const ConfigEntry& entry : file.entries()) {
    if (!entry.table.empty() &&
        (!entry.table.starts_with(profile_prefix) ||
         entry.table.find('.', profile_prefix.size()) != std::string::npos)) {
      refuse("there is no such table: name=" + entry.table, entry.line,
             "a table is a profile: [profile.NAME]");
    }
    const CommonOption* const option = find_common_option(entry.key);
    if (option == nullptr || !option->has_default)
      refuse("there is no such key: key=" + entry.key, entry.line, "the keys are " + join_keys());
    const bool is_flag = option->kind == CommonOption::Kind::flag;
    if (is_flag != (entry.kind == ConfigEntry::Kind::boolean)) {
      refuse("the value has the wrong type: key=" + entry.key, entry.line,
             is_flag ? "give true or false, without quotes" : "give a text in quotes");
    }
    if (option->kind == CommonOption::Kind::text && entry.kind != ConfigEntry::Kind::string)
      refuse("the value has the wrong type: key=" + entry.key, entry.line, "give a text in quotes");
  }
}

class Configuration {
 public:
  // Reads `path` alone or, if it is empty, the files of user and system.
  explicit Configuration(const std::string& path) {
    if (!path.empty()) {
      add(path);
      if (files_.empty()) {
        throw Failure(ExitCode::usage, "there is no configuration file: path=" + path,
                      "correct the path in --config or WHYCACHE_CONFIG");
      }
      return;
    }
    // A home that this user may not enter is that of another one, as after `runuser`.
    const std::string user_path = user_config_path();
    const bool exists =
        !user_path.empty() && ::faccessat(AT_FDCWD, user_path.c_str(), F_OK, AT_EACCESS) == 0;
    if (exists) add(user_path);
    add(system_config_path);
  }

  // Returns the value, with where it is from. Each file is asked for its profile first.
  std::optional<std::pair<std::string, std::string>> find(const std::string& profile,
                                                          std::string_view key) const {
    if (!profile.empty()) {
      if (auto found = find_in_table(std::string(profile_prefix) + profile, key)) return found;
      // The log of a profile and the state of another log must not meet.
      if (key == "log" || key == "state") return std::nullopt;
    }
    return find_in_table({}, key);
  }

  std::optional<std::pair<std::string, std::string>> find_in_table(const std::string& table,
                                                                   std::string_view key) const {
    for (const ConfigFile& file : files_) {
      if (const ConfigEntry* const entry = file.find(table, key)) {
        return std::pair(entry->value,
                         fmt::format("{} line {}: {}", file.path(), entry->line, entry->key));
      }
    }
    return std::nullopt;
  }

  void require_profile(const std::string& profile, const std::string& source) const {
    std::vector<std::string> names;
    for (const ConfigFile& file : files_) {
      for (const std::string& table : file.tables()) {
        if (!table.starts_with(profile_prefix)) continue;
        names.push_back(table.substr(profile_prefix.size()));
        if (names.back() == profile) return;
      }
    }
    std::string paths = system_config_path;
    if (!files_.empty()) paths = files_.front().path();
    throw Failure(
        ExitCode::usage, fmt::format("there is no such profile: name={} ({})", profile, source),
        names.empty() ? fmt::format("add [profile.{}] with log = \"URL\" to {}", profile, paths)
                      : fmt::format("the profiles are {}", fmt::join(names, ", ")));
  }

 private:
  void add(const std::string& path) {
    std::optional<ConfigFile> file = ConfigFile::read(path);
    if (!file) return;
    check_entries(*file);
    files_.push_back(*std::move(file));
  }

  std::vector<ConfigFile> files_;
};

// Returns "true" or "false", or nullopt if the text is neither.
std::optional<std::string> parse_boolean(std::string text) {
  std::transform(text.begin(), text.end(), text.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  for (const std::string_view yes : {"1", "true", "yes", "on"}) {
    if (text == yes) return "true";
  }
  for (const std::string_view no : {"0", "false", "no", "off"}) {
    if (text == no) return "false";
  }
  return std::nullopt;
}

void set_option(CLI::Option& option, const CommonOption& common, std::string value,
                const std::string& source) {
  if (common.kind == CommonOption::Kind::flag) {
    const std::optional<std::string> parsed = parse_boolean(value);
    if (!parsed) {
      throw Failure(ExitCode::usage, "the value is no truth value: source=\"" + source + '"',
                    "give 1 or 0");
    }
    if (*parsed == "false") return;
    value = *parsed;
  }
  try {
    option.add_result(value);
    option.run_callback();
  } catch (const CLI::ParseError& error) {
    throw Failure(ExitCode::usage, fmt::format("{} (from {})", error.what(), source),
                  "correct it there, or override it by --" + std::string(common.name));
  }
}

bool names_memory_log(std::string_view url) { return without_tier(url).starts_with("memory:"); }

}  // namespace

bool is_common_option(std::string_view name) { return find_common_option(name) != nullptr; }

std::string environment_name(const std::string& option) {
  std::string name = "WHYCACHE_" + option;
  std::transform(name.begin(), name.end(), name.begin(), [](unsigned char c) {
    return c == '-' ? '_' : static_cast<char>(std::toupper(c));
  });
  return name;
}

std::vector<std::string> move_options_behind_command(std::vector<std::string> arguments) {
  std::size_t command = 0;
  while (command < arguments.size() && arguments[command].starts_with("-")) {
    const std::string& argument = arguments[command];
    if (argument == "--help" || argument == "-h" || argument == "--version") break;
    const CommonOption* const option = common_option_of(argument);
    if (option == nullptr) {
      throw Failure(ExitCode::usage, "not an option of all commands: option=" + argument,
                    "give the command first: `whycache COMMAND " + argument + "`");
    }
    const bool takes_next =
        option->kind != CommonOption::Kind::flag && argument.find('=') == std::string::npos;
    command += takes_next ? 2 : 1;
  }
  if (command >= arguments.size())
    throw Failure(ExitCode::usage, "no command is given", "`whycache --help` lists them");
  const auto begin = arguments.begin();
  const auto at = begin + static_cast<std::ptrdiff_t>(command);
  std::rotate(begin, at, at + 1);
  return arguments;
}

void add_missing_common_options(CLI::App& parser) {
  constexpr const char* hidden = "";
  for (const CommonOption& option : common_options) {
    const std::string name = "--" + std::string(option.name);
    if (parser.get_option_no_throw(name) != nullptr) continue;
    const std::string names =
        option.short_name.empty() ? name : std::string(option.short_name) + "," + name;
    CLI::Option* const added =
        option.kind == CommonOption::Kind::flag ? parser.add_flag(names) : parser.add_option(names);
    added->group(hidden);
  }
}

void apply_environment_and_configuration(CLI::App& parser) {
  // A command without a cache has no use for the configuration, and works if that is wrong.
  const bool uses_cache = !parser.get_option("--log")->get_group().empty();
  const std::optional<std::string> chosen = given_value(parser, "profile");
  const std::string profile =
      chosen ? *chosen : read_environment("profile").value_or(std::string());
  std::optional<Configuration> configuration;
  if (uses_cache) {
    std::optional<std::string> path = given_value(parser, "config");
    if (!path) path = read_environment("config");
    configuration.emplace(path.value_or(std::string()));
    if (!profile.empty()) {
      configuration->require_profile(profile,
                                     chosen ? "--profile" : "from " + environment_name("profile"));
    }
  }
  for (const CommonOption& common : common_options) {
    if (!common.has_default) continue;
    const std::string name(common.name);
    CLI::Option& option = *parser.get_option("--" + name);
    if (option.count() > 0) continue;
    // A log in memory has a temporary state, unless the flag names another path.
    if (name == "state" && names_memory_log(given_value(parser, "log").value_or(std::string())))
      continue;
    std::optional<std::pair<std::string, std::string>> found;
    // A profile that the user names here and now overrides the environment.
    if (chosen && configuration)
      found = configuration->find_in_table(std::string(profile_prefix) + profile, name);
    const bool is_of_profile = chosen && (name == "log" || name == "state");
    // The library reads this variable, too.
    if (is_of_profile && name == "state" && !found) ::unsetenv(environment_name(name).c_str());
    if (!found && !is_of_profile) {
      if (const std::optional<std::string> value = read_environment(name))
        found.emplace(*value, environment_name(name));
    }
    if (!found && configuration) found = configuration->find(profile, name);
    if (found) set_option(option, common, found->first, found->second);
  }
}

}  // namespace whycache::cli
