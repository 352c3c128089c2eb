// The command line of whycache: finds the command, parses its options, runs it, and turns an
// exception into a message and an exit code.
#include <CLI/CLI.hpp>

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <unistd.h>

#include <cstdio>
#include <new>
#include <string>
#include <vector>

#include "base/background_call.h"
#include "cli/command_tree.h"
#include "cli/common_options.h"
#include "cli/spellings.h"

namespace whycache::cli {
namespace {

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
  const PreparedCommand prepared = prepare(command);
  CLI::App& parser = *prepared.parser;
  ExitCode code = ExitCode::done;
  try {
    arguments = split_empty_values(std::move(arguments));
    parser.parse(std::vector<std::string>(arguments.rbegin(), arguments.rend()));
    apply_environment_and_configuration(parser);
    try {
      code = prepared.run(output);
    } catch (...) {
      output.flush();  // data printed so far precedes the message
      throw;
    }
  } catch (const CLI::CallForHelp&) {
    output.write(parser.help());
  } catch (const CLI::ParseError& error) {
    const std::string usage = similar_usage(command.name, arguments);
    throw Failure(ExitCode::usage, error.what(),
                  !usage.empty()
                      ? usage
                      : std::string("`whycache ") + command.name +
                            " --help`; put -- before keys and values that begin with a dash");
  }
  output.close();
  return code;
}

[[noreturn]] void refuse_command(const std::string& name) {
  const std::string similar = similar_command(name);
  throw Failure(ExitCode::usage, "there is no such command: name=" + name,
                similar.empty()
                    ? "`whycache --help` lists them"
                    : fmt::format("`whycache {} --help` describes the one that may be meant; "
                                  "`whycache --help` lists all",
                                  similar));
}

ExitCode run_program(std::vector<std::string> arguments) {
  arguments = move_options_behind_command(std::move(arguments));
  const std::string& first = arguments[0];
  const bool asks_for_overview = first == "help" && arguments.size() == 1;
  if (first == "--help" || first == "-h" || asks_for_overview) {
    Output output;
    output.write(overview_begin + command_overview() + overview_end);
    output.close();
    return ExitCode::done;
  }
  std::vector<std::string> rest(arguments.begin() + 1, arguments.end());
  if (first == "--version") return run_command(version_command, std::move(rest));
  if (first == "help") {
    const Command* command = find_command(rest[0]);
    if (command == nullptr) refuse_command(rest[0]);
    return run_command(*command, {"--help"});
  }
  const Command* command = find_command(first);
  if (command != nullptr) return run_command(*command, std::move(rest));
  refuse_command(first);
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
  const ExitCode code = run_and_report_errors({arguments + 1, arguments + argument_count});
  if (whycache::BackgroundThreads::are_running()) {
    // One of them waits for a server that does not answer, and exit() would wait for the thread.
    std::fflush(nullptr);
    ::_exit(static_cast<int>(code));
  }
  return static_cast<int>(code);
}
