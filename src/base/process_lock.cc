#include "base/process_lock.h"

#include <fcntl.h>

#include <algorithm>
#include <cerrno>
#include <csignal>

#include "base/file.h"

namespace whycache {
namespace {

struct flock flock_for(short type, const LockRange& range) {
  struct flock lock = {};
  lock.l_type = type;
  lock.l_whence = SEEK_SET;
  lock.l_start = static_cast<off_t>(range.begin);
  lock.l_len = static_cast<off_t>(range.end - range.begin);
  return lock;
}

struct flock flock_for_byte(short type, std::uint64_t offset) {
  return flock_for(type, {offset, offset + 1});
}

bool try_lock(int descriptor, struct flock lock) {
  for (;;) {
    if (::fcntl(descriptor, F_OFD_SETLK, &lock) == 0) return true;
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EACCES) return false;
    throw system_error("cannot lock byte", "lock file", errno);
  }
}

bool try_unlock(int descriptor, const LockRange& range) noexcept {
  struct flock lock = flock_for(F_UNLCK, range);
  int result;
  do {
    result = ::fcntl(descriptor, F_OFD_SETLK, &lock);
  } while (result != 0 && errno == EINTR);
  return result == 0;
}

}  // namespace

bool try_lock_byte(int descriptor, std::uint64_t offset) {
  return try_lock(descriptor, flock_for_byte(F_WRLCK, offset));
}

bool try_lock_byte_shared(int descriptor, std::uint64_t offset) {
  return try_lock(descriptor, flock_for_byte(F_RDLCK, offset));
}

void unlock_byte(int descriptor, std::uint64_t offset) noexcept {
  unlock_range(descriptor, {offset, offset + 1});
}

bool is_byte_locked(int descriptor, std::uint64_t offset) {
  return find_locked(descriptor, {offset, offset + 1}).has_value();
}

bool try_lock_range(int descriptor, const LockRange& range) {
  return try_lock(descriptor, flock_for(F_WRLCK, range));
}

bool try_unlock_byte(int descriptor, std::uint64_t offset) noexcept {
  return try_unlock(descriptor, {offset, offset + 1});
}

void unlock_range(int descriptor, const LockRange& range) noexcept {
  static_cast<void>(try_unlock(descriptor, range));
}

std::optional<LockRange> find_locked(int descriptor, const LockRange& range) {
  struct flock lock = flock_for(F_WRLCK, range);
  if (::fcntl(descriptor, F_OFD_GETLK, &lock) != 0)
    throw system_error("cannot query lock", "lock file", errno);
  if (lock.l_type == F_UNLCK) return std::nullopt;
  // It may begin before the range, and end behind it. A length of 0 means that it has no end.
  const auto begin = static_cast<std::uint64_t>(lock.l_start);
  const std::uint64_t end =
      lock.l_len == 0 ? range.end : begin + static_cast<std::uint64_t>(lock.l_len);
  return LockRange{std::max(begin, range.begin), std::min(end, range.end)};
}

SoleUse::SoleUse(int descriptor) noexcept : descriptor_(descriptor) {
  // A process that opens the file has a signal sent to this one. SIGIO would end it. SIGURG is
  // ignored by default, and is not sent once the descriptor has no owner.
  is_proven_ =
      ::fcntl(descriptor, F_SETSIG, SIGURG) == 0 && ::fcntl(descriptor, F_SETLEASE, F_WRLCK) == 0;
  if (is_proven_) ::fcntl(descriptor, F_SETOWN, 0);
}

SoleUse::~SoleUse() {
  if (is_proven_) ::fcntl(descriptor_, F_SETLEASE, F_UNLCK);
}

}  // namespace whycache
