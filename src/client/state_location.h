// Finds the path of a machine's state. The default directories are private to the user and never at
// a guessable path in /tmp. In a directory, all names of one log lead to one state (state_links.h).
#pragma once

#include <whycache/log.h>
#include <whycache/options.h>

#include <optional>
#include <string>

#include "base/clock.h"

namespace whycache {

struct StateLocation {
  std::string path;
  // A directory that was created for this cache alone and is removed with it; empty if there is
  // none.
  std::string temporary_directory;
  // The path that the log's name has, if the library named the state after it: `path` itself, or an
  // alias of it. Empty if the user named the file.
  std::string name_path;
  // Whether the log has confirmed the name, although the state may bear another one of its names.
  bool is_name_confirmed = false;

  bool is_named_after_log() const { return !name_path.empty(); }
  bool is_alias() const { return is_named_after_log() && path != name_path; }
};

// Returns the path that Options::state_path or WHYCACHE_STATE names, absolute, since the
// application may change its working directory; empty if neither names one.
std::string given_state_path(const Options& options);

// Whether missing default directories are created, with mode 0700.
enum class MissingDirectory { create, leave };

// Finds the path from Options::state_path, the log's name and the environment (options.h says how).
// Follows an alias, and does not ask the log. If a state of another format is there, the name of
// the file bears the format (path_for_format()), and no log is named in it. Throws Error(invalid)
// if the name or the directory cannot be used.
StateLocation find_state_location(const Options& options, const std::string& log_name,
                                  MissingDirectory missing = MissingDirectory::create);

// Returns the path of the machine's state of the log, if there is a file. Creates nothing and does
// not ask the log.
std::optional<std::string> find_present_state(const Options& options, const std::string& log_name);

// As find_state_location(), for a cache that is about to open the state. If the log's name leads to
// no state yet, asks the log for its uuid, which may have a state under another name of the log;
// and reserves the uuid. Waits for the log until the deadline, and throws Error if it does not
// answer. With OpenMode::now it waits a moment only; a log that does not answer gets the state of
// its name.
StateLocation locate_state(const Options& options, Log& log, const Deadline& deadline);

// Removes the temporary directory, if there is one. Ignores errors.
void remove_temporary_directory(const StateLocation& location) noexcept;

}  // namespace whycache
