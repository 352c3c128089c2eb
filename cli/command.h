// A command of the program: its name, its help, and how to prepare it. Each command has one file in
// commands/, named after it.
#pragma once

#include <functional>

#include "cli/exit_code.h"
#include "cli/output.h"

namespace CLI {
class App;
}

namespace whycache::cli {

// Runs the command after the command line has been parsed.
using CommandAction = std::function<ExitCode(Output&)>;

struct Command {
  const char* name;
  const char* summary;  // a line in `whycache --help`
  const char* help;     // description, above the options
  const char* footer;   // examples and exit codes; below the options
  // Adds the options to the parser; the action owns them.
  CommandAction (*prepare)(CLI::App& parser);
};

extern const Command add_command;
extern const Command apply_command;
extern const Command check_command;
extern const Command clear_command;
extern const Command completion_command;
extern const Command count_command;
extern const Command del_command;
extern const Command diff_command;
extern const Command doctor_command;
extern const Command follow_command;
extern const Command get_command;
extern const Command guard_command;
extern const Command import_command;
extern const Command import_original_command;
extern const Command init_command;
extern const Command inspect_command;
extern const Command keys_command;
extern const Command log_command;
extern const Command man_command;
extern const Command mget_command;
extern const Command rebuild_command;
extern const Command rewrite_command;
extern const Command scan_command;
extern const Command set_command;
extern const Command status_command;
extern const Command update_command;
extern const Command version_command;
extern const Command watch_command;

}  // namespace whycache::cli
