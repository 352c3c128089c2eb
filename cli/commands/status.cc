// whycache status
#include <fmt/format.h>
#include <sys/stat.h>
#include <CLI/CLI.hpp>

#include <memory>
#include <nlohmann/json.hpp>

#include "base/clock.h"
#include "base/url.h"
#include "cli/command.h"
#include "cli/escape.h"
#include "cli/format.h"
#include "cli/position.h"
#include "cli/target.h"
#include "log/log_name.h"
#include "log/open_log.h"

namespace whycache::cli {
namespace {

struct StatusArguments {
  Target target;
  std::optional<std::chrono::nanoseconds> staleness_max;
  std::optional<std::uint64_t> lag_max;
  bool json = false;
};

// The state of the log, if it answers.
struct LogStatus {
  std::optional<Extent> extent;
  std::string error;  // empty unless the log failed to answer
};

LogStatus read_log_status(const Target& target) {
  if (!names_a_log(target)) return {};
  try {
    return {ask_log(target), {}};
  } catch (const Error& error) {
    return {std::nullopt, error.what()};
  } catch (const Failure& failure) {
    return {std::nullopt, failure.what()};
  }
}

struct MachineStatus {
  StateInfo info;
  std::string path;
  std::uint64_t file_bytes = 0;
  std::optional<std::chrono::nanoseconds> staleness;
  // The log was contacted, but by a process whose clock this one cannot compare with its own.
  bool has_another_clock = false;
  UpdateId head = 0;
  LogStatus log;

  // Asks the log last: it then has what is applied, unless it has lost that.
  MachineStatus(const State& state, const Target& target) {
    info = state.info();
    path = state.path();
    struct stat status;
    if (::stat(path.c_str(), &status) == 0) file_bytes = static_cast<std::uint64_t>(status.st_size);
    if (const auto polled_ns = state.last_poll_time_ns()) {
      staleness = std::chrono::nanoseconds(std::max<std::int64_t>(0, boot_time_ns() - *polled_ns));
    } else {
      has_another_clock = state.was_polled_by_another_clock();
    }
    log = read_log_status(target);
    // The log had what is applied, even if it was not polled since.
    head = log.extent ? log.extent->head : std::max(state.known_head(), info.applied_id);
  }

  bool is_of_same_log() const { return !log.extent || log.extent->uuid == info.log_uuid; }
  // How far the machine is behind what was last known of the log.
  std::uint64_t known_lag() const { return head > info.applied_id ? head - info.applied_id : 0; }
  // Nullopt: unknown, since the log was not asked or did not answer.
  std::optional<std::uint64_t> lag() const {
    return log.extent ? std::optional(known_lag()) : std::nullopt;
  }
};

Json as_json(const MachineStatus& status) {
  Json object;
  object["applied_id"] = status.info.applied_id;
  object["head"] = status.head;
  if (const std::optional<std::uint64_t> lag = status.lag()) {
    object["lag"] = *lag;
  } else {
    object["lag"] = nullptr;
  }
  object["known_lag"] = status.known_lag();
  if (status.staleness) {
    object["staleness_seconds"] = std::chrono::duration<double>(*status.staleness).count();
  } else {
    object["staleness_seconds"] = nullptr;
  }
  object["another_clock"] = status.has_another_clock;
  object["items"] = status.info.item_count;
  object["item_bytes"] = status.info.item_bytes;
  object["digest"] = to_string(status.info.digest);
  object["chain"] = format_hash(status.info.chain);
  put_bytes(object, "log", status.info.log_name);
  object["log_uuid"] = to_string(status.info.log_uuid);
  object["log_answers"] = status.log.extent.has_value();
  if (status.log.extent) {
    object["base"] = status.log.extent->base;
    object["same_log"] = status.is_of_same_log();
  } else if (!status.log.error.empty()) {
    put_bytes(object, "log_trouble", status.log.error);
  }
  put_bytes(object, "state", status.path);
  object["state_bytes"] = status.file_bytes;
  object["superseded"] = status.info.superseded;
  return object;
}

// Why the staleness is unknown.
std::string why_unknown(const MachineStatus& status) {
  return status.has_another_clock
             ? "unknown: a process in another time namespace contacted the log, by another clock"
             : "the log was not contacted since this machine started";
}

std::string format_lag(const MachineStatus& status) {
  const std::string known = format_count(status.known_lag(), "update");
  return status.lag() ? known : fmt::format("unknown, {} when the log was last contacted", known);
}

void print(const MachineStatus& status, Output& output) {
  const auto row = [&](std::string_view name, const std::string& value) {
    output.write_line(fmt::format("{:<12}{}", name, value));
  };
  const std::string staleness =
      status.staleness ? format_duration(*status.staleness) : why_unknown(status);
  row("applied id", std::to_string(status.info.applied_id));
  row("head", fmt::format("{}{}", status.head,
                          status.log.extent ? "" : "  (when the log was last contacted)"));
  row("lag", format_lag(status));
  row("staleness", staleness);
  row("items",
      fmt::format("{}  ({} of keys and values)", format_with_commas(status.info.item_count),
                  format_bytes(status.info.item_bytes)));
  row("digest", to_string(status.info.digest));
  row("chain", format_hash(status.info.chain));
  row("log", escape(status.info.log_name));
  row("log uuid", to_string(status.info.log_uuid));
  if (status.log.extent) {
    row("base", status.log.extent->base == 0 ? "0  (never rewritten)"
                                             : std::to_string(status.log.extent->base));
  } else if (!status.log.error.empty()) {
    row("log answers", "no: " + escape(status.log.error));
  }
  row("state", fmt::format("{}  ({})", escape(status.path), format_bytes(status.file_bytes)));
}

// A machine without a state exceeds every bound.
StateSource open_state_unchanged(const StatusArguments& arguments) {
  try {
    return StateSource::open_unchanged(arguments.target);
  } catch (const Failure& failure) {
    if (failure.code() != ExitCode::usage || !names_a_log(arguments.target) ||
        !(arguments.staleness_max || arguments.lag_max))
      throw;
    throw Failure(ExitCode::stale, failure.what(), failure.next_step());
  }
}

// The next step if a bound is exceeded.
std::string next_step_if_stale(const MachineStatus& status) {
  if (status.has_another_clock) {
    return "a process in another time namespace follows the log, or did: ask there, or run "
           "`whycache update` here";
  }
  return status.log.error.empty()
             ? "run `whycache update`, or keep `whycache follow` running"
             : "the log cannot be used, so nothing can follow it: `whycache doctor` says more";
}

// Why the log does not answer, as a part of a message.
std::string reason_of(const LogStatus& log) {
  return log.error.empty() ? "" : " log_trouble=\"" + log.error + '"';
}

void check_bounds(const StatusArguments& arguments, const MachineStatus& status) {
  if (arguments.staleness_max &&
      (!status.staleness || *status.staleness > *arguments.staleness_max)) {
    throw Failure(ExitCode::stale,
                  fmt::format("staler than requested: staleness={} staleness_max={}{}",
                              status.staleness ? format_duration(*status.staleness) : "unknown",
                              format_duration(*arguments.staleness_max), reason_of(status.log)),
                  next_step_if_stale(status));
  }
  if (arguments.lag_max && status.known_lag() > *arguments.lag_max) {
    throw Failure(ExitCode::stale,
                  fmt::format("further behind than requested: lag={} lag_max={}{}",
                              status.known_lag(), *arguments.lag_max, reason_of(status.log)),
                  next_step_if_stale(status));
  }
  if (arguments.lag_max && !status.lag()) {
    throw Failure(
        ExitCode::stale,
        fmt::format("the lag is unknown: lag_max={}{}", *arguments.lag_max, reason_of(status.log)),
        status.log.error.empty() ? "give --log URL, so that the log can be asked"
                                 : next_step_if_stale(status));
  }
}

ExitCode status(const StatusArguments& arguments, Output& output) {
  // A wrong URL is no log that does not answer.
  if (names_a_log(arguments.target)) parse_log_url(log_url(arguments.target), default_log_deadline);
  const StateSource source = open_state_unchanged(arguments);
  const MachineStatus status(source.state(), arguments.target);
  if (arguments.json) {
    output.write_json(as_json(status));
  } else {
    print(status, output);
  }
  output.flush();
  if (status.log.extent) {
    if (const std::optional<PositionProblem> problem = find_position_problem(
            status.info, status.path, *status.log.extent, log_name(Url(log_url(arguments.target)))))
      throw Failure(ExitCode::corrupt, problem->found, problem->next_step);
  }
  check_bounds(arguments, status);
  return ExitCode::done;
}

CommandAction prepare_status(CLI::App& parser) {
  const auto arguments = std::make_shared<StatusArguments>();
  add_duration_option(parser, "--staleness-max", arguments->staleness_max,
                      "exit 4 if the log was last contacted longer ago");
  parser
      .add_option("--lag-max", arguments->lag_max, "exit 4 if more than N updates are not applied")
      ->type_name("N");
  add_json_option(parser, arguments->json);
  add_target_options(parser, arguments->target);
  return [arguments](Output& output) { return status(*arguments, output); };
}

}  // namespace

const Command status_command{
    "status", "this machine's position in the log, and its staleness",
    R"(Prints the position of this machine's state: applied id, head of the log and the lag between
them; staleness, which is the time since a process of this machine last contacted the log; number of
items; digest and chain, which are equal on all machines with the same applied id. Changes and
creates nothing, and succeeds if the log does not answer: the lag is then unknown.)",
    R"(Examples:
  whycache status
  whycache status --staleness-max 30s --lag-max 100 > /dev/null || echo 'this machine is behind'
  whycache status --json | jq .lag
  whycache status --state /var/lib/whycache/flags.state    without contacting the log

Exit codes: 0 done, 2 the URL is wrong, or there is no state, 4 staler or further behind than the
  given bound, or that is unknown, 5 the state is damaged, of another log, or ahead of a log that
  lost updates, 7 permission)",
    prepare_status};

}  // namespace whycache::cli
