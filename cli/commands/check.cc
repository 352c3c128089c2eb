// whycache check
#include <fmt/format.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <cerrno>
#include <filesystem>
#include <memory>
#include <nlohmann/json.hpp>

#include "cli/command.h"
#include "cli/escape.h"
#include "cli/format.h"
#include "cli/log_verifier.h"
#include "cli/progress.h"
#include "cli/target.h"
#include "state/file/state_file.h"
#include "state/verify.h"

namespace whycache::cli {
namespace {

struct CheckArguments {
  Target target;
  bool json = false;
  bool quiet = false;
};

constexpr const char* rebuild_state = "state: remove the file, and it is rebuilt from the log";
constexpr const char* choose_state =
    "state: name another one with --state, or none; if its log was replaced, `whycache update` "
    "builds a new one";
constexpr const char* restore_log =
    "log: restore it, or rewrite history on a machine whose applied id is beyond the damage";

// Prints the result of each check, and keeps the worst one for the exit code.
class CheckReport {
 public:
  CheckReport(Output& output, bool json) : output_(output), json_(json) {}

  void pass(const char* check, const std::string& found) { print("ok", check, found); }
  // Reports a check that could not be made, which is no fault of the data.
  void skip(ExitCode code, const char* check, const std::string& reason) {
    print("skipped", check, reason);
    if (code_ == ExitCode::done) code_ = code;
  }
  // `next` is what to do about it; empty if `found` says that.
  void fail(const char* check, const std::string& found, const char* next) {
    print("BAD", check, found);
    code_ = ExitCode::corrupt;
    if (next_step_.find(next) != std::string::npos) return;
    next_step_ += (next_step_.empty() ? "" : ". ") + std::string(next);
  }
  void compare(const char* check, const std::string& state_value, const std::string& log_value,
               UpdateId id) {
    if (state_value == log_value) {
      pass(check, fmt::format("of state and log are equal at update {}: {}", id, state_value));
    } else {
      fail(check,
           fmt::format("of state and log differ at update {}: state={} log={}", id, state_value,
                       log_value),
           rebuild_state);
    }
  }
  ExitCode code() const { return code_; }
  const std::string& next_step() const { return next_step_; }

 private:
  void print(const char* result, const char* check, const std::string& found) {
    if (json_) {
      Json object{{"check", check}, {"result", result}};
      put_bytes(object, "found", found);
      output_.write_json(object);
    } else {
      output_.write_line(fmt::format("{:<9}{:<11}{}", result, check, escape(found)));
    }
    output_.flush();
  }

  Output& output_;
  bool json_;
  ExitCode code_ = ExitCode::done;
  std::string next_step_;
};

struct StateResult {
  StateInfo info;
  std::vector<std::string> faults;
};

// Verifies a copy, or a state of another boot, which no process writes to, as it is. Returns
// nullopt if another process has taken it into use meanwhile.
std::optional<StateResult> check_foreign_state(const Mapping& mapping, const auto& progress) {
  StateResult result;
  // Acquire: pairs with the release store of clear_writer_active().
  if (mapping.header().writer_active.load(std::memory_order_acquire) != 0) {
    result.faults = {"it was being written when it was copied, or when the machine went down"};
  } else {
    result.faults = verify(mapping, false, progress);
  }
  // A process that adopts the file gives it another id.
  if (!result.faults.empty() && mapping.header().fixed.state_id != mapping.state_id())
    return std::nullopt;
  if (result.faults.empty()) result.info = state_info(mapping);
  return result;
}

StateResult check_state_at(const CheckArguments& arguments, const std::string& path,
                           const auto& progress) {
  // Opening the state would adopt a copy.
  const StateFileResult found = open_state_file_read_only(path);
  if (found.foreign) {
    if (auto result = check_foreign_state(*found.foreign, progress)) return *std::move(result);
  } else if (!found.mapping) {
    return {{}, {"cannot be used: " + found.unusable_reason}};
  }
  const auto state = open_state(arguments.target, StateAccess::lock);
  if (!state->usable()) return {{}, {"cannot be used: " + state->unusable_reason()}};
  StateResult result;
  result.faults = state->check(Deadline(arguments.target.deadline()), progress);
  result.info = state->info();
  return result;
}

// Returns the path of the state; empty if there is none, but a log to check.
std::string find_state(const Target& target) {
  if (!names_a_log(target))
    return existing_state_path(target, "name another file, or give --log URL to check a log");
  const std::string path = std::filesystem::absolute(state_path(target, MissingDirectory::leave));
  return ::access(path.c_str(), F_OK) != 0 && errno == ENOENT ? std::string() : path;
}

// Returns the info of the state, or nullopt if there is none that can be used.
std::optional<StateInfo> check_state(const CheckArguments& arguments, CheckReport& findings) {
  const std::string path = find_state(arguments.target);
  if (path.empty()) {
    findings.skip(ExitCode::done, "state",
                  "there is none on this machine: path=" +
                      state_path(arguments.target, MissingDirectory::leave));
    return std::nullopt;
  }
  try {
    Progress progress("checking the state", 0, Progress::Unit::count, arguments.quiet);
    const auto [info, faults] =
        check_state_at(arguments, path, [&](std::uint64_t done, std::uint64_t total) {
          progress.set_total(total);
          progress.update(done);
        });
    progress.hide();
    for (const std::string& fault : faults) findings.fail("state", fault, rebuild_state);
    if (faults.empty()) {
      findings.pass("state",
                    fmt::format("header, index, entries, key order and segments fit "
                                "together: {} at update {}, {}",
                                format_count(info.item_count, "item"), info.applied_id, path));
    }
    // A state that cannot be read has no info.
    return info.state_id == 0 ? std::nullopt : std::optional(info);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::corrupt) throw;
    findings.fail("state", error.what(), "");
    return std::nullopt;
  }
}

void check_log(const CheckArguments& arguments, const std::optional<StateInfo>& info,
               CheckReport& findings) {
  const auto log = open_log(arguments.target);
  LogVerifier verifier(*log, info ? info->applied_id : 0);
  Progress progress("replaying the log", 0, Progress::Unit::count, arguments.quiet);
  try {
    verifier.verify([&](UpdateId id, UpdateId head) {
      const UpdateId base = verifier.extent().base;
      progress.set_total(head - base);
      progress.update(id - base);
    });
  } catch (const Error& error) {
    progress.hide();
    if (error.kind() != ErrorKind::corrupt) throw;
    return findings.fail(
        "log",
        fmt::format("{} (later updates were not checked): log={}", error.what(), log->name()),
        restore_log);
  }
  progress.hide();
  const Extent& extent = verifier.extent();
  if (extent.base > 0)
    findings.pass("base", fmt::format("matches its summary: items as of update {}", extent.base));
  findings.pass("log", extent.head == extent.base
                           ? fmt::format("no update since the base: {}", log->name())
                           : fmt::format("updates {}..{} form one chain without a gap: {}",
                                         extent.base + 1, extent.head, log->name()));
  if (!info) return;
  if (info->log_uuid != extent.uuid) {
    return findings.fail("uuid",
                         fmt::format("the state is of another log: state={} log={}",
                                     to_string(info->log_uuid), to_string(extent.uuid)),
                         choose_state);
  }
  findings.pass("uuid", "of state and log are equal: " + to_string(extent.uuid));
  if (info->applied_id > extent.head) {
    return findings.fail(
        "applied id",
        fmt::format("the state is ahead of the log, which has lost updates: applied_id={} head={}",
                    info->applied_id, extent.head),
        restore_log);
  }
  if (!verifier.wanted_summary()) {
    return findings.skip(ExitCode::stale, "digest",
                         fmt::format("cannot be compared: the state is behind the base; `whycache "
                                     "update` first: applied_id={} base={}",
                                     info->applied_id, extent.base));
  }
  findings.compare("chain", format_hash(info->chain), format_hash(verifier.wanted_summary()->chain),
                   info->applied_id);
  findings.compare("items", std::to_string(info->item_count),
                   std::to_string(verifier.wanted_summary()->item_count), info->applied_id);
  findings.compare("digest", to_string(info->digest), to_string(verifier.wanted_summary()->digest),
                   info->applied_id);
}

ExitCode check(const CheckArguments& arguments, Output& output) {
  CheckReport findings(output, arguments.json);
  const std::optional<StateInfo> info = check_state(arguments, findings);
  if (names_a_log(arguments.target)) {
    check_log(arguments, info, findings);
  } else {
    findings.skip(ExitCode::done, "log", "none is named: only the state was checked");
  }
  if (findings.code() == ExitCode::corrupt) {
    throw Failure(ExitCode::corrupt, "the check found damage", findings.next_step());
  }
  return findings.code();
}

CommandAction prepare_check(CLI::App& parser) {
  const auto arguments = std::make_shared<CheckArguments>();
  add_json_option(parser, arguments->json);
  add_quiet_option(parser, arguments->quiet);
  add_target_options(parser, arguments->target);
  return [arguments](Output& output) { return check(*arguments, output); };
}

}  // namespace

const Command check_command{
    "check", "verify the state and the whole log, and compare them",
    R"(Verifies every structure of this machine's state. Then reads the whole log from base to head,
verifies that each update follows the previous one, and replays them in memory (about 80 bytes per
key) up to the state's applied id. There, chain, number of items and digest of state and log must be
equal. Reports the result of each check. Changes nothing. Writers of this machine wait while the
state is checked; readers do not.

Without a state on this machine, checks the log alone: a backup of it, for example. Without a log,
checks the state file alone, which may be a copy on read-only media.)",
    R"(Examples:
  whycache check
  whycache check --json | jq -c 'select(.result != "ok")'
  whycache check --state /mnt/copy/flags.state       a state file alone

JSON: check, result (ok, BAD, skipped), found

Exit codes: 0 everything is correct, 3 the log did not answer, 4 the state is behind the base and
  cannot be compared, 5 something is damaged or differs, 7 permission)",
    prepare_check};

}  // namespace whycache::cli
