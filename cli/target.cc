#include "cli/target.h"

#include <fmt/format.h>
#include <unistd.h>
#include <CLI/CLI.hpp>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <charconv>
#include <cstdlib>
#include <filesystem>
#include <string_view>

#include "base/call_limit.h"
#include "base/process_name.h"
#include "base/url.h"
#include "cli/exit_code.h"
#include "cli/output.h"
#include "client/session.h"
#include "log/log_name.h"
#include "log/open_log.h"
#include "state/file/other_format.h"
#include "state/file/state_file.h"

namespace whycache::cli {
namespace {

constexpr const char* target_group = "Which cache";

bool names_a_file(const std::string& state_path) {
  return !state_path.empty() && state_path.back() != '/';
}

[[noreturn]] void refuse_no_log() {
  throw Failure(
      ExitCode::usage, "no log is named",
      "give --log URL, set WHYCACHE_LOG, or write it into ~/.config/whycache.toml, as in log = "
      "\"sqlite:///var/lib/flags.db\"");
}

bool is_in_memory(const Target& target) {
  return without_tier(log_url(target)).starts_with("memory:");
}

// The name of the log in states and messages, found without opening the log. Empty if no log is
// named.
std::string target_log_name(const Target& target) {
  const std::string url = log_url(target);
  return url.empty() ? std::string() : log_name(Url(url));
}

// Whether `stored`, from a state, is the name of the log. An older version may have stored another
// spelling of it.
bool is_name_of_log(const std::string& stored, const std::string& name) {
  if (stored == name) return true;
  try {
    return log_name(Url(stored)) == name;
  } catch (const Error&) {
    return false;  // the name of a log that has no URL
  }
}

std::uint32_t parse_mode(const std::string& text) {
  std::uint32_t mode = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), mode, 8);
  if (error != std::errc{} || end != text.data() + text.size() || mode > 0777) {
    throw Failure(ExitCode::usage, "--state-mode is not permission bits: mode=" + text,
                  "give an octal number like 0640");
  }
  // As the library requires of Options::state_mode. Commands that only read do not ask it.
  if ((mode & ~0666U) != 0 || (mode & 0600U) != 0600U) {
    throw Failure(ExitCode::usage,
                  "--state-mode must let its owner read and write, and let no user execute: "
                  "state_mode=" +
                      text,
                  "give an octal number like 0640");
  }
  return mode;
}

}  // namespace

void report_event(const Event& event) {
  switch (event.kind) {
    case Event::Kind::rebuilt:
    case Event::Kind::recovered:
    case Event::Kind::retried:
    case Event::Kind::reconnected:
    case Event::Kind::not_following:
    case Event::Kind::following:
    case Event::Kind::polling:
    case Event::Kind::changes_not_kept:
    case Event::Kind::stray_state: return print_message(event.message);
  }
}

std::chrono::milliseconds Target::deadline() const {
  return requested_deadline ? std::chrono::ceil<std::chrono::milliseconds>(*requested_deadline)
                            : Options{}.deadline;
}

Options Target::options() const {
  Options options;
  options.state_path = state;
  if (state_mode) options.state_mode = parse_mode(*state_mode);
  options.any_file_system = any_file_system;
  options.update_bytes_max = update_bytes_max;
  options.split_updates = split_updates;
  options.writer_name = writer.empty() ? describe_this_process(command) : writer;
  options.deadline = deadline();
  options.create_log = creates_log;
  options.accept_replaced_log = accept_replaced_log;
  return options;
}

void add_target_options(CLI::App& parser, Target& target) {
  target.command = parser.get_name();
  parser
      .add_option("--log", target.log,
                  "its log: sqlite:///file.db, file:///dir, mysql://user@host/db, "
                  "postgres://... (WHYCACHE_LOG)")
      ->type_name("URL")
      ->group(target_group);
  add_duration_option(
      parser, "--deadline", target.requested_deadline,
      "how long to wait for the log and for other processes (10s; WHYCACHE_DEADLINE)")
      ->group(target_group);
  parser
      .add_option("--state", target.state,
                  "this machine's state file, or a directory/ for it (WHYCACHE_STATE)")
      ->type_name("PATH")
      ->group(target_group);
  parser
      .add_option("--state-mode", target.state_mode,
                  "permission bits of the state file (those it has; 0600 for the first one; "
                  "WHYCACHE_STATE_MODE)")
      ->type_name("OCTAL")
      ->group(target_group);
  parser
      .add_flag("--any-file-system", target.any_file_system,
                "accept a file system not known to share memory between processes "
                "(WHYCACHE_ANY_FILE_SYSTEM)")
      ->group(target_group);
  parser
      .add_option("--profile", target.profile,
                  "log and state as in [profile.NAME] of the configuration (WHYCACHE_PROFILE)")
      ->type_name("NAME")
      ->group(target_group);
  parser
      .add_option("--config", target.config,
                  "the configuration file (WHYCACHE_CONFIG; ~/.config/whycache.toml, then "
                  "/etc/whycache.toml)")
      ->type_name("PATH")
      ->group(target_group);
}

void add_accept_replaced_log_option(CLI::App& parser, Target& target) {
  parser
      .add_flag("--accept-replaced-log", target.accept_replaced_log,
                "accept an empty log in place of the one applied so far; this empties the state")
      ->group(target_group);
}

void add_writer_options(CLI::App& parser, Target& target, std::string& note) {
  target.writes = true;
  add_note_option(parser, note);
  parser
      .add_option("--writer", target.writer,
                  "the writer to record: user@host:pid (command) by default (WHYCACHE_WRITER)")
      ->type_name("NAME");
}

void add_update_bytes_max_option(CLI::App& parser, Target& target) {
  parser
      .add_option("--update-bytes-max", target.update_bytes_max,
                  "longest update that this writer appends (1048576; "
                  "WHYCACHE_UPDATE_BYTES_MAX)")
      ->type_name("BYTES");
}

std::string log_url(const Target& target) {
  std::string url = target.log;
  // For these logs the deadline also limits waits for the log's own locks and for its server,
  // unless the URL sets one.
  const bool waits_for_locks = url.starts_with("sqlite:") || url.starts_with("file:") ||
                               url.starts_with("mysql:") || url.starts_with("postgres:") ||
                               url.starts_with("postgresql:");
  if (target.requested_deadline && waits_for_locks &&
      url.find("deadline_ms=") == std::string::npos) {
    const auto milliseconds = std::clamp<std::int64_t>(target.deadline().count(), 1, 3'600'000);
    url += fmt::format("{}deadline_ms={}", url.find('?') == std::string::npos ? '?' : '&',
                       milliseconds);
  }
  return url;
}

std::unique_ptr<Log> open_log(const Target& target) {
  const std::string url = log_url(target);
  if (url.empty()) refuse_no_log();
  try {
    return whycache::open_log(url, std::min(target.deadline(), default_log_deadline),
                              IfMissing::fail);
  } catch (const LogMissing& missing) {
    const std::optional<std::string> state =
        find_present_state(target.options(), log_name(Url(url)));
    if (!state) throw;
    throw missing.with_state(*state);
  }
}

Extent ask_log(const Target& target) {
  const Deadline deadline(target.deadline());
  const CallLimit limit(deadline);
  return open_log(target)->extent();
}

void check_target(const Target& target) {
  const std::string url = log_url(target);
  if (url.empty()) refuse_no_log();
  parse_log_url(url, default_log_deadline);
  find_state_location(target.options(), log_name(Url(url)), MissingDirectory::leave);
}

std::unique_ptr<Cache> open_cache(const Target& target,
                                  std::function<void(const Event&)> on_event) {
  const std::string url = log_url(target);
  if (url.empty()) refuse_no_log();
  Options options = target.options();
  options.on_event = std::move(on_event);
  return std::make_unique<Cache>(url, std::move(options));
}

namespace {

// As open_cache_with_log(), with errors as the library throws them.
std::unique_ptr<Cache> open_cache_and_ask_log(const Target& target,
                                              std::function<void(const Event&)> on_event) {
  const Deadline deadline(target.deadline());
  const auto is_away = std::make_shared<std::atomic<bool>>(false);
  auto cache = open_cache(target, [is_away, on_event = std::move(on_event)](const Event& event) {
    if (event.kind == Event::Kind::retried) *is_away = true;
    if (event.kind == Event::Kind::reconnected) *is_away = false;
    on_event(event);
  });
  if (!*is_away) return cache;
  const std::optional<LogError> failure = CacheInternal::session(*cache).opening_failure();
  if (failure && deadline.passed()) throw LogError(*failure);
  cache->update({.deadline = time_left(target, deadline)});
  return cache;
}

}  // namespace

void ask_before_write(const Target& target, const std::function<void()>& ask) {
  try {
    ask();
  } catch (const Error& error) {
    const bool is_away =
        error.kind() == ErrorKind::unavailable || error.kind() == ErrorKind::uncertain;
    if (!target.writes || !is_away) throw;
    const std::string message = error.what();
    constexpr std::string_view nothing_written = "nothing was written";
    const bool says_it = message.find(nothing_written) != std::string::npos;
    throw Error(ErrorKind::unavailable,
                says_it ? message : std::string(nothing_written) + ": " + message,
                error.system_error());
  }
}

std::unique_ptr<Cache> open_cache_with_log(const Target& target,
                                           std::function<void(const Event&)> on_event) {
  std::unique_ptr<Cache> cache;
  ask_before_write(target, [&] { cache = open_cache_and_ask_log(target, std::move(on_event)); });
  return cache;
}

std::chrono::milliseconds time_left(const Target& target, const Deadline& deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline.remaining());
  return std::max(left, target.deadline() / 20);
}

StateLocation state_location(const Target& target, MissingDirectory missing) {
  const Options options = target.options();
  if (names_a_file(options.state_path)) return {path_for_format(options.state_path), {}, {}};
  StateLocation location = find_state_location(options, target_log_name(target), missing);
  // A log in memory has a new directory for each cache, so there is no state to read.
  remove_temporary_directory(location);
  return location;
}

std::string state_path(const Target& target, MissingDirectory missing) {
  return state_location(target, missing).path;
}

std::string existing_state_path(const Target& target, const std::string& next_step) {
  if (!names_a_log(target) && !names_a_file(target.options().state_path)) refuse_no_log();
  std::string path = std::filesystem::absolute(state_path(target, MissingDirectory::leave));
  if (::access(path.c_str(), F_OK) == 0 || errno != ENOENT) return path;
  if (const std::optional<std::string> other = find_state_of_other_format(path)) {
    throw Failure(ExitCode::usage, *other,
                  names_a_log(target)
                      ? "run `whycache update`, which builds one of this format from the log"
                      : "give --log URL to `whycache update`, which builds one of this format from "
                        "the log; or use the version that made it");
  }
  throw Failure(ExitCode::usage, "there is no state file: path=" + path, next_step);
}

std::unique_ptr<State> open_state(const Target& target, StateAccess access) {
  StateOptions options;
  options.path = state_path(target, MissingDirectory::leave);
  options.read_only = access == StateAccess::read;
  options.keeps_mode = !target.state_mode;
  if (target.state_mode) options.mode = parse_mode(*target.state_mode);
  options.any_file_system = target.any_file_system;
  return State::open(options);
}

namespace {

// Whether the log's name leads to no state. Opening it would leave a lock file, and the log may
// have a state under another name.
bool is_state_absent(const Target& target) {
  const StateLocation location = state_location(target, MissingDirectory::leave);
  return location.is_named_after_log() && ::access(location.path.c_str(), F_OK) != 0 &&
         errno == ENOENT;
}

std::unique_ptr<State> open_usable_state(const Target& target, const std::string& next_step) {
  // Opening an absent state would leave a lock file.
  const std::string path = existing_state_path(target, next_step);
  std::unique_ptr<State> state = open_state(target);
  if (!state->usable()) {
    throw Failure(ExitCode::corrupt,
                  fmt::format("the state cannot be used: path={} reason=\"{}\"", path,
                              state->unusable_reason()),
                  next_step);
  }
  return state;
}

// Returns a cache that has contacted the log, unless its state is as fresh as the options require.
std::unique_ptr<Cache> update_cache(const Target& target, const FreshnessOptions& freshness) {
  UpdateOptions options;
  if (!freshness.update) options.staleness_max = *freshness.staleness_max;
  const Deadline deadline(target.deadline());
  try {
    auto cache = open_cache_with_log(target);
    options.deadline = time_left(target, deadline);
    cache->update(options);
    return cache;
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::unavailable) throw;
    const bool has_next_step = std::string_view(error.what()).ends_with(')');
    const bool has_state =
        find_present_state(target.options(), target_log_name(target)).has_value();
    throw Failure(freshness.staleness_max ? ExitCode::stale : exit_code_of(error),
                  std::string("cannot read as fresh as requested: ") + error.what(),
                  has_state && !has_next_step
                      ? "omit --update and --staleness-max to read the state as it is; `whycache "
                        "doctor` tests the log"
                      : next_step(error));
  }
}

}  // namespace

StateSource::StateSource(const Target& target) {
  if (!names_a_log(target)) {
    if (!names_a_file(target.options().state_path)) refuse_no_log();
    state_ = open_usable_state(target, "name another file, or give --log URL to create it");
    return;
  }
  if (!is_in_memory(target) && !is_state_absent(target)) {
    auto state = open_state(target);
    if (state->usable() && !state->adopted() &&
        (state_location(target).is_name_confirmed ||
         is_name_of_log(state->info().log_name, target_log_name(target)))) {
      state_ = std::move(state);
      return;
    }
  }
  const Deadline deadline(target.deadline());
  cache_ = open_cache(target);
  // A state that was copied from another machine may belong to another log, or be older than the
  // base.
  UpdateOptions options;
  options.deadline = time_left(target, deadline);
  try {
    cache_->update(options);
  } catch (const Error& error) {
    // A machine that was restarted has verified its own state. That its log is away was reported.
    if (error.kind() != ErrorKind::unavailable || !cache_->ready() ||
        !is_name_of_log(CacheInternal::state(*cache_).info().log_name, target_log_name(target)))
      throw;
  }
}

StateSource StateSource::open(const Target& target, const FreshnessOptions& freshness) {
  if (!freshness.update && !freshness.staleness_max) return StateSource(target);
  return StateSource(update_cache(target, freshness));
}

StateSource StateSource::open_unchanged(const Target& target) {
  if (is_in_memory(target)) return StateSource(target);
  return StateSource(open_usable_state(target, names_a_log(target)
                                                   ? "run `whycache update`, which builds one"
                                                   : "name another file, or give --log URL"));
}

StateSource StateSource::open_file(const std::string& path, const Target& target) {
  Target file_target = target;
  file_target.state = path;
  return StateSource(
      open_usable_state(file_target, "name another file, or none to read the state of --log URL"));
}

}  // namespace whycache::cli
