// The tree of commands: the groups of `whycache --help`, and the parser of each command. Help,
// completions and man pages are made from it.
#pragma once

#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "cli/command.h"

namespace CLI {
class App;
class Option;
}  // namespace CLI

namespace whycache::cli {

struct CommandGroup {
  const char* title;
  std::vector<const Command*> commands;
};

std::span<const CommandGroup> command_groups();
// Returns null if there is no such command.
const Command* find_command(std::string_view name);
// Returns the name of a command that the user may have meant: other programs call it `name`, or it
// is spelled like it. Empty if there is none.
std::string similar_command(std::string_view name);

// A command with its parser, which has the command's options and the common ones.
struct PreparedCommand {
  std::shared_ptr<CLI::App> parser;
  CommandAction run;
};
PreparedCommand prepare(const Command& command);

// Returns the options that help and completion show, without --help.
std::vector<const CLI::Option*> shown_options(const CLI::App& parser);

// The parts of `whycache --help` before and after the list of commands.
extern const char* const overview_begin;
extern const char* const overview_end;
// Returns the list of commands, by group.
std::string command_overview();

}  // namespace whycache::cli
