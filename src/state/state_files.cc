#include "state/state_files.h"

#include <fcntl.h>

#include <cerrno>
#include <cstdint>
#include <new>
#include <string>

#include "base/file.h"
#include "state/file/state_change.h"
#include "state/file/state_file.h"
#include "state/file/use_locks.h"

namespace whycache {
namespace {

// Returns the mode of the lock file: only those who may write to the state can open it, for
// reading, too. Who can open it can hold a lock that keeps others from writing.
std::uint32_t lock_file_mode(std::uint32_t state_mode) {
  const std::uint32_t writers = state_mode & 0222;
  return writers | writers << 1;
}

// Whether an error of the lock file means that this process may only read the state. An error of
// another call, which can have the same reason, or one that passes, does not.
bool may_only_read(const Error& error, const std::string& lock_path) {
  const int reason = error.system_error();
  if (reason != EACCES && reason != EROFS) return false;
  return !FileDescriptor(open_at_path(lock_path.c_str(), O_RDWR | O_NONBLOCK | O_NOFOLLOW));
}

}  // namespace

StateFiles::StateFiles(const StateOptions& options,
                       std::atomic<const DirectoryCache*>& directory_cache)
    : current_file(options, directory_cache, [this] {
        mapping_cache.unmap();  // it is the old file's
        trust_current_file();
      }) {}

void StateFiles::open_lock_file(const StateOptions& options, const Deadline& deadline) {
  const std::string path = options.path + ".lock";
  try {
    if (options.read_only)
      throw Error(ErrorKind::invalid, "state is open for reads alone: path=" + options.path);
    lock_file = std::make_unique<LockFile>(path, lock_file_mode(mode_of_state(options)),
                                           trusted_owner(options), deadline);
  } catch (const Error& error) {
    if (!options.read_only && !may_only_read(error, path)) throw;
    lock_file_error = error;
  }
}

void StateFiles::trust_current_file() const {
  const std::shared_ptr<Mapping> mapping = current_file.mapping();
  if (!mapping || lock_file == nullptr) return;
  const int descriptor = mapping->descriptor();
  if (has_only_own_changes(*lock_file, descriptor) || is_trusted_elsewhere(descriptor))
    mark_trusted(descriptor);
}

LockFile& StateFiles::require_lock_file() const {
  if (lock_file == nullptr) throw Error(*lock_file_error);
  return *lock_file;
}

void StateFiles::after_fork_in_child() noexcept {
  // Another thread of the parent may have held them. The locks they guard are the parent's.
  for (std::timed_mutex& mutex : lock_mutexes) new (&mutex) std::timed_mutex;
}

}  // namespace whycache
