// whycache doctor
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <chrono>
#include <cstdlib>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "base/file.h"
#include "base/url.h"
#include "cli/command.h"
#include "cli/escape.h"
#include "cli/format.h"
#include "cli/system_checks.h"
#include "cli/target.h"

#if WHYCACHE_WITH_SQLITE
#include <sqlite3.h>

#include "log/sqlite_log.h"
#endif

namespace whycache::cli {
namespace {

struct DoctorArguments {
  Target target;
  bool json = false;
};

Finding check_state_file(const Target& target, const std::string& path) {
  struct stat status;
  if (::lstat(path.c_str(), &status) != 0) {
    if (errno == ENOENT)
      return Finding::ok("state", "does not exist yet, will be created: " + path);
    const Error error = system_error("cannot examine state file", path, errno);
    return Finding::bad("state", error.what(), next_step(error), exit_code_of(error));
  }
  try {
    const StateSource source = StateSource::open_file(path, target);
    const StateInfo info = source.state().info();
    return Finding::ok("state",
                       fmt::format("{} items at update {}, {}, mode {:04o}: {}",
                                   format_with_commas(info.item_count), info.applied_id,
                                   format_bytes(static_cast<std::uint64_t>(status.st_size)),
                                   status.st_mode & 07777, path));
  } catch (const Error& error) {
    return Finding::bad("state", error.what(), next_step(error), exit_code_of(error));
  } catch (const Failure& failure) {
    return Finding::warn("state", failure.what(), "none needed: it will be rebuilt from the log");
  }
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

Finding check_log_answers(const Target& target) {
  const auto begin = std::chrono::steady_clock::now();
  try {
    const auto log = open_log(target);
    const Extent extent = log->extent();
    return Finding::ok("log", fmt::format("answers in {}: base {}, head {}: {}",
                                          format_duration(std::chrono::steady_clock::now() - begin),
                                          extent.base, extent.head, log->name()));
  } catch (const Error& error) {
    return Finding::bad("log", error.what(), next_step(error), exit_code_of(error));
  }
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

ExitCode doctor(const DoctorArguments& arguments, Output& output) {
  std::vector<Finding> findings = check_system(Options{}.state_bytes_max);
  const std::string path = find_state_path(arguments.target, findings);
  if (!path.empty()) {
    const std::vector<Finding> directory_findings = check_directory(parent_directory(path));
    findings.insert(findings.end(), directory_findings.begin(), directory_findings.end());
    findings.push_back(check_state_file(arguments.target, path));
  }
  findings.push_back(check_sqlite(log_url(arguments.target)));
  if (names_a_log(arguments.target)) findings.push_back(check_log_answers(arguments.target));

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
locks; the state; the versions of libraries with known faults; and the log, if one is named. Each
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
