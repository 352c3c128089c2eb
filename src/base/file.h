// Files by descriptor, with errno turned into Error where it happens.
#pragma once

#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <whycache/error.h>

namespace whycache {

// Owns a file descriptor.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  explicit FileDescriptor(int number) : number_(number) {}
  FileDescriptor(FileDescriptor&& other) noexcept : number_(other.release()) {}
  FileDescriptor& operator=(FileDescriptor&& other) noexcept;
  ~FileDescriptor() { close(); }

  int number() const noexcept { return number_; }
  explicit operator bool() const noexcept { return number_ >= 0; }
  int release() noexcept;
  void close() noexcept;

 private:
  int number_ = -1;
};

// The Error for errno `error`: "cannot open state file: path=/x permission denied". The kind is
// invalid for what a user has to mend (ENOENT, EACCES, EROFS, ELOOP, ENOTDIR, ENAMETOOLONG ...),
// limit for ENOSPC, EDQUOT, EMFILE, ENFILE, ENOMEM and EFBIG, unavailable for the rest.
Error system_error(std::string_view what, std::string_view path, int error);

// open(2) with O_CLOEXEC and O_NOFOLLOW, again after EINTR. Throws Error.
FileDescriptor open_file(const std::string& path, int flags, mode_t mode = 0);
// Like open_file, but an absent file gives an empty descriptor.
FileDescriptor open_file_if_exists(const std::string& path, int flags);

// Reads or writes all of it, again after EINTR and short counts. read_all throws corrupt at a short
// file.
void write_all(int descriptor, std::string_view bytes, std::string_view path);
std::string read_whole_file(const std::string& path, std::size_t bytes_max);

// Gives the bytes from `offset` on their blocks on the disk, so that writing them, through a
// mapping too, cannot meet a full disk. Returns 0 or the errno; EFBIG, and not the signal SIGXFSZ,
// where the process may not have files that long (RLIMIT_FSIZE).
int allocate_in_file(int descriptor, std::uint64_t offset, std::uint64_t bytes) noexcept;

void sync_file(int descriptor, std::string_view path);
void sync_directory(const std::string& path);

// The folder part of a path; "." if it has none.
std::string parent_directory(const std::string& path);

// Throws Error invalid unless `folder` exists and nobody but its owner (this user or root) can
// replace files in it: not writable for group or others, or sticky. `of_any_owner` leaves the owner
// out of it.
void check_directory_is_safe(const std::string& folder, bool of_any_owner = false);

}  // namespace whycache
