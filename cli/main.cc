// whycache, the command line: finds the command, reads its options, runs it, and turns what it
// throws into a message and an exit code.
#include <CLI/CLI.hpp>

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <array>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "cli/command.h"

namespace whycache::cli {
namespace {

struct CommandGroup {
  const char* title;
  std::vector<const Command*> commands;
};

const std::array command_groups = {
    CommandGroup{"Read",
                 {&get_command, &mget_command, &scan_command, &keys_command, &count_command}},
    CommandGroup{"Write", {&set_command, &del_command, &import_command}},
    CommandGroup{"Follow", {&update_command, &follow_command, &status_command}},
    CommandGroup{
        "Look inside",
        {&log_command, &inspect_command, &check_command, &doctor_command, &version_command}},
    CommandGroup{"Give up history", {&rewrite_command, &clear_command}},
};

const Command* find_command(const std::string& name) {
  for (const CommandGroup& group : command_groups) {
    for (const Command* command : group.commands) {
      if (name == command->name) return command;
    }
  }
  return nullptr;
}

constexpr const char* overview_begin =
    R"(whycache - a cache that all processes of a machine share in memory, and all machines share through a log

Usage: whycache COMMAND [OPTIONS] ...          whycache COMMAND --help says what it does, with examples
)";

constexpr const char* overview_end = R"(
Which cache:
  --log URL      or WHYCACHE_LOG    the log, where writes go: sqlite:///var/lib/flags.db, file:///var/lib/flags,
                                    mysql://user@host/database
  --state PATH   or WHYCACHE_STATE  this machine's state, where reads come from; has a default
  --name NAME    or WHYCACHE_NAME   names the state file in its folder

Begin:
  export WHYCACHE_LOG=sqlite:///$HOME/try.db
  whycache set greeting hello
  whycache get greeting

Data goes to standard output, everything else to standard error. - is standard input. Options come after the
command; -- ends them, for keys and values that begin with a dash.

Exit codes:
  0 done              3 log unreachable           6 conflict               9 limit reached, output not written
  1 not found         4 staler than asked         7 permission            70 bug
  2 usage             5 corrupt, or another log   8 refused without --yes
)";

std::string overview() {
  std::string text = overview_begin;
  for (const CommandGroup& group : command_groups) {
    text += fmt::format("\n{}:\n", group.title);
    for (const Command* command : group.commands)
      text += fmt::format("  {:<10}{}\n", command->name, command->summary);
  }
  return text + overview_end;
}

// Help as CLI11 lays it out, with what it cannot know: that what is left over are keys.
class HelpFormatter : public CLI::Formatter {
 public:
  std::string make_usage(const CLI::App* app, std::string) const override {
    std::string text = "\nUsage: " + app->get_name() + " [OPTIONS]";
    for (const CLI::Option* option : app->get_options()) {
      if (option->get_positional()) text += " " + make_option_usage(option);
    }
    if (app->get_allow_extras()) text += " [KEY...]";
    return text + "\n";
  }
};

// "--note=" and "--note" "" are the same, but CLI11 takes the first for an option without its
// value.
std::vector<std::string> split_empty_values(std::vector<std::string> arguments) {
  std::vector<std::string> split;
  bool options_ended = false;
  for (std::string& argument : arguments) {
    options_ended = options_ended || argument == "--";
    if (!options_ended && argument.starts_with("--") && argument.find('=') == argument.size() - 1) {
      argument.pop_back();
      split.push_back(std::move(argument));
      split.emplace_back();
    } else {
      split.push_back(std::move(argument));
    }
  }
  return split;
}

ExitCode run_command(const Command& command, std::vector<std::string> arguments) {
  Output output;
  CLI::App parser(std::string(command.help), std::string("whycache ") + command.name);
  parser.formatter(std::make_shared<HelpFormatter>());
  parser.get_formatter()->column_width(28);
  parser.get_formatter()->label("REQUIRED", "");
  parser.footer(command.footer);
  ExitCode code = ExitCode::done;
  try {
    const CommandAction run = command.prepare(parser);
    arguments = split_empty_values(std::move(arguments));
    parser.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
    try {
      code = run(output);
    } catch (...) {
      output.flush();  // what was found before comes first
      throw;
    }
  } catch (const CLI::CallForHelp&) {
    output.write(parser.help());
  } catch (const CLI::ParseError& error) {
    throw Failure(ExitCode::usage, error.what(),
                  std::string("`whycache ") + command.name +
                      " --help`; put -- before keys and values that begin with a dash");
  }
  output.close();
  return code;
}

ExitCode run_program(const std::vector<std::string>& arguments) {
  if (arguments.empty()) {
    throw Failure(ExitCode::usage, "no command is given", "`whycache --help` lists them");
  }
  const std::string& first = arguments[0];
  if (first == "--help" || first == "-h" || (first == "help" && arguments.size() == 1)) {
    Output output;
    output.write(overview());
    output.close();
    return ExitCode::done;
  }
  std::vector<std::string> rest(arguments.begin() + 1, arguments.end());
  if (first == "--version") return run_command(version_command, std::move(rest));
  if (first == "help") {
    const Command* command = find_command(rest[0]);
    if (command != nullptr) return run_command(*command, {"--help"});
    throw Failure(ExitCode::usage, "there is no such command: name=" + rest[0],
                  "`whycache --help` lists them");
  }
  const Command* command = find_command(first);
  if (command != nullptr) return run_command(*command, std::move(rest));
  if (first.starts_with("-")) {
    throw Failure(ExitCode::usage, "options come after the command: option=" + first,
                  "for example `whycache get --log URL KEY`");
  }
  throw Failure(ExitCode::usage, "there is no such command: name=" + first,
                "`whycache --help` lists them");
}

// A file opened by the library must not become standard output because that was closed when we
// began.
void occupy_standard_descriptors() {
  for (int descriptor = STDIN_FILENO; descriptor <= STDERR_FILENO; ++descriptor) {
    if (::fcntl(descriptor, F_GETFD) >= 0) continue;
    // The wrong way round, so that using it is an error and not silence.
    const int opened = ::open("/dev/null", descriptor == STDIN_FILENO ? O_WRONLY : O_RDONLY);
    if (opened >= 0 && opened != descriptor) ::close(opened);
  }
}

ExitCode run_and_report_errors(const std::vector<std::string>& arguments) {
  try {
    return run_program(arguments);
  } catch (const Failure& failure) {
    print_message(failure.what(), failure.next_step());
    return failure.code();
  } catch (const Error& error) {
    print_message(error.what(), next_step(error));
    return exit_code_of(error);
  } catch (const std::bad_alloc&) {
    print_message("out of memory",
                  "raise the address space limit (ulimit -v), or see `whycache doctor`");
    return ExitCode::limit;
  } catch (const std::exception& unexpected) {
    print_message(std::string("this is a bug: ") + unexpected.what(),
                  "please report it, with the command that led here");
    return ExitCode::bug;
  }
}

}  // namespace
}  // namespace whycache::cli

int main(int argument_count, char** arguments) {
  using namespace whycache::cli;
  occupy_standard_descriptors();
  // A log's connection that breaks is an error to handle; a reader of our output that left is
  // handled in output.cc.
  ::signal(SIGPIPE, SIG_IGN);
  return static_cast<int>(run_and_report_errors({arguments + 1, arguments + argument_count}));
}
