#include "state/file/lock_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdio>
#include <new>
#include <string_view>
#include <utility>

#include "base/owned_temporary_file.h"
#include "base/process_lock.h"

namespace whycache {
namespace {

constexpr std::size_t page_bytes = 4096;
constexpr LockRange state_locks{0, lock_byte_count};
constexpr char earlier_magic[8] = {'w', 'h', 'y', 'l', 'o', 'c', 'k', '1'};

static_assert(sizeof(LockFileHeader) <= page_bytes);

enum class Content : std::uint8_t {
  whole,
  none,     // what a power cut leaves of a new file: no bytes, or zeros
  earlier,  // of an earlier version of the library
  foreign
};

Content content_of(const FileDescriptor& file, const std::string& path) {
  struct stat status;
  if (::fstat(file.number(), &status) != 0)
    throw system_error("cannot stat lock file", path, errno);
  if (!S_ISREG(status.st_mode)) return Content::foreign;
  // Those of earlier versions had 128 bytes for each of at most 65,536 views, and a page.
  constexpr off_t bytes_max = page_bytes + off_t{128} * 65'536;
  if (status.st_size > bytes_max) return Content::foreign;
  std::string content(static_cast<std::size_t>(status.st_size), '\0');
  const ssize_t got = ::pread(file.number(), content.data(), content.size(), 0);
  if (got < 0) throw system_error("cannot read lock file", path, errno);
  content.resize(static_cast<std::size_t>(got));
  const auto begins_with = [&](const char(&magic)[8]) {
    return content.size() >= page_bytes && content.starts_with(std::string_view(magic, 8));
  };
  if (begins_with(lock_file_magic)) return Content::whole;
  if (begins_with(earlier_magic)) return Content::earlier;
  return content.find_first_not_of('\0') == std::string::npos ? Content::none : Content::foreign;
}

// Never advises deleting the file, which is not whycache's.
Error not_a_lock_file(const std::string& path) {
  return Error(ErrorKind::corrupt,
               "not a whycache lock file: path=" + path +
                   " (choose a state_path that has no other file at PATH.lock)");
}

bool is_same_file(const struct stat& a, const struct stat& b) {
  return a.st_ino == b.st_ino && a.st_dev == b.st_dev;
}

enum class Placement : std::uint8_t {
  beside_others,  // if another process was faster, its file stays
  in_place_of_present
};

// Writes the whole file under another name and then gives it its own, so that no process sees a
// partial one.
void create_lock_file(const std::string& path, std::uint32_t mode, Placement placement) {
  constexpr int attempts_max = 100;
  for (int attempt = 1;; ++attempt) {
    const OwnedTemporaryFile file(path + new_lock_file_suffix);
    const std::string& temporary = file.path();
    if (::fchmod(file.descriptor(), mode) != 0)
      throw system_error("cannot set mode of file", temporary, errno);
    if (const int error = allocate_in_file(file.descriptor(), 0, page_bytes))
      throw system_error("cannot allocate lock file", temporary, error);
    write_all(file.descriptor(), {lock_file_magic, sizeof lock_file_magic}, temporary);
    // Before it has its name, so that no power cut leaves one without its content.
    sync_file(file.descriptor(), temporary);
    // In the lock file, the byte that says that the owner lives is StateLock::writer: a child that
    // is forked now must not hold it. Another process may now take the file for an orphan.
    file.unlock();
    const bool is_placed = placement == Placement::beside_others
                               ? ::link(temporary.c_str(), path.c_str()) == 0 || errno == EEXIST
                               : ::rename(temporary.c_str(), path.c_str()) == 0;
    if (is_placed) return;
    if (errno != ENOENT || attempt == attempts_max)
      throw system_error("cannot create lock file", path, errno);
  }
}

}  // namespace

LockFile::LockFile(std::string path, std::uint32_t mode, FileOwner trusted,
                   const Deadline& deadline)
    : path_(std::move(path)) {
  open_or_create(mode, deadline);
  register_fork_handler(this, [this] {
    // The descriptor so far may have been inherited by a child that no handler told to close it.
    use(open_file(path_, O_RDWR));
  });
  try {
    map(mode, trusted);
  } catch (...) {
    release();
    throw;
  }
}

// Sees to it that a whole lock file is at the path.
void LockFile::open_or_create(std::uint32_t mode, const Deadline& deadline) {
  constexpr int attempts_max = 10;
  for (int attempt = 0; attempt < attempts_max; ++attempt) {
    const FileDescriptor file = open_file_if_exists(path_, O_RDWR | O_NONBLOCK);
    if (!file) {
      create_lock_file(path_, mode, Placement::beside_others);
      continue;
    }
    const Content content = content_of(file, path_);
    if (content == Content::whole) return;
    if (content == Content::foreign) throw not_a_lock_file(path_);
    // No process holds a lock of a file that a power cut has left. One of an earlier version may be
    // in use: as long as its locks are held, its processes cannot write.
    while (!try_lock_range(file.number(), state_locks)) {
      deadline.sleep(std::chrono::milliseconds(1));
      if (!deadline.passed()) continue;
      throw Error(ErrorKind::unavailable,
                  "lock file is held by a process of an earlier version: path=" + path_ +
                      " (end the processes that were started before the upgrade, or retry)");
    }
    struct stat locked;
    struct stat present;
    if (::fstat(file.number(), &locked) == 0 && ::stat(path_.c_str(), &present) == 0 &&
        is_same_file(locked, present))
      create_lock_file(path_, mode, Placement::in_place_of_present);
  }
  throw Error(ErrorKind::unavailable, "lock file is being replaced again and again: path=" + path_);
}

void LockFile::map(std::uint32_t mode, FileOwner trusted) {
  struct stat status;
  if (::fstat(file_.number(), &status) != 0)
    throw system_error("cannot stat lock file", path_, errno);
  device_ = status.st_dev;
  inode_ = status.st_ino;
  if (content_of(file_, path_) != Content::whole)
    throw Error(ErrorKind::unavailable,
                "lock file was replaced while it was opened: path=" + path_ + " (retry)");
  check_owner_is_trusted(status, path_, trusted, "lock file");
  restrict_mode(file_, mode, path_, "lock file");
  // Mapped through a second open file: a mapping keeps the open file that it came from alive, and
  // with it the locks, even in forked children.
  const FileDescriptor mappable = open_file(path_, O_RDWR);
  struct stat mappable_status;
  if (::fstat(mappable.number(), &mappable_status) != 0)
    throw system_error("cannot stat lock file", path_, errno);
  if (!is_same_file(mappable_status, status))
    throw Error(ErrorKind::unavailable,
                "lock file was replaced while it was opened: path=" + path_ + " (retry)");
  void* const mapped =
      ::mmap(nullptr, page_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, mappable.number(), 0);
  if (mapped == MAP_FAILED) throw system_error("cannot map lock file", path_, errno);
  header_ = static_cast<LockFileHeader*>(mapped);
}

LockFile::~LockFile() { release(); }

void LockFile::release() noexcept {
  unregister_fork_handler(this);
  use(FileDescriptor());
  if (header_ != nullptr) ::munmap(header_, page_bytes);
}

// Closes the descriptor so far.
void LockFile::use(FileDescriptor file) noexcept {
  // The application may have closed it, and opened another file with its number.
  if (inode_ != 0 && !is_open_file(file_.number(), device_, inode_)) file_.release();
  descriptor_.store(file.number(), std::memory_order_release);
  file_ = std::move(file);
}

void LockFile::ensure_open() {
  if (is_open_file(descriptor(), device_, inode_)) return;
  const MutexLock lock(open_mutex_);
  if (is_open_file(descriptor(), device_, inode_)) return;
  use(FileDescriptor());
  FileDescriptor again = open_file(path_, O_RDWR | O_NONBLOCK);
  // The locks of another file would have nothing to do with the words mapped here.
  if (!is_open_file(again.number(), device_, inode_)) {
    check_in_place();
    throw Error(ErrorKind::unavailable,
                "lock file was replaced while it was opened: path=" + path_ + " (retry)");
  }
  use(std::move(again));
}

void LockFile::check_in_place() const {
  struct stat present;
  const bool exists = ::stat(path_.c_str(), &present) == 0;
  if (exists && present.st_ino == inode_ && present.st_dev == device_) return;
  if (!exists && errno != ENOENT && errno != ENOTDIR)
    throw system_error("cannot stat lock file", path_, errno);
  throw Error(ErrorKind::corrupt, "lock file was removed or replaced while in use: path=" + path_ +
                                      " (close every cache on this state and open it again)");
}

void LockFile::after_fork_in_child() noexcept {
  new (&open_mutex_) Mutex;  // another thread of the parent may have held it
  // The locks on the inherited open file are the parent's: close it without unlocking them.
  FileDescriptor own(open_at_path(path_.c_str(), O_RDWR | O_NONBLOCK | O_NOFOLLOW));
  if (!is_open_file(own.number(), device_, inode_)) own.close();
  use(std::move(own));
}

}  // namespace whycache
