// The file systems that whycache knows, and which of them can hold a state. Opening a state and
// `whycache doctor` share this table.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace whycache {

struct FileSystem {
  std::int64_t type;  // f_type of statfs(2)
  const char* name;
  // Whether every process that maps a file sees the same memory.
  bool shares_memory;
  // Whether a block that is allocated can be written again without another one. Where it cannot, a
  // store to mapped memory ends the process by SIGBUS if the disk is full
  // (docs/decisions/no-copy-on-write.md).
  bool rewrites_in_place;
};

// Returns the type of the file system that holds `path`, or nullopt with errno set.
std::optional<std::int64_t> file_system_type(const std::string& path) noexcept;

// Returns nullptr if the type is not in the table.
const FileSystem* find_file_system(std::int64_t type) noexcept;

// Whether the file is on a file system that copies on write unless told otherwise per file (btrfs),
// also beneath an overlay, whose type hides it. Tells it so, which has an effect on an empty file
// only.
bool turn_off_copy_on_write(int descriptor) noexcept;

// Whether the file may share blocks with a copy of it and get blocks of its own again: on xfs,
// where `cp` makes such copies, also beneath an overlay.
bool can_share_blocks(int descriptor) noexcept;
// Gives the file its own copy of the blocks that it shares with another file, so that writing to
// them needs no further block. Returns 0 or the errno: ENOSPC if the disk is full. Takes
// microseconds if none is shared.
int unshare_blocks(int descriptor, std::uint64_t bytes) noexcept;

}  // namespace whycache
