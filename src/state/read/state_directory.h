// The directory of a state file, for reads that look for the file's successor.
//
// A read must not go on with a file that was replaced because the process can no longer open the
// new one. Two descriptors from the time of opening prevent most of that: one of the directory, for
// a process that has entered a chroot since, and a spare one, for a process that has used up its
// descriptors. For everything else there is an error.
#pragma once

#include <sys/stat.h>

#include <optional>
#include <string>

#include "base/file.h"

namespace whycache {

class StateDirectory {
 public:
  // Opens the directory of `path`, an absolute path. Without descriptors, only the path itself is
  // used later.
  explicit StateDirectory(const std::string& path);

  // Returns the status of the file at the path, or nullopt if there is none. Throws Error if this
  // process cannot find out.
  std::optional<struct stat> find() const;
  // Opens the file at the path for reading, with the spare descriptor if it is the last. Returns
  // an empty descriptor if there is none. Throws Error. One thread at a time.
  FileDescriptor open();

 private:
  bool is_of_directory(const FileDescriptor& descriptor) const noexcept;
  void refill_spare() noexcept;

  std::string path_;
  std::string name_;
  FileDescriptor directory_;
  FileDescriptor spare_;
  // The directory's identity: the application may have closed the descriptors, and others may have
  // their numbers now.
  struct stat status_ {};
};

}  // namespace whycache
