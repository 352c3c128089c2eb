#include "target.h"

#include <CLI/CLI.hpp>
#include <charconv>
#include <cstdlib>

#include "client/state_place.h"
#include "exit_code.h"
#include "output.h"

namespace whycache::cli {
namespace {

std::string or_environment(const std::string& given, const char* variable) {
  if (!given.empty()) return given;
  const char* value = std::getenv(variable);
  return value == nullptr ? std::string() : std::string(value);
}

bool names_a_file(const std::string& state_path) { return !state_path.empty() && state_path.back() != '/'; }

std::uint32_t read_mode(const std::string& text) {
  std::uint32_t mode = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), mode, 8);
  if (error != std::errc{} || end != text.data() + text.size() || mode > 0777) {
    throw Failure(ExitCode::usage, "--state-mode is not permission bits: mode=" + text, "give an octal number like 0640");
  }
  return mode;
}

void say_event(const Event& event) {
  switch (event.kind) {
    case Event::Kind::rebuilt:
      return say("the state was rebuilt: " + event.message);
    case Event::Kind::recovered:
      return say("took over from a writer that died: " + event.message);
    case Event::Kind::retried:
      return say("asking the log again: " + event.message);
    case Event::Kind::stray_state:
      return say("an unusable state file was put aside: " + event.message);
  }
}

}  // namespace

std::chrono::milliseconds Target::patience() const {
  return deadline ? std::chrono::ceil<std::chrono::milliseconds>(*deadline) : Options{}.deadline;
}

Options Target::options() const {
  Options options;
  options.name = or_environment(name, "WHYCACHE_NAME");
  options.state_path = or_environment(state, "WHYCACHE_STATE");
  if (state_mode) options.state_mode = read_mode(*state_mode);
  options.any_file_system = any_file_system;
  options.update_bytes_max = update_bytes_max;
  options.deadline = patience();
  options.on_event = say_event;
  return options;
}

void add_log_options(CLI::App& parser, Target& target) {
  parser.add_option("--log", target.log, "the log: sqlite:///file.db, file:///folder (WHYCACHE_LOG)")->type_name("URL");
  add_duration_option(parser, "--deadline", target.deadline, "how long to wait for the log and for other processes (10s)");
}

void add_target_options(CLI::App& parser, Target& target) {
  add_log_options(parser, target);
  parser.add_option("--state", target.state, "this machine's state file, or a folder/ for it (WHYCACHE_STATE)")->type_name("PATH");
  parser.add_option("--name", target.name, "names the state file in its folder (WHYCACHE_NAME)")->type_name("NAME");
  parser.add_option("--state-mode", target.state_mode, "permission bits of a new state file (0600)")->type_name("OCTAL");
  parser.add_flag("--any-file-system", target.any_file_system,
                  "accept a file system not known to share memory between processes");
}

void add_update_bytes_max_option(CLI::App& parser, Target& target) {
  parser.add_option("--update-bytes-max", target.update_bytes_max, "longest update; every machine must accept it (1048576)")
      ->type_name("BYTES");
}

std::string log_url(const Target& target) { return or_environment(target.log, "WHYCACHE_LOG"); }

std::unique_ptr<Log> open_log(const Target& target) {
  const std::string url = log_url(target);
  if (url.empty()) {
    throw Failure(ExitCode::usage, "no log is named",
                  "give --log URL or set WHYCACHE_LOG, for example to sqlite:///var/lib/flags.db");
  }
  return whycache::open_log(url);
}

std::unique_ptr<Cache> open_cache(const Target& target) {
  const Options options = target.options();
  const std::string url = log_url(target);
  if (url.empty()) return std::make_unique<Cache>(open_log(target), options);  // says what is missing
  return std::make_unique<Cache>(url, options);
}

std::string state_path(const Target& target) {
  const Options options = target.options();
  if (names_a_file(options.state_path)) return options.state_path;
  // The name of the file comes from the log's name, unless it is given.
  const std::string log_name = names_a_log(target) ? open_log(target)->name() : std::string();
  const StatePlace place = find_state_place(options, log_name);
  remove_own_folder(place);
  return place.path;
}

std::unique_ptr<State> open_state(const Target& target) {
  StateOptions options;
  options.path = state_path(target);
  options.any_file_system = target.any_file_system;
  return State::open(options);
}

Source::Source(const std::string& state_path, const Target& target) {
  Target alone = target;
  alone.state = state_path;
  state_ = open_state(alone);
  if (!state_->usable()) {
    throw Failure(ExitCode::corrupt, "no state that can be used: path=" + state_path + " reason=\"" + state_->why_unusable() + '"',
                  "name another file, or give --log URL so that it can be made anew");
  }
}

Source::Source(const Target& target) {
  const std::string path = target.options().state_path;
  if (!names_a_log(target) && names_a_file(path)) {
    *this = Source(path, target);
  } else {
    cache_ = open_cache(target);
  }
}

Source::Source(const Target& target, const FreshnessOptions& freshness) : Source(target) {
  if (!freshness.update && !freshness.staleness_max) return;
  if (!cache_) open_log(target);  // says what is missing
  UpdateOptions options;
  if (!freshness.update) options.staleness_max = *freshness.staleness_max;
  try {
    cache_->update(options);
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::unavailable) throw;
    throw Failure(freshness.staleness_max ? ExitCode::stale : ExitCode::unreachable,
                  std::string("cannot read as fresh as asked: ") + error.what(),
                  "read what there is by leaving out --update and --staleness-max, or mend the log; `whycache doctor` tries it");
  }
}

}  // namespace whycache::cli
