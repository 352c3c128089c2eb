// The options that every command accepts, before or after its name. Each is a flag of the command
// line, an environment variable and a key of the configuration file: --state-mode is
// WHYCACHE_STATE_MODE and state-mode. The first of these that is given counts:
//
//   the flag; the profile that --profile names; the environment; the profile that WHYCACHE_PROFILE
//   names; the configuration file of the user; that of the system
//
// A setuid program ignores the environment, as the library does for the path of its state.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "cli/command.h"

namespace whycache::cli {

// Moves common options that precede the command behind it: {"--log", "x", "get", "a"} becomes
// {"get", "--log", "x", "a"}. Throws Failure for other options there.
std::vector<std::string> move_options_behind_command(std::vector<std::string> arguments);

// Adds the common options that the command has not, so that it accepts them; they have no effect.
void add_missing_common_options(CLI::App& parser);

// Sets the common options that the command line did not give. Throws Failure for a wrong value,
// which names where it is from.
void apply_environment_and_configuration(CLI::App& parser);

// Whether --NAME is a common option.
bool is_common_option(std::string_view name);

// Returns the name of the environment variable of a common option.
std::string environment_name(const std::string& option);

}  // namespace whycache::cli
