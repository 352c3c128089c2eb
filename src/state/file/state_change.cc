#include "state/file/state_change.h"

#include <sys/stat.h>

#include <atomic>

#include "base/hash.h"

namespace whycache {
namespace {

FileChange last_change(int state) noexcept {
  struct stat status;
  return ::fstat(state, &status) == 0 ? change_of(status) : no_change_known;
}

}  // namespace

FileChange change_of(const struct stat& status) noexcept {
  const std::uint64_t words[4] = {status.st_dev, status.st_ino,
                                  static_cast<std::uint64_t>(status.st_ctim.tv_sec),
                                  static_cast<std::uint64_t>(status.st_ctim.tv_nsec)};
  return hash64({reinterpret_cast<const char*>(words), sizeof words});
}

bool has_only_own_changes(const LockFile& locks, int state) noexcept {
  const FileChange noted = locks.header().last_own_change.load(std::memory_order_seq_cst);
  return noted != no_change_known && noted == last_change(state);
}

void note_own_changes(const LockFile& locks, int state) noexcept {
  std::atomic<FileChange>& noted = locks.header().last_own_change;
  FileChange change = last_change(state);
  // Most changes are within one step of the clock, or to pages that have been changed already. A
  // process that stores an older time after this load looks at the file afterwards, as below.
  if (change == noted.load(std::memory_order_seq_cst)) return;
  // Again until nothing has changed meanwhile: otherwise, of two processes that note changes of
  // their own, the slower one could leave the older time.
  while (change != no_change_known) {
    noted.store(change, std::memory_order_seq_cst);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    const FileChange next = last_change(state);
    if (next == change) return;
    change = next;
  }
}

OwnChange::OwnChange(const LockFile* locks, int state, FileChange last_change) noexcept
    : locks_(locks), state_(state) {
  if (locks_ == nullptr) return;
  noted_before_ = locks_->header().last_own_change.load(std::memory_order_seq_cst);
  // If it is another one, a poller may have noted a change since the caller asked.
  was_own_ = (last_change != no_change_known && last_change == noted_before_) ||
             has_only_own_changes(*locks_, state_);
}

OwnChange::~OwnChange() {
  if (locks_ == nullptr) return;
  // Writers and pollers change the file at the same time. If this process met another one between
  // its change and its note, that one has noted meanwhile, or will note both changes.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const FileChange noted = locks_->header().last_own_change.load(std::memory_order_seq_cst);
  if (was_own_ || (noted != noted_before_ && noted != no_change_known))
    note_own_changes(*locks_, state_);
}

}  // namespace whycache
