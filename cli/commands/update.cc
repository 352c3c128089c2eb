// whycache update
#include <CLI/CLI.hpp>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/target.h"

namespace whycache::cli {
namespace {

struct UpdateArguments {
  Target target;
  UpdateId at_least = 0;
  std::optional<std::chrono::nanoseconds> staleness_max;
  bool json = false;
};

ExitCode update(const UpdateArguments& arguments, Output& output) {
  const Deadline deadline(arguments.target.deadline());
  const auto cache = open_cache_with_log(arguments.target);
  UpdateOptions options;
  options.deadline = time_left(arguments.target, deadline);
  options.at_least = arguments.at_least;
  if (arguments.staleness_max) options.staleness_max = *arguments.staleness_max;
  UpdateId id = 0;
  try {
    id = cache->update(options);
  } catch (const Error& error) {
    // The log may have answered that the update does not exist yet.
    if (error.kind() != ErrorKind::unavailable || arguments.at_least == 0) throw;
    throw Failure(ExitCode::stale, error.what(),
                  "update " + std::to_string(arguments.at_least) +
                      " is not applied: wait longer with --deadline, or see `whycache status`");
  }
  if (arguments.json) {
    output.write_json(Json{{"applied_id", id}});
  } else {
    output.write_line(std::to_string(id));
  }
  return ExitCode::done;
}

CommandAction prepare_update(CLI::App& parser) {
  const auto arguments = std::make_shared<UpdateArguments>();
  parser
      .add_option("--at-least", arguments->at_least,
                  "poll until this update is applied; exit 4 at the deadline")
      ->type_name("ID");
  add_duration_option(parser, "--staleness-max", arguments->staleness_max,
                      "do nothing if this machine contacted the log within DURATION");
  add_json_option(parser, arguments->json);
  add_accept_replaced_log_option(parser, arguments->target);
  add_target_options(parser, arguments->target);
  return [arguments](Output& output) { return update(*arguments, output); };
}

}  // namespace

const Command update_command{
    "update", "apply new updates from the log to this machine's state",
    R"(Applies the updates in the log that follow the applied id, and prints the new applied id. All
processes of this machine see them.)",
    R"(Examples:
  whycache update
  id=$(whycache set a 1)                             on one machine
  whycache update --at-least $id --deadline 30s      on another: returns once it has that update

Exit codes: 0 done, 3 the log did not answer, 4 --at-least was not reached in time,
  5 the log is damaged, or empty in place of one that was applied (the state keeps its applied id),
  6 a process held a lock of the log until the deadline, 7 permission, 9 the disk is full)",
    prepare_update};

}  // namespace whycache::cli
