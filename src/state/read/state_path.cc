#include "state/read/state_path.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <utility>

namespace whycache {
namespace {

// The seals of the spare descriptor's empty file tell it from files of the application: that may
// have closed the descriptor, and opened another with its number.
constexpr int spare_seals = F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE;

bool is_spare(int descriptor) {
  struct stat status;
  return descriptor >= 0 && ::fstat(descriptor, &status) == 0 && status.st_size == 0 &&
         ::fcntl(descriptor, F_GET_SEALS) == spare_seals;
}

}  // namespace

StatePath::StatePath(std::string path) : path_(std::move(path)) {
  if (::stat("/", &root_) != 0) root_ = {};
  keep_spares();
}

std::optional<struct stat> StatePath::find() const {
  struct stat status;
  if (::lstat(path_.c_str(), &status) == 0) return status;
  const int error = errno;
  struct stat root;
  const bool root_is_known = root_.st_ino != 0 && ::stat("/", &root) == 0;
  if (root_is_known && (root.st_dev != root_.st_dev || root.st_ino != root_.st_ino)) {
    throw Error(ErrorKind::unavailable,
                "cannot look for state file, since the process has changed its root directory: "
                "path=" +
                    path_,
                error);
  }
  if (error == ENOENT) return std::nullopt;
  throw system_error("cannot look for state file", path_, error);
}

FileDescriptor StatePath::open() {
  // Nonblocking: the file may be a pipe.
  const auto try_to_open = [this] {
    return FileDescriptor(open_at_path(path_.c_str(), O_RDONLY | O_NONBLOCK | O_NOFOLLOW));
  };
  FileDescriptor file = try_to_open();
  int error = errno;
  if (!file && (error == EMFILE || error == ENFILE) && release_spare()) {
    file = try_to_open();
    error = errno;
  }
  if (!file && error != ENOENT) throw system_error("cannot open state file", path_, error);
  keep_spares();
  return file;
}

void StatePath::keep_spares() noexcept {
  for (std::atomic<int>& spare : spares_) {
    if (is_spare(spare.load(std::memory_order_relaxed))) continue;
    FileDescriptor file(
        ::memfd_create("whycache_spare_descriptor", MFD_CLOEXEC | MFD_ALLOW_SEALING));
    if (!file || ::fcntl(file.number(), F_ADD_SEALS, spare_seals) != 0) return;
    // A number that is no longer ours is forgotten, not closed.
    const int previous = spare.exchange(file.release(), std::memory_order_acq_rel);
    if (is_spare(previous)) ::close(previous);
  }
}

bool StatePath::release_spare() noexcept {
  for (std::atomic<int>& spare : spares_) {
    const int number = spare.exchange(-1, std::memory_order_acq_rel);
    if (is_spare(number) && ::close(number) == 0) return true;
  }
  return false;
}

}  // namespace whycache
