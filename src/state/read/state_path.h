// The path of a state file, for reads that look for the file's successor.
//
// A read must not continue with a file that was replaced because the process can no longer open the
// new one. Two spare descriptors from the time of opening serve a process that has used up its own:
// for the new file, and for its views. For everything else there is an error: no descriptor of a
// directory is kept, by which a process could leave a chroot.
#pragma once

#include <sys/stat.h>

#include <array>
#include <atomic>
#include <optional>
#include <string>

#include "base/file.h"

namespace whycache {

// Any thread may call any function at any time.
class StatePath {
 public:
  // `path` is absolute. Without descriptors to spare, there are none later.
  explicit StatePath(std::string path);
  ~StatePath() {
    while (release_spare()) {
    }
  }
  StatePath(const StatePath&) = delete;
  StatePath& operator=(const StatePath&) = delete;

  // Returns the status of the file at the path, or nullopt if there is none. Throws Error if this
  // process cannot find out.
  std::optional<struct stat> find() const;
  // Opens the file at the path for reading, with a spare descriptor if no other is left. Returns an
  // empty descriptor if there is no file. Throws Error.
  FileDescriptor open();
  // Sets descriptors aside, if some are missing: when some may have become free.
  void keep_spares() noexcept;
  // Closes a spare descriptor, so that another file can be opened. Returns false if there is none.
  bool release_spare() noexcept;

 private:
  std::string path_;
  // The root directory when this object was made; all zero if it is not known.
  struct stat root_ {};
  // -1: none. Any thread removes or replaces it by exchange (acq_rel), and the one that gets the
  // number closes it. No data is published with it; keep_spares() loads it relaxed, as a hint.
  std::array<std::atomic<int>, 2> spares_{-1, -1};
};

}  // namespace whycache
