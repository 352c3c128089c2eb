#include "base/owned_temporary_file.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <memory>
#include <utility>

#include "base/fork_handlers.h"
#include "base/process_lock.h"
#include "base/random.h"

namespace whycache {
namespace {

constexpr std::uint64_t owner_byte = 0;

}  // namespace

// Between open() and the lock, another process may take the file for an orphan and remove it. Then
// the file has no name any more, or is about to lose it: create another one.
OwnedTemporaryFile::OwnedTemporaryFile(const std::string& prefix) : fork_count_(fork_count()) {
  constexpr int attempts_max = 100;
  for (int attempts = 0; attempts < attempts_max; ++attempts) {
    token_ = random_uuid();
    path_ = prefix + to_string(token_);
    file_ = open_file(path_, O_RDWR | O_CREAT | O_EXCL, 0600);
    try {
      if (try_lock()) return;
    } catch (...) {
      ::unlink(path_.c_str());
      throw;
    }
    ::unlink(path_.c_str());
  }
  throw Error(ErrorKind::unavailable, "other processes remove new temporary files: path=" + prefix +
                                          " attempts=" + std::to_string(attempts_max) +
                                          " (retry later)");
}

OwnedTemporaryFile::OwnedTemporaryFile(OwnedTemporaryFile&& other) noexcept
    : token_(other.token_),
      path_(std::exchange(other.path_, {})),
      file_(std::move(other.file_)),
      fork_count_(other.fork_count_) {}

OwnedTemporaryFile::~OwnedTemporaryFile() {
  if (!path_.empty() && fork_count_ == fork_count()) ::unlink(path_.c_str());
}

FileDescriptor OwnedTemporaryFile::duplicate_descriptor() const {
  FileDescriptor duplicate(::fcntl(file_.number(), F_DUPFD_CLOEXEC, 0));
  if (!duplicate) throw system_error("cannot duplicate descriptor of file", path_, errno);
  return duplicate;
}

void OwnedTemporaryFile::write_durably(std::string_view bytes) {
  write_all(file_.number(), bytes, path_);
  sync_file(file_.number(), path_);
}

void OwnedTemporaryFile::unlock() const noexcept { unlock_byte(file_.number(), owner_byte); }

// Returns false if another process has the lock, or has removed the file before we got it.
bool OwnedTemporaryFile::try_lock() const {
  struct stat status;
  return try_lock_byte(file_.number(), owner_byte) && ::fstat(file_.number(), &status) == 0 &&
         status.st_nlink > 0;
}

OrphanLock::OrphanLock(const std::string& path) {
  try {
    // O_NONBLOCK: opening a pipe of this name would block forever.
    file_ = open_file_if_exists(path, O_RDWR | O_NONBLOCK);
    is_orphan_ = !file_ || try_lock_byte(file_.number(), owner_byte);
  } catch (const Error& error) {
    if (error.system_error() != EACCES) throw;
  }
}

void remove_orphans(const std::string& prefix) {
  const std::string parent = parent_directory(prefix) + "/";
  const std::string name_prefix = prefix.substr(prefix.rfind('/') + 1);
  FileDescriptor directory(::open(parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!directory) return;
  const std::unique_ptr<DIR, int (*)(DIR*)> entries(::fdopendir(directory.number()), ::closedir);
  if (!entries) return;
  directory.release();
  while (const dirent* const entry = ::readdir(entries.get())) {
    const std::string name = entry->d_name;
    if (!name.starts_with(name_prefix)) continue;
    try {
      const std::string path = std::string(parent).append(name);
      const OrphanLock orphan(path);  // held until the file is removed
      if (orphan) ::unlink(path.c_str());
    } catch (const Error&) {
    }
  }
}

}  // namespace whycache
