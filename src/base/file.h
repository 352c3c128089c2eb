// Files by descriptor. A failed system call throws Error.
#pragma once

#include <sys/stat.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include <whycache/error.h>

namespace whycache {

// Owns a file descriptor that the library has opened. Its number is never 0, 1 or 2: if the
// application has closed one of its standard streams, that number is free, and what the application
// prints later must not get into a file of the library.
class FileDescriptor {
 public:
  FileDescriptor() = default;
  // Takes over the result of open(2) and the like. Moves a descriptor 0, 1 or 2 to another number.
  // Is empty, with errno set, if `number` is negative or no other number is free.
  explicit FileDescriptor(int number) noexcept;
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

// Returns whether the descriptor is open and its file is this one.
bool is_open_file(int descriptor, std::uint64_t device, std::uint64_t inode) noexcept;

// Returns the Error for an errno: "cannot open file: path=/x reason="Permission denied"". The kind
// is invalid if the user must act (ENOENT, EACCES, EROFS, ELOOP, ENOTDIR, ENAMETOOLONG ...), limit
// for ENOSPC, EDQUOT, EMFILE, ENFILE, ENOMEM and EFBIG, and unavailable otherwise.
Error system_error(std::string_view what, std::string_view path, int error);

// Returns the path as it is from any working directory; an empty one stays empty. Throws
// Error(invalid) if there is no working directory.
std::string absolute_path(std::string path);

// Calls open(2) with O_CLOEXEC, and retries after EINTR. With O_NONBLOCK, which a path needs that
// may lead to a pipe, also retries for 100 ms while another process shows its sole use of the file
// (process_lock.h). Returns a descriptor, or -1 with errno set.
int open_at_path(const char* path, int flags, mode_t mode = 0) noexcept;
// The same, with O_NOFOLLOW. Throws Error.
FileDescriptor open_file(const std::string& path, int flags, mode_t mode = 0);
// Like open_file(), but returns an empty descriptor if the file is absent.
FileDescriptor open_file_if_exists(const std::string& path, int flags);

// Writes all bytes; continues after EINTR and short writes. Throws Error, also beyond
// RLIMIT_FSIZE, where it raises no SIGXFSZ.
void write_all(int descriptor, std::string_view bytes, std::string_view path);
// Returns the bytes of a file. Throws Error, of kind corrupt if the file exceeds `bytes_max`.
std::string read_whole_file(const std::string& path, std::size_t bytes_max);
// The same for a file that an operator names, which may be a symbolic link, as every file of a
// mounted Kubernetes secret is. Throws Error(invalid) if it is not a regular file: reading a pipe
// would wait.
std::string read_file_of_operator(const std::string& path, std::size_t bytes_max);
// The same for a file that is open at its beginning; `path` is for messages.
std::string read_to_end(const FileDescriptor& file, const std::string& path, std::size_t bytes_max);

// Allocates disk blocks for `bytes` bytes at `offset`, so that writing them cannot fail on a full
// disk, not even through a mapping. Returns 0 or the errno. Beyond RLIMIT_FSIZE it returns EFBIG
// and does not raise SIGXFSZ.
int allocate_in_file(int descriptor, std::uint64_t offset, std::uint64_t bytes) noexcept;

void sync_file(int descriptor, std::string_view path);
void sync_directory(const std::string& path);

// Returns the directory part of a path; "." if it has none.
std::string parent_directory(const std::string& path);

// Returns an absolute path without symbolic links, `.`, `..`, `//` and trailing `/`. The part of it
// that does not exist, or that this process must not see, is only normalized by its text.
std::string canonical_path(const std::string& path);

// Who may own a file that this process is to trust. The owner can change it, and can truncate it,
// which kills processes that have it mapped.
enum class FileOwner : std::uint8_t {
  self_or_root,
  // Also the owner of the directory, unless that is writable for others. No other user can create
  // files there, and the owner of the directory can replace them all anyway.
  owner_of_directory
};
bool is_trusted_owner(const struct stat& file, const std::string& path, FileOwner trusted);
// Throws Error(invalid) if the file, with this status, belongs to anybody else. `what` is for the
// message: "state file".
void check_owner_is_trusted(const struct stat& file, const std::string& path, FileOwner trusted,
                            std::string_view what);

// Removes the permission bits that the file has beyond `mode`. Throws Error(invalid) if this
// process must not.
void restrict_mode(const FileDescriptor& file, mode_t mode, const std::string& path,
                   std::string_view what);

// Throws Error(invalid) unless the directory exists and only its owner can replace files in it: it
// is not writable for group or others, or is sticky. The owner must be this user or root, unless
// `any_owner` is set.
void check_directory_is_safe(const std::string& directory, bool any_owner = false);

}  // namespace whycache
