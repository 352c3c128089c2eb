// Where a machine's state lies when nobody says so. Private to the user, and never guessable in /tmp.
#pragma once

#include <whycache/cache.h>

#include <string>

namespace whycache {

struct StatePlace {
  std::string path;
  // A folder made for this one cache, to be removed with it; empty: none.
  std::string own_folder;
};

// Follows Options::state_path, Options::name and the environment as cache.h tells. Makes the default folders, mode
// 0700. Throws Error invalid: a name or folder that cannot be.
StatePlace find_state_place(const Options& options, const std::string& log_name);

// Removes what was made for one cache alone; what cannot be removed stays.
void remove_own_folder(const StatePlace& place) noexcept;

}  // namespace whycache
