// The command line of whycache: finds the command, parses its options, runs it, and turns an
// exception into a message and an exit code.
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
    R"(whycache - a cache that processes share in memory, and machines share through a log

Usage: whycache COMMAND [OPTIONS] ...
       whycache COMMAND --help                 describes a command, with examples
)";

constexpr const char* overview_end = R"(
Which cache:
  --log URL      or WHYCACHE_LOG    the log, which stores writes: sqlite:///var/lib/flags.db,
                                    file:///var/lib/flags, mysql://user@host/database
  --state PATH   or WHYCACHE_STATE  this machine's state, which serves reads; has a default

First steps:
  export WHYCACHE_LOG=sqlite:///$HOME/try.db
  whycache set greeting hello
  whycache get greeting

Data goes to standard output, messages to standard error. - is standard input. Options come after
the command; -- ends them, for keys and values that begin with a dash.

Exit codes:
  0 done              4 staler than requested     8 refused without --yes
  1 not found         5 corrupt, or another log   9 limit reached, or output not written
  2 usage             6 conflict                 70 bug
  3 log unreachable   7 permission
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

// Adds KEY... to the usage line of CLI11: it does not know that extra arguments are keys.
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

// Splits "--note=" into "--note" and "", because CLI11 takes the former for an option without a
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
      output.flush();  // data printed so far precedes the message
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

// Opens standard descriptors that are closed. Otherwise a file that the library opens could become
// standard output.
void occupy_standard_descriptors() {
  for (int descriptor = STDIN_FILENO; descriptor <= STDERR_FILENO; ++descriptor) {
    if (::fcntl(descriptor, F_GETFD) >= 0) continue;
    // In the wrong direction, so that using it is an error.
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
  // A broken connection to a log must be an error, not a signal. Output raises SIGPIPE itself if
  // standard output is a closed pipe.
  ::signal(SIGPIPE, SIG_IGN);
  return static_cast<int>(run_and_report_errors({arguments + 1, arguments + argument_count}));
}
