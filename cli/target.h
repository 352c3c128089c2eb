// Which cache a command works on: the URL of its log, the state of this machine, and how they are
// opened. Every value comes from its flag, else from the environment, else from the library.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include <whycache/cache.h>

#include "cli/options.h"
#include "client/cache_internal.h"
#include "state/state.h"

namespace CLI {
class App;
}

namespace whycache::cli {

struct Target {
  std::string log;    // --log, WHYCACHE_LOG
  std::string state;  // --state, WHYCACHE_STATE
  std::string name;   // --name, WHYCACHE_NAME
  std::optional<std::chrono::nanoseconds> requested_deadline;
  std::optional<std::string> state_mode;
  std::uint32_t update_bytes_max = Options{}.update_bytes_max;
  bool any_file_system = false;

  std::chrono::milliseconds deadline() const;
  // What the library is given.
  Options options() const;
};

// --log, --deadline
void add_log_options(CLI::App& parser, Target& target);
// --log, --deadline, --state, --name, --state-mode, --any-file-system
void add_target_options(CLI::App& parser, Target& target);
// --update-bytes-max, for commands that write
void add_update_bytes_max_option(CLI::App& parser, Target& target);

// Empty when none is named.
std::string log_url(const Target& target);
inline bool names_a_log(const Target& target) { return !log_url(target).empty(); }
// Throws Failure when no log is named, Error when it cannot be opened.
std::unique_ptr<Log> open_log(const Target& target);
// What the cache notices (rebuilds and the like) is said on standard error.
std::unique_ptr<Cache> open_cache(const Target& target);

// Where this machine's state is, or would be. Does not touch it.
std::string state_path(const Target& target);
// The state as it is, without a cache that would mend it. The log is not asked.
std::unique_ptr<State> open_state(const Target& target);

// Something to read from: the state of this machine as it is, if it is this log's (so that the log
// need not be asked, nor be there); else that of a cache, which makes or mends it; or, when no log
// is named, a state file by itself.
class StateSource {
 public:
  explicit StateSource(const Target& target);
  // Asks the log first if the options say so. Throws Failure stale when it had to and the log did
  // not answer.
  StateSource(const Target& target, const FreshnessOptions& freshness);
  // A state file by itself, whatever log is named.
  StateSource(const std::string& state_path, const Target& target);

  const State& state() const { return cache_ ? CacheInternal::state(*cache_) : *state_; }
  View view() const { return View(state().pin()); }

 private:
  void open_state_file(const Target& target, const std::string& next);

  std::unique_ptr<Cache> cache_;
  std::unique_ptr<State> state_;
};

}  // namespace whycache::cli
