// Making, finding and believing state files: everything between a path and a Mapping.
#pragma once

#include <memory>
#include <string>

#include "base/clock.h"
#include "base/file.h"
#include "state/file/layout.h"
#include "state/file/lock_file.h"
#include "state/file/mapping.h"
#include "state/file/state_info.h"

namespace whycache {

// Throws Error invalid unless a state may live at the path: the folder is safe, the file system
// shares memory between processes.
void check_state_location(const StateOptions& options);

// What is at the path of a state.
struct StateFileResult {
  std::shared_ptr<Mapping> mapping;  // null: nothing that can be used
  std::string unusable_reason;       // then
  bool adopted = false;              // it came from another place or boot, and was verified
  std::shared_ptr<Mapping> foreign;  // then, as long as it was not verified
};

// Opens the file at options.path for reading. One that came from elsewhere (another inode, another
// boot) is used only with `may_adopt`: it is verified as a whole and made ours. The caller then
// holds StateLock::install and StateLock::writer. Throws Error invalid or corrupt for what must not
// be touched, see State::open.
StateFileResult open_state_file(const StateOptions& options, bool holds_install_locks = false);

// Whether the file at the path is the one that is mapped.
bool is_in_place(const Mapping& mapping);

// Writes the fixed header of a new file (or of one that is made ours).
void write_fixed_header(Header& header, const Uuid& log_uuid, const std::string& log_name,
                        int descriptor, const std::string& path);

// Says in a state file that another takes its place, or that it is gone; readers notice. A file
// that is not a state is left alone.
void supersede(const FileDescriptor& file, const std::string& path);
void supersede(const Mapping& mapping);
void set_superseded_bit(const FileDescriptor& file, const std::string& path, bool superseded);

// Throws Error corrupt if what is at the path, if anything, is not a state: it must not be put out
// of the way.
void check_may_be_replaced(const FileDescriptor& file, const std::string& path);

// What one mapped file says of itself.
StateInfo state_info(const Mapping& mapping);

}  // namespace whycache
