// Finds the path of a machine's state. The default directories are private to the user and never at
// a guessable path in /tmp.
#pragma once

#include <whycache/options.h>

#include <string>

namespace whycache {

struct StateLocation {
  std::string path;
  // A directory that was created for this cache alone and is removed with it; empty if there is
  // none.
  std::string temporary_directory;
};

// Whether missing default directories are created, with mode 0700.
enum class MissingDirectory { create, leave };

// Finds the path from Options::state_path, the log's name and the environment (options.h says how).
// Throws Error(invalid) if the name or the directory cannot be used.
StateLocation find_state_location(const Options& options, const std::string& log_name,
                                  MissingDirectory missing = MissingDirectory::create);

// Removes the temporary directory, if there is one. Ignores errors.
void remove_temporary_directory(const StateLocation& location) noexcept;

}  // namespace whycache
