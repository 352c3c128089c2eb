#include "base/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <ctime>
#include <filesystem>
#include <system_error>

#include "base/signals.h"

namespace whycache {

FileDescriptor::FileDescriptor(int number) noexcept : number_(number) {
  if (number < 0 || number > STDERR_FILENO) return;
  number_ = ::fcntl(number, F_DUPFD_CLOEXEC, STDERR_FILENO + 1);
  // EINVAL: the limit on descriptors allows none from 3 on.
  const int error = errno == EINVAL ? EMFILE : errno;
  ::close(number);
  errno = error;
}

FileDescriptor& FileDescriptor::operator=(FileDescriptor&& other) noexcept {
  if (this != &other) {
    close();
    number_ = other.release();
  }
  return *this;
}

int FileDescriptor::release() noexcept {
  const int number = number_;
  number_ = -1;
  return number;
}

void FileDescriptor::close() noexcept {
  if (number_ >= 0) ::close(release());
}

namespace {

ErrorKind error_kind_for_errno(int error) {
  switch (error) {
    case ENOENT:
    case EACCES:
    case EPERM:
    case EROFS:
    case ELOOP:
    case ENOTDIR:
    case EISDIR:
    case ENAMETOOLONG:
    case EINVAL:
    case ENXIO: return ErrorKind::invalid;
    case ENOSPC:
    case EDQUOT:
    case EMFILE:
    case ENFILE:
    case ENOMEM:
    case EFBIG: return ErrorKind::limit;
    default: return ErrorKind::unavailable;
  }
}

}  // namespace

bool is_open_file(int descriptor, std::uint64_t device, std::uint64_t inode) noexcept {
  struct stat status;
  return descriptor >= 0 && ::fstat(descriptor, &status) == 0 && status.st_dev == device &&
         status.st_ino == inode;
}

Error system_error(std::string_view what, std::string_view path, int error) {
  std::string message(what);
  message += ": path=";
  message += path;
  message += " reason=\"";
  message +=
      error == ELOOP ? "a symbolic link is in its place" : std::system_category().message(error);
  message += '"';
  return Error(error_kind_for_errno(error), message, error);
}

std::string absolute_path(std::string path) {
  if (path.empty() || path.front() == '/') return path;
  std::error_code failed;
  const std::filesystem::path directory = std::filesystem::current_path(failed);
  if (failed) throw system_error("no working directory for a relative path", path, failed.value());
  return directory.native() + (directory == "/" ? "" : "/") + path;
}

int open_at_path(const char* path, int flags, mode_t mode) noexcept {
  constexpr int attempts_max = 100;
  for (int attempt = 1;;) {
    const int number = ::open(path, flags | O_CLOEXEC, mode);
    if (number >= 0) return number;
    if (errno == EINTR) continue;
    if (errno != EWOULDBLOCK || attempt++ == attempts_max) return number;
    constexpr timespec pause{0, 1'000'000};
    ::nanosleep(&pause, nullptr);
  }
}

FileDescriptor open_file(const std::string& path, int flags, mode_t mode) {
  FileDescriptor file(open_at_path(path.c_str(), flags | O_NOFOLLOW, mode));
  if (!file) throw system_error("cannot open file", path, errno);
  return file;
}

FileDescriptor open_file_if_exists(const std::string& path, int flags) {
  FileDescriptor file(open_at_path(path.c_str(), flags | O_NOFOLLOW));
  if (!file && errno != ENOENT) throw system_error("cannot open file", path, errno);
  return file;
}

void write_all(int descriptor, std::string_view bytes, std::string_view path) {
  const BlockedFileSizeSignal no_signal;
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor, bytes.data(), bytes.size());
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw system_error("cannot write file", path, errno);
    bytes.remove_prefix(static_cast<std::size_t>(written));
  }
}

std::string read_whole_file(const std::string& path, std::size_t bytes_max) {
  return read_to_end(open_file(path, O_RDONLY), path, bytes_max);
}

std::string read_file_of_operator(const std::string& path, std::size_t bytes_max) {
  const FileDescriptor file(open_at_path(path.c_str(), O_RDONLY | O_NONBLOCK | O_NOCTTY));
  if (!file) throw system_error("cannot open file", path, errno);
  struct stat status;
  if (::fstat(file.number(), &status) != 0) throw system_error("cannot stat file", path, errno);
  if (!S_ISREG(status.st_mode)) throw Error(ErrorKind::invalid, "not a regular file: path=" + path);
  return read_to_end(file, path, bytes_max);
}

std::string read_to_end(const FileDescriptor& file, const std::string& path,
                        std::size_t bytes_max) {
  std::string bytes;
  std::array<char, 65536> buffer;
  for (;;) {
    const ssize_t got = ::read(file.number(), buffer.data(), buffer.size());
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) throw system_error("cannot read file", path, errno);
    if (got == 0) return bytes;
    bytes.append(buffer.data(), static_cast<std::size_t>(got));
    if (bytes.size() > bytes_max) {
      throw Error(ErrorKind::corrupt,
                  "file is too long: path=" + path + " bytes_max=" + std::to_string(bytes_max));
    }
  }
}

int allocate_in_file(int descriptor, std::uint64_t offset, std::uint64_t bytes) noexcept {
  const BlockedFileSizeSignal no_signal;
  int error;
  do {
    error = ::posix_fallocate(descriptor, static_cast<off_t>(offset), static_cast<off_t>(bytes));
  } while (error == EINTR);
  return error;
}

void sync_file(int descriptor, std::string_view path) {
  if (::fdatasync(descriptor) != 0) throw system_error("cannot sync file", path, errno);
}

void sync_directory(const std::string& path) {
  const FileDescriptor directory = open_file(path, O_RDONLY | O_DIRECTORY);
  if (::fsync(directory.number()) != 0) throw system_error("cannot sync directory", path, errno);
}

std::string parent_directory(const std::string& path) {
  const std::size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

std::string canonical_path(const std::string& path) {
  std::error_code failed;
  std::filesystem::path canonical = std::filesystem::weakly_canonical(path, failed);
  if (failed) canonical = std::filesystem::path(path).lexically_normal();
  std::string text = canonical.native();
  while (text.size() > 1 && text.back() == '/') text.pop_back();
  return text;
}

bool is_trusted_owner(const struct stat& file, const std::string& path, FileOwner trusted) {
  if (file.st_uid == ::geteuid() || file.st_uid == 0) return true;
  if (trusted == FileOwner::self_or_root) return false;
  const std::string directory = parent_directory(path);
  struct stat status;
  if (::stat(directory.c_str(), &status) != 0)
    throw system_error("cannot use directory", directory, errno);
  return file.st_uid == status.st_uid && (status.st_mode & (S_IWGRP | S_IWOTH)) == 0;
}

void check_owner_is_trusted(const struct stat& file, const std::string& path, FileOwner trusted,
                            std::string_view what) {
  if (is_trusted_owner(file, path, trusted)) return;
  throw Error(ErrorKind::invalid,
              std::string(what) + " belongs to another user: path=" + path +
                  " owner=" + std::to_string(file.st_uid) +
                  (trusted == FileOwner::owner_of_directory
                       ? " (choose a path in a directory that belongs to this user, and that only "
                         "its owner can write to)"
                       : " (choose another path, or give state_mode a group)"),
              EPERM);
}

void restrict_mode(const FileDescriptor& file, mode_t mode, const std::string& path,
                   std::string_view what) {
  struct stat status;
  if (::fstat(file.number(), &status) != 0) throw system_error("cannot stat file", path, errno);
  constexpr mode_t permissions = 0777;
  if ((status.st_mode & permissions & ~mode) == 0) return;
  if (::fchmod(file.number(), status.st_mode & mode) == 0) return;
  const auto octal = [](mode_t bits) {
    std::array<char, 16> text;
    std::snprintf(text.data(), text.size(), "%04o", static_cast<unsigned>(bits));
    return std::string(text.data());
  };
  const int error = errno;
  throw Error(ErrorKind::invalid,
              std::string(what) + " has more permissions than state_mode allows: path=" + path +
                  " mode=" + octal(status.st_mode & permissions) + " state_mode=" + octal(mode) +
                  " reason=\"" + std::system_category().message(error) +
                  "\" (have its owner chmod it, or give the state_mode that the owner gives)",
              error);
}

void check_directory_is_safe(const std::string& directory, bool any_owner) {
  struct stat status;
  if (::stat(directory.c_str(), &status) != 0)
    throw system_error("cannot use directory", directory, errno);
  if (!S_ISDIR(status.st_mode)) throw system_error("cannot use directory", directory, ENOTDIR);
  const bool writable_for_others = (status.st_mode & (S_IWGRP | S_IWOTH)) != 0;
  if (writable_for_others && (status.st_mode & S_ISVTX) == 0) {
    throw Error(ErrorKind::invalid,
                "directory is writable for others, who could replace files in it: path=" +
                    directory + " (chmod go-w it, or choose another directory)",
                EPERM);
  }
  if (!any_owner && status.st_uid != ::geteuid() && status.st_uid != 0) {
    throw Error(ErrorKind::invalid,
                "directory belongs to another user: path=" + directory +
                    " owner=" + std::to_string(status.st_uid),
                EPERM);
  }
}

}  // namespace whycache
