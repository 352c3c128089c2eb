// Where a machine's state lies when nobody says so. Private to the user, and never guessable in
// /tmp.
#pragma once

#include <whycache/options.h>

#include <string>

namespace whycache {

struct StateLocation {
  std::string path;
  // A folder made for this one cache, to be removed with it; empty: none.
  std::string temporary_directory;
};

// Follows Options::state_path, Options::name and the environment as cache.h tells. Makes the
// default folders, mode 0700. Throws Error invalid: a name or folder that cannot be.
StateLocation find_state_location(const Options& options, const std::string& log_name);

// Removes what was made for one cache alone; what cannot be removed stays.
void remove_temporary_directory(const StateLocation& position) noexcept;

}  // namespace whycache
