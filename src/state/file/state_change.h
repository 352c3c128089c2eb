// Whether another program has changed the state file in place: cp or rsync --inplace of a backup
// for example, which keep the inode (docs/decisions/verify-foreign-files.md).
//
// The kernel keeps the time at which the contents or the attributes of a file were last changed,
// its ctime, and no program can set that. A process that has changed the state notes that in the
// lock file. If the file's ctime is another one, another program changed the file, or a process
// died before it had noted its change, or the file got another mode or owner. The process that
// opens the file then verifies it, unless a process that has trusted it before is using it.
//
// A store to a mapping changes ctime when it is the first one to a page, through this mapping or
// since the page went to the disk. The clock behind ctime advances by a few milliseconds at a time.
#pragma once

#include <sys/stat.h>

#include <cstdint>

#include "state/file/lock_file.h"

namespace whycache {

// Identifies the last change of a file.
using FileChange = std::uint64_t;
inline constexpr FileChange no_change_known = 0;
FileChange change_of(const struct stat& status) noexcept;

// Returns whether the file was last changed by whycache, as far as the lock file says. `state` is a
// descriptor of the state file. One system call.
bool has_only_own_changes(const LockFile& locks, int state) noexcept;
// Notes the file's last change as whycache's own. The caller has verified the file, or knows its
// whole content. One system call if that is noted already, else two.
void note_own_changes(const LockFile& locks, int state) noexcept;

// Exists while this process changes the file, and then notes that, if the changes before were
// whycache's own, too: a change by another program stays to be seen. One that happens meanwhile
// does not.
class OwnChange {
 public:
  // `locks` may be null; then nothing is noted. Both outlive this. `last_change` is that of the
  // file a moment ago, and saves a system call.
  OwnChange(const LockFile* locks, int state, FileChange last_change = no_change_known) noexcept;
  ~OwnChange();
  OwnChange(const OwnChange&) = delete;
  OwnChange& operator=(const OwnChange&) = delete;

 private:
  const LockFile* locks_;
  int state_;
  std::uint64_t noted_before_ = 0;
  bool was_own_ = false;
};

}  // namespace whycache
