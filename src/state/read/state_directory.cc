#include "state/read/state_directory.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>

#include "base/file_system.h"

namespace whycache {
namespace {

// Nonblocking: the file may be a pipe.
constexpr int open_flags = O_RDONLY | O_NONBLOCK | O_CLOEXEC | O_NOFOLLOW;

}  // namespace

StateDirectory::StateDirectory(const std::string& path)
    : path_(path),
      name_(path.substr(path.rfind('/') + 1)),
      directory_(::open(parent_directory(path).c_str(), O_PATH | O_DIRECTORY | O_CLOEXEC)) {
  if (!directory_ || ::fstat(directory_.number(), &status_) != 0) return;
  refill_spare();
}

std::optional<struct stat> StateDirectory::find() const {
  struct stat status;
  if (::lstat(path_.c_str(), &status) == 0) return status;
  const int error = errno;
  if (is_of_directory(directory_)) {
    if (::fstatat(directory_.number(), name_.c_str(), &status, AT_SYMLINK_NOFOLLOW) == 0)
      return status;
    if (errno == ENOENT) return std::nullopt;
  }
  if (error == ENOENT) return std::nullopt;
  throw system_error("cannot look for state file", path_, error);
}

FileDescriptor StateDirectory::open() {
  const auto try_to_open = [this] {
    FileDescriptor file(::open(path_.c_str(), open_flags));
    const int error = errno;
    if (file || !is_of_directory(directory_) || error == EMFILE || error == ENFILE) return file;
    file = FileDescriptor(::openat(directory_.number(), name_.c_str(), open_flags));
    if (!file && errno == ENOENT) errno = error;
    return file;
  };
  FileDescriptor file = try_to_open();
  if (!file && (errno == EMFILE || errno == ENFILE) && is_of_directory(spare_)) {
    spare_.close();
    file = try_to_open();
  }
  if (!file && errno != ENOENT) throw system_error("cannot open state file", path_, errno);
  if (!is_of_directory(spare_)) refill_spare();
  return file;
}

bool StateDirectory::is_of_directory(const FileDescriptor& descriptor) const noexcept {
  struct stat status;
  return descriptor && ::fstat(descriptor.number(), &status) == 0 &&
         status.st_dev == status_.st_dev && status.st_ino == status_.st_ino;
}

void StateDirectory::refill_spare() noexcept {
  spare_.release();  // it is empty, or the application's now
  if (is_of_directory(directory_))
    spare_ = FileDescriptor(::fcntl(directory_.number(), F_DUPFD_CLOEXEC, 0));
}

}  // namespace whycache
