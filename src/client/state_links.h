// The names of the states in a directory that no user named: one log, one state.
//
// The library names a state after its log, but one log can have several names: of a server's host,
// its address and its socket; of a directory that is mounted twice. With a state for each name, a
// read by one name would miss writes by another one that have returned. So the log's uuid decides,
// and symbolic links to a file of the same directory lead to the one state:
//
//   INSTANCE-HASH.state         a state. HASH is that of the log's name when it was first opened.
//   .UUID.log -> INSTANCE-...   reserves the uuid for that state. The system call that creates it
//                               decides between processes that open the log at the same time.
//   INSTANCE-HASH2.state -> ..  an alias, for another name of the log
//   INSTANCE-HASH.name -> .UUID.log
//                               an alias for a name whose path has a state that bears another name:
//                               it was built by the name of an alias
//
// A name that exists is used without asking the log. The uuid in the state's header, not the name
// of a link, tells whether a reservation is valid; a stale one is replaced. A process that may not
// write to the directory uses what it finds. Only links of this user, of root or of the directory's
// owner are followed. (docs/decisions/one-state-per-log.md)
#pragma once

#include <optional>
#include <string>

#include <whycache/types.h>

#include "state/file/state_info.h"

namespace whycache {

struct LinkedState {
  std::string path;
  // Whether a link says that the log has confirmed the name.
  bool is_name_confirmed = false;
};

// Returns the state that `name_path`, the path of a log's name, leads to without asking the log, or
// nullopt if there is none yet. If there is another state of the same log, returns the one that is
// reserved, unless it is behind. Changes nothing.
std::optional<LinkedState> find_linked_state(const std::string& name_path);

// Returns the log of the state at the path, by its header; nullopt if there is none that is known.
std::optional<LogIdentity> find_log_of_state(const std::string& path);

// Returns the path of the state of the log with this uuid, whether it exists or not. Reserves the
// uuid for it and makes `name_path` an alias of it, as far as this process may.
std::string reserve_state(const std::string& name_path, const Uuid& log_uuid);

// Reserves the uuid for a state that exists, unless another state of the log has it that is not
// behind.
void record_state(const std::string& state_path, const Uuid& log_uuid) noexcept;

// Removes the alias of `name_path`, which leads to the state of another log. The next process asks
// the log.
void remove_alias(const std::string& name_path) noexcept;

}  // namespace whycache
