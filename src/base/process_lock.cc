#include "base/process_lock.h"

#include <fcntl.h>

#include <cerrno>

#include "base/file.h"

namespace whycache {
namespace {

struct flock flock_for_byte(short type, std::uint64_t offset) {
  struct flock lock = {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = static_cast<off_t>(offset);
  lock.l_len = 1;
  return lock;
}

bool try_lock(int descriptor, struct flock lock) {
  for (;;) {
    if (::fcntl(descriptor, F_OFD_SETLK, &lock) == 0) return true;
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EACCES) return false;
    throw system_error("cannot lock byte", "lock file", errno);
  }
}

}  // namespace

bool try_lock_byte(int descriptor, std::uint64_t offset) {
  return try_lock(descriptor, flock_for_byte(F_WRLCK, offset));
}

bool try_lock_byte_shared(int descriptor, std::uint64_t offset) {
  return try_lock(descriptor, flock_for_byte(F_RDLCK, offset));
}

void unlock_byte(int descriptor, std::uint64_t offset) noexcept {
  struct flock lock = flock_for_byte(F_UNLCK, offset);
  while (::fcntl(descriptor, F_OFD_SETLK, &lock) != 0 && errno == EINTR) {
  }
}

bool is_byte_locked(int descriptor, std::uint64_t offset) {
  struct flock lock = flock_for_byte(F_WRLCK, offset);
  if (::fcntl(descriptor, F_OFD_GETLK, &lock) != 0)
    throw system_error("cannot query lock", "lock file", errno);
  return lock.l_type != F_UNLCK;
}

}  // namespace whycache
