// Finding, checking and marking state files: everything between a path and a Mapping.
#pragma once

#include <memory>
#include <string>

#include "base/clock.h"
#include "base/file.h"
#include "state/file/layout.h"
#include "state/file/mapping.h"
#include "state/file/state_info.h"

namespace whycache {

// Throws Error(invalid) if a state must not be at the path: the directory is not safe, or the file
// system does not share memory between processes, or does not write changed blocks in place.
void check_state_location(const StateOptions& options);

// Whether the state is meant to be shared with other users, and whose files are then trusted.
bool is_shared_with_others(const StateOptions& options);
// Returns options.mode, or the permission bits of the state at options.path if it keeps them.
std::uint32_t mode_of_state(const StateOptions& options);
FileOwner trusted_owner(const StateOptions& options);

// The error for a file system that does not write changed blocks in place.
Error copies_on_write(const std::string& directory, const std::string& file_system);

// Returns where this version of the library keeps the state that belongs at `path`. That is `path`,
// unless a state of another format is there, which another version may be using: then the name
// bears the format of this one. It stays so once the other file is removed.
std::string path_for_format(const std::string& path);
// Returns the path whose name bears the format.
std::string path_with_format(const std::string& path);

// The file at the path of a state.
struct StateFileResult {
  // Null if there is no file that can be used; unusable_reason says why.
  std::shared_ptr<Mapping> mapping;
  std::string unusable_reason;
  // The file came from another place or boot, and was verified (write/adopt.h).
  bool adopted = false;
  // The file came from another place or boot, and was not verified yet. Null otherwise.
  std::shared_ptr<Mapping> foreign;
  // The file is a state of a format that this version does not know.
  bool is_of_other_format = false;
};

// Opens the file at options.path for reading. Removes its permission bits beyond options.mode, and
// throws Error(invalid) if this process must not. Returns a file that came from elsewhere (another
// inode, another boot) as `foreign`. Throws Error(invalid) or Error(corrupt) if the file must not
// be touched, see State::open(). A bad header behind the magic is such a reason only if the caller
// holds StateLock::install and StateLock::writer: without them, another process may be adopting the
// file.
StateFileResult open_state_file(const StateOptions& options, bool holds_install_locks = false);

// The same for a descriptor that was opened for reading, of the file at options.path.
StateFileResult use_state_file(FileDescriptor file, const StateOptions& options,
                               bool holds_install_locks = false);

// Opens the file at `path` for a tool that changes nothing: neither the file nor its directory, on
// media that are read-only, too. Takes no lock, so another process may be writing to the file.
// Accepts a file of any user, with any number of names. Returns a file that is not in use on this
// machine as `foreign`. Throws Error(invalid) if there is no file or it must not be read,
// Error(corrupt) if it is not a state of this format.
StateFileResult open_state_file_read_only(const std::string& path);

// The log that a file was built from.
inline const Uuid& log_uuid_of(const Mapping& mapping) { return mapping.header().fixed.log_uuid; }
// `header` has no fault.
LogIdentity log_of(const HeaderFixed& header);

// Whether the mapped file is still the one at its path.
bool is_in_place(const Mapping& mapping);
// Whether an overlay file system has copied the file to another layer since this process, which may
// only read it, has mapped it. The copy has the same inode number, and is the one that writers
// change. They have adopted it, and so given it another state id.
bool is_copied_up(const Mapping& mapping);

// Writes the fixed header of a new file, or of one that is adopted.
void write_fixed_header(Header& header, const Uuid& log_uuid, const std::string& log_name,
                        int descriptor, const std::string& path);

// Makes the file one from elsewhere, which no process uses unverified. The caller holds
// StateLock::writer.
void disown(Header& header);
bool is_disowned(const HeaderFixed& header);

// Marks a state file as replaced or removed, which its readers notice. Leaves a file that is not a
// state alone.
void supersede(const FileDescriptor& file, const std::string& path);
void supersede(const Mapping& mapping);
void set_superseded_bit(const FileDescriptor& file, const std::string& path, bool superseded);

// Throws Error(corrupt) if the file at options.path is not a state and holds something, and
// Error(invalid) if its owner is not to be trusted: it must not be overwritten.
void check_may_be_replaced(const FileDescriptor& file, const StateOptions& options);

// Facts about the newest update of one mapped file. Throws Error(corrupt).
StateInfo state_info(const Mapping& mapping);
// The part of it that a write needs, without the name of the log.
LogPosition log_position(const Mapping& mapping);

}  // namespace whycache
