// whycache doctor
#include <fmt/format.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/call_limit.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/url.h"
#include "cli/command.h"
#include "cli/escape.h"
#include "cli/format.h"
#include "cli/position.h"
#include "cli/server_checks.h"
#include "cli/system_checks.h"
#include "cli/target.h"
#include "client/state_links.h"
#include "log/tiered_log.h"
#include "state/file/other_format.h"
#include "state/inspect.h"
#include "update/update.h"

#if WHYCACHE_WITH_SQLITE
#include <sqlite3.h>

#include "log/sqlite_log.h"
#endif

namespace whycache::cli {
namespace {

// How long to wait for each server.
constexpr std::chrono::seconds server_wait_max{3};

struct DoctorArguments {
  Target target;
  bool json = false;
};

// The facts that other checks compare with the log. `info` is nullopt if no state is usable.
struct StateFile {
  std::string path;
  std::optional<StateInfo> info;
  std::uint64_t bytes = 0;
};

Finding check_state_file(const Target& target, StateFile& state) {
  const std::string& path = state.path;
  struct stat status;
  if (::lstat(path.c_str(), &status) != 0) {
    if (errno == ENOENT) {
      if (const std::optional<std::string> other = find_state_of_other_format(path))
        return Finding::ok("state", *other);
      return Finding::ok("state", "does not exist yet, will be created: " + path);
    }
    const Error error = system_error("cannot examine state file", path, errno);
    return Finding::bad("state", error.what(), next_step(error), exit_code_of(error));
  }
  try {
    const StateSource source = StateSource::open_file(path, target);
    state.info = source.state().info();
    state.bytes = static_cast<std::uint64_t>(status.st_size);
    return Finding::ok(
        "state", fmt::format("{} at update {}, {}, mode {:04o}: {}",
                             format_count(state.info->item_count, "item"), state.info->applied_id,
                             format_bytes(state.bytes), status.st_mode & 07777, path));
  } catch (const Error& error) {
    return Finding::bad("state", error.what(), next_step(error), exit_code_of(error));
  } catch (const Failure& failure) {
    return Finding::warn("state", failure.what(), "none needed: it will be rebuilt from the log");
  }
}

// A rebuild makes a second state beside the old one, and needs some room to grow.
Finding check_room_for_rebuild(const StateFile& state) {
  struct statvfs status;
  if (::statvfs(state.path.c_str(), &status) != 0) {
    const Error error = system_error("cannot examine file system", state.path, errno);
    return Finding::warn("room to rebuild", error.what(), next_step(error));
  }
  const std::uint64_t free = std::uint64_t{status.f_bavail} * status.f_frsize;
  const std::string found =
      fmt::format("state {}, {} free", format_bytes(state.bytes), format_bytes(free));
  if (state.bytes <= free / 2) return Finding::ok("room to rebuild", found);
  return Finding::warn("room to rebuild", found,
                       "free space, or move the state with --state: a rebuild needs a second state "
                       "beside it");
}

// Other names of the log, or other states of it, in the directory of the state.
Finding check_names(const StateFile& state, const StateLocation& location) {
  if (location.is_alias()) {
    return Finding::warn(
        "names",
        fmt::format("this log has two names: its state was made as {}, and {} leads to it",
                    state.info->log_name, location.name_path),
        "use one URL in all programs of this machine, the one of `whycache status`");
  }
  std::vector<std::string> others;
  std::error_code error;
  const auto entries = std::filesystem::directory_iterator(parent_directory(state.path), error);
  if (error) return Finding::ok("names", "unknown: " + error.message());
  for (const auto& entry : entries) {
    const std::string path = entry.path().string();
    if (!path.ends_with(".state") || std::filesystem::equivalent(path, state.path, error)) {
      if (entry.is_symlink(error) && path.ends_with(".state")) others.push_back(path);
      continue;
    }
    const std::optional<LogIdentity> log = find_log_of_state(path);
    if (log && log->uuid == state.info->log_uuid) others.push_back(path);
  }
  if (others.empty()) return Finding::ok("names", "this log has one name here");
  return Finding::warn("names",
                       fmt::format("this log has other names here: {}", fmt::join(others, ", ")),
                       "use one URL in all programs of this machine, then delete these files");
}

std::string describe(const ProcessInfo& process) {
  return process.process_name.empty()
             ? fmt::format("process {}", process.process_id)
             : fmt::format("process {} ({})", process.process_id, process.process_name);
}

// Returns how long the oldest view has kept space: since the update after the one it shows was
// written; nullopt if the log does not say.
std::optional<std::chrono::microseconds> age_of_view(Log* log, UpdateId pinned_id) {
  std::optional<std::chrono::microseconds> age;
  if (log == nullptr) return age;
  try {
    log->read(pinned_id + 1, pinned_id + 1, [&](UpdateId, std::string_view bytes) {
      Update update;
      decode_update(bytes, update);
      age = std::chrono::microseconds(wall_time_us() - update.authorship.time_us);
      return false;
    });
  } catch (const Error&) {  // the check of the log reports it
  }
  return age;
}

Finding check_views(const StateFile& state, Log* log) {
  constexpr auto age_max = std::chrono::minutes(10);
  constexpr UpdateId updates_max = 10'000;
  const StateInspection inspection = inspect_unchanged(state.path);
  const ProcessInfo* oldest = nullptr;
  for (const ProcessInfo& process : inspection.processes) {
    if (process.oldest_pinned_id &&
        (oldest == nullptr || *process.oldest_pinned_id < *oldest->oldest_pinned_id))
      oldest = &process;
  }
  if (oldest == nullptr || *oldest->oldest_pinned_id >= state.info->applied_id)
    return Finding::ok("views", "none holds an older update");
  const UpdateId pinned_id = *oldest->oldest_pinned_id;
  const auto age = age_of_view(log, pinned_id);
  std::string found =
      fmt::format("{} holds a view of update {}, {} updates ago", describe(*oldest), pinned_id,
                  format_with_commas(state.info->applied_id - pinned_id));
  if (age) found += ", for " + format_duration(*age);
  if (age ? *age <= age_max : state.info->applied_id - pinned_id <= updates_max)
    return Finding::ok("views", found);
  return Finding::warn("views", found,
                       "end the view in that program, or restart it: space of overwritten values "
                       "is not reused meanwhile");
}

// Byte 18 of the header is 1 for a rollback journal and 2 for a write-ahead log.
bool is_in_wal_mode(const std::string& sqlite_file) {
  std::ifstream file(sqlite_file, std::ios::binary);
  char header[20] = {};
  file.read(header, sizeof header);
  return file.gcount() == sizeof header && header[18] == 2;
}

Finding check_sqlite([[maybe_unused]] const std::string& log_url) {
#if WHYCACHE_WITH_SQLITE
  const std::string version = ::sqlite3_libversion();
  if (!has_wal_reset_bug(::sqlite3_libversion_number())) return Finding::ok("sqlite", version);
  std::string file;
  try {
    const Url url(log_url);
    if (url.scheme() == "sqlite") file = url.file_path();
  } catch (const Error&) {
    // There is no URL, or a wrong one, which check_log_answers() reports.
  }
  if (!file.empty() && is_in_wal_mode(file)) {
    return Finding::bad(
        "sqlite",
        fmt::format("{} can damage files in WAL mode, and this file uses it: {}", version, file),
        "stop all users, then run sqlite3 FILE 'PRAGMA journal_mode=PERSIST', or use SQLite 3.51.3 "
        "or later",
        ExitCode::corrupt);
  }
  return Finding::ok(
      "sqlite",
      version + ": can damage files in WAL mode; whycache uses a rollback journal instead");
#else
  return Finding::ok("sqlite", "not compiled in: no sqlite: logs");
#endif
}

// The next step for an error of the log, which names none that leads back to this command.
std::string next_step_for_log(const Error& error) {
  const bool has_cause = std::string_view(error.what()).ends_with(')') || error.system_error() != 0;
  if (error.kind() != ErrorKind::unavailable || has_cause) return next_step(error);
  return "see whether its server runs and whether the network lets this machine reach it, or "
         "correct the address in the url";
}

Finding check_log_answers(const Target& target, const Deadline& deadline, std::unique_ptr<Log>& log,
                          Extent& extent) {
  const CallLimit limit(deadline);
  const auto begin = std::chrono::steady_clock::now();
  try {
    log = open_log(target);
    extent = log->extent();
    return Finding::ok("log", fmt::format("answers in {}: base {}, head {}: {}",
                                          format_duration(std::chrono::steady_clock::now() - begin),
                                          extent.base, extent.head, log->name()));
  } catch (const Error& error) {
    log.reset();
    return Finding::bad("log", error.what(), next_step_for_log(error), exit_code_of(error));
  } catch (const Failure& failure) {
    log.reset();
    return Finding::bad("log", failure.what(), failure.next_step(), failure.code());
  }
}

Finding check_position(const StateFile& state, const Extent& extent, const std::string& name) {
  if (std::optional<PositionProblem> problem =
          find_position_problem(*state.info, state.path, extent, name))
    return Finding::bad("position", problem->found, problem->next_step, ExitCode::corrupt);
  return Finding::ok("position",
                     fmt::format("applied id {}, head {}", state.info->applied_id, extent.head));
}

std::string find_state_path(const Target& target, std::vector<Finding>& findings) {
  try {
    return state_path(target);
  } catch (const Error& error) {
    findings.push_back(Finding::bad("state", error.what(), next_step(error), exit_code_of(error)));
    return {};
  }
}

const char* severity_name(Finding::Severity severity) {
  switch (severity) {
    case Finding::Severity::ok: return "ok";
    case Finding::Severity::warn: return "warn";
    case Finding::Severity::bad: return "bad";
  }
  return "";
}

// Green, yellow or red, if standard output is a terminal and NO_COLOR is not set.
std::string colored_severity_name(Finding::Severity severity) {
  const char* const no_color = std::getenv("NO_COLOR");
  std::string padded = fmt::format("{:<5}", severity_name(severity));
  if (!Output::is_terminal() || (no_color != nullptr && *no_color != '\0')) return padded;
  const char* const color = severity == Finding::Severity::ok     ? "32"
                            : severity == Finding::Severity::warn ? "33"
                                                                  : "31";
  return fmt::format("\x1b[{}m{}\x1b[0m", color, padded);
}

void print(const Finding& finding, bool json, Output& output) {
  if (json) {
    Json object{{"check", finding.check}, {"level", severity_name(finding.severity)}};
    put_bytes(object, "found", finding.found);
    if (!finding.next_step.empty()) put_bytes(object, "next", finding.next_step);
    output.write_json(object);
    return;
  }
  output.write_line(fmt::format("{} {:<15} {}", colored_severity_name(finding.severity),
                                finding.check, escape(finding.found)));
  if (!finding.next_step.empty())
    output.write_line(fmt::format("      {:<15} next: {}", "", escape(finding.next_step)));
}

void check_cache(const Target& target, std::vector<Finding>& findings) {
  StateFile state{find_state_path(target, findings), {}, 0};
  if (!state.path.empty()) {
    const std::vector<Finding> directory_findings = check_directory(parent_directory(state.path));
    findings.insert(findings.end(), directory_findings.begin(), directory_findings.end());
    findings.push_back(check_state_file(target, state));
  }
  findings.push_back(check_sqlite(log_url(target)));
  std::unique_ptr<Log> log;
  Extent extent;
  if (names_a_log(target)) {
    const Deadline deadline(target.deadline());
    findings.push_back(check_log_answers(target, deadline, log, extent));
    const std::vector<Finding> servers = check_servers(
        log_url(target), log ? tiered_item_prefix(extent, log->name()) : "",
        {.server_max = std::min<std::chrono::milliseconds>(target.deadline(), server_wait_max),
         .failed_database = log ? std::nullopt : std::optional(deadline)});
    findings.insert(findings.end(), servers.begin(), servers.end());
  }
  if (!state.info) return;
  if (log) findings.push_back(check_position(state, extent, log->name()));
  findings.push_back(check_room_for_rebuild(state));
  try {
    findings.push_back(check_views(state, log.get()));
    findings.push_back(check_names(state, state_location(target, MissingDirectory::leave)));
  } catch (const Error& error) {  // the state was replaced or damaged meanwhile
    findings.push_back(Finding::warn("views", error.what(), "run the command again"));
  }
}

ExitCode doctor(const DoctorArguments& arguments, Output& output) {
  std::vector<Finding> findings = check_system(Options{}.state_bytes_max);
  check_cache(arguments.target, findings);
  ExitCode code = ExitCode::done;
  for (const Finding& finding : findings) {
    print(finding, arguments.json, output);
    if (finding.severity == Finding::Severity::bad && code == ExitCode::done) code = finding.code;
  }
  return code;
}

CommandAction prepare_doctor(CLI::App& parser) {
  const auto arguments = std::make_shared<DoctorArguments>();
  add_json_option(parser, arguments->json);
  add_target_options(parser, arguments->target);
  return [arguments](Output& output) { return doctor(*arguments, output); };
}

}  // namespace

const Command doctor_command{
    "doctor", "problems in the environment of a cache",
    R"(Checks everything that a cache depends on: kernel, limits, clocks and memory; the directory
of the state, with its file system, free space and permissions, and a probe file for mappings and
locks; the state, with room to rebuild it, views that are held for long, and other names of its log;
the versions of libraries with known faults; the log, if one is named, with its server, replica,
memcached and Redis, their clocks and certificates, and the files of passwords and keys. Each
finding is ok, warn or bad; warn and bad come with a next step.)",
    R"(Examples:
  whycache doctor                                    before anything is set up
  whycache doctor --state /mnt/data/flags.state --log sqlite:///mnt/data/flags.db
  whycache doctor --json | jq -c 'select(.level != "ok")'

JSON: check, level (ok, warn, bad), found, next

Exit codes: 0 nothing is bad, else the exit code that the first bad finding would cause: 2, 3, 5, 7
  or 9)",
    prepare_doctor};

}  // namespace whycache::cli
