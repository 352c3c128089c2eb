// A temporary file whose lock proves that its owner lives.
//
// A process that is killed leaves its temporary files behind. The kernel drops the lock of a dead
// process, so any other process may remove a file whose lock is free.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include <whycache/types.h>

#include "base/file.h"

namespace whycache {

// Holds an exclusive lock on byte 0 of the file, and removes the file at the end. The owner may
// rename the file, or link it under another name, to keep it. A copy in a forked child removes
// nothing; the child shares the lock until it closes the descriptor or executes another program.
class OwnedTemporaryFile {
 public:
  // Creates an empty file whose path is `prefix` followed by token() in hex, with mode 0600.
  // Throws Error if that fails.
  explicit OwnedTemporaryFile(const std::string& prefix);
  OwnedTemporaryFile(OwnedTemporaryFile&& other) noexcept;
  OwnedTemporaryFile& operator=(OwnedTemporaryFile&&) = delete;
  ~OwnedTemporaryFile();

  const Uuid& token() const { return token_; }  // random
  const std::string& path() const { return path_; }
  int descriptor() const { return file_.number(); }
  // Returns a descriptor of the same open file, which holds the lock for as long as either is open.
  FileDescriptor duplicate_descriptor() const;

  void write_durably(std::string_view bytes);
  // Gives up the lock. Any process may then remove the file as that of a dead owner.
  void unlock() const noexcept;

 private:
  bool try_lock() const;

  Uuid token_{};
  std::string path_;
  FileDescriptor file_;
  std::uint64_t fork_count_;
};

// The lock of a temporary file whose owner is dead, so that this process may remove the file.
class OrphanLock {
 public:
  // Does not wait. Throws Error if the file exists but cannot be opened or locked, unless the
  // reason is that it belongs to another user, who removes it.
  explicit OrphanLock(const std::string& path);
  // Whether the owner is dead: this object holds the lock, or there is no file.
  explicit operator bool() const { return is_orphan_; }

 private:
  FileDescriptor file_;
  bool is_orphan_ = false;
};

// Removes the files whose paths begin with `prefix` and whose owners are dead. Skips those that
// cannot be opened or locked, which belong to another user.
void remove_orphans(const std::string& prefix);

}  // namespace whycache
