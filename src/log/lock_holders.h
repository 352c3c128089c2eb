// Names the processes that hold locks on a file, for messages.
#pragma once

#include <string>

namespace whycache {

// Returns the ids of the processes that hold a POSIX lock on the file at `path`, as SQLite takes
// them, separated by commas; "" if there is none, or if the system does not tell. Does not open the
// file: closing it would drop the locks of this process.
std::string lock_holders(const std::string& path);

}  // namespace whycache
