// The place of a state file, for reads that look for the file's successor.
//
// A read must not go on with a file that was replaced because the process can no longer open the
// new one. A spare descriptor from the time of opening serves a process that has used up its
// descriptors. For everything else there is an error: no descriptor of a directory is kept, by
// which a process could leave a chroot.
#pragma once

#include <sys/stat.h>

#include <atomic>
#include <optional>
#include <string>

#include "base/file.h"

namespace whycache {

// Any thread may call any function at any time.
class StatePlace {
 public:
  // `path` is absolute. Without a descriptor to spare, there is none later.
  explicit StatePlace(std::string path);
  ~StatePlace() { release_spare(); }
  StatePlace(const StatePlace&) = delete;
  StatePlace& operator=(const StatePlace&) = delete;

  // Returns the status of the file at the path, or nullopt if there is none. Throws Error if this
  // process cannot find out.
  std::optional<struct stat> find() const;
  // Opens the file at the path for reading, with the spare descriptor if it is the last. Returns
  // an empty descriptor if there is none. Throws Error.
  FileDescriptor open();
  // Sets a descriptor aside, if none is: when one may have become free.
  void keep_spare() noexcept;

 private:
  bool release_spare() noexcept;

  std::string path_;
  // The root directory when this object was made; all zero if it is not known.
  struct stat root_ {};
  // -1: none. Any thread removes or replaces it by exchange (acq_rel), and the one that gets the
  // number closes it. No data is published with it; keep_spare() loads it relaxed, as a hint.
  std::atomic<int> spare_{-1};
};

}  // namespace whycache
