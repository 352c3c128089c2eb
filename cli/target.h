// The cache that a command works on: the URL of its log, the state of this machine, and how to open
// them. Each value comes from its flag, else from the environment, else from the configuration file
// (common_options.h), else from the library's default.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include <whycache/cache.h>

#include "cli/options.h"
#include "client/cache_internal.h"
#include "client/state_location.h"
#include "state/state.h"

namespace CLI {
class App;
}

namespace whycache::cli {

struct Target {
  std::string log;
  std::string state;
  std::string profile;  // has been applied to the others when the command runs, as `config`
  std::string config;
  std::optional<std::chrono::nanoseconds> requested_deadline;
  std::optional<std::string> state_mode;
  std::uint32_t update_bytes_max = Options{}.update_bytes_max;
  bool any_file_system = false;
  // Whether opening a cache creates a log that is missing: of commands that write what they need.
  bool creates_log = false;
  bool accept_replaced_log = false;  // --accept-replaced-log
  bool writes = false;               // whether the command writes to the log
  bool split_updates = true;
  std::string command;  // "whycache set", for the name of the writer
  std::string writer;   // --writer, WHYCACHE_WRITER

  std::chrono::milliseconds deadline() const;
  // Returns the options for the library.
  Options options() const;
};

// --log, --deadline, --state, --state-mode, --any-file-system, --profile, --config
void add_target_options(CLI::App& parser, Target& target);
// --accept-replaced-log
void add_accept_replaced_log_option(CLI::App& parser, Target& target);
// --writer and --note, for commands that write
void add_writer_options(CLI::App& parser, Target& target, std::string& note);
// --update-bytes-max, for commands that write
void add_update_bytes_max_option(CLI::App& parser, Target& target);

// Returns an empty string if no log is named.
std::string log_url(const Target& target);
inline bool names_a_log(const Target& target) { return !log_url(target).empty(); }
// Returns what is left to the log after the cache was opened. Building the state may have taken
// longer than the deadline: the log answers then, and gets a moment.
std::chrono::milliseconds time_left(const Target& target, const Deadline& deadline);

// Opens the log, and creates none. Throws Failure if no log is named, and Error if it cannot be
// opened.
std::unique_ptr<Log> open_log(const Target& target);
// Returns uuid, base and head of the log within the deadline, which covers opening it. Throws as
// open_log().
Extent ask_log(const Target& target);
// Throws Failure or Error(invalid) if the target has what no later attempt can help: no log, a
// wrong URL or option, a state path that cannot be one.
void check_target(const Target& target);
// Prints an event of a cache, such as a rebuild, on standard error.
void report_event(const Event& event);
std::unique_ptr<Cache> open_cache(const Target& target,
                                  std::function<void(const Event&)> on_event = report_event);
// As open_cache(), for a command that needs the log. If the state could be opened without the log,
// asks the log again for what is left of the deadline. Throws the log's error if it did not answer.
std::unique_ptr<Cache> open_cache_with_log(
    const Target& target, std::function<void(const Event&)> on_event = report_event);
// Calls `ask`, which asks the log, for a command that has written nothing. If the log does not
// answer and the command is one that writes, the error says so.
void ask_before_write(const Target& target, const std::function<void()>& ask);

// Returns where this machine's state is or, as far as can be known without the log, will be. Does
// not open it.
StateLocation state_location(const Target& target,
                             MissingDirectory missing = MissingDirectory::create);
// Returns the path of that.
std::string state_path(const Target& target, MissingDirectory missing = MissingDirectory::create);
// Returns the absolute path of this machine's state, which exists. Throws Failure if there is none,
// with `next_step`, or if the target names neither a log nor a state file.
std::string existing_state_path(const Target& target, const std::string& next_step);
enum class StateAccess { read, lock };
// Opens the state as it is, without a cache that would repair it, and without the log. To read
// changes nothing, neither the file nor its directory.
std::unique_ptr<State> open_state(const Target& target, StateAccess access = StateAccess::read);

// A state to read from. This is the machine's state as it is, if the log that made it is the one
// that the target names: then reading neither needs nor contacts the log. Otherwise it is the state
// of a cache, which creates or repairs it. If the target names no log, it is the state file alone.
class StateSource {
 public:
  explicit StateSource(const Target& target);
  // Contacts the log first if the options say so. Throws Failure stale or unreachable if that was
  // necessary and the log did not answer.
  static StateSource open(const Target& target, const FreshnessOptions& freshness);
  // Reads the state as it is, whatever its log: changes nothing, and asks no log. Throws Failure if
  // there is none.
  static StateSource open_unchanged(const Target& target);
  // Reads the state file at `path` alone, whatever log the target names.
  static StateSource open_file(const std::string& path, const Target& target);

  const State& state() const { return cache_ ? CacheInternal::state(*cache_) : *state_; }
  View view() const { return View(state().pin()); }

 private:
  explicit StateSource(std::unique_ptr<Cache> cache) : cache_(std::move(cache)) {}
  explicit StateSource(std::unique_ptr<State> state) : state_(std::move(state)) {}

  std::unique_ptr<Cache> cache_;
  std::unique_ptr<State> state_;
};

}  // namespace whycache::cli
