#include "state/file/state_change.h"

#include <sys/stat.h>

#include <atomic>

#include "base/hash.h"

namespace whycache {
namespace {

constexpr std::uint64_t nothing_noted = 0;

// Returns a number for the last change of this file; nothing_noted if it is not known.
std::uint64_t last_change(int state) noexcept {
  struct stat status;
  if (::fstat(state, &status) != 0) return nothing_noted;
  const std::uint64_t words[4] = {status.st_dev, status.st_ino,
                                  static_cast<std::uint64_t>(status.st_ctim.tv_sec),
                                  static_cast<std::uint64_t>(status.st_ctim.tv_nsec)};
  return hash64({reinterpret_cast<const char*>(words), sizeof words});
}

}  // namespace

bool has_only_own_changes(const LockFile& locks, int state) noexcept {
  const std::uint64_t noted = locks.header().last_own_change.load(std::memory_order_seq_cst);
  return noted != nothing_noted && noted == last_change(state);
}

void note_own_changes(const LockFile& locks, int state) noexcept {
  std::atomic<std::uint64_t>& noted = locks.header().last_own_change;
  // Again until nothing has changed meanwhile: otherwise, of two processes that note changes of
  // their own, the slower one could leave the older time.
  for (std::uint64_t change = last_change(state); change != nothing_noted;) {
    noted.store(change, std::memory_order_seq_cst);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    const std::uint64_t next = last_change(state);
    if (next == change) return;
    change = next;
  }
}

OwnChange::OwnChange(const LockFile* locks, int state) noexcept : locks_(locks), state_(state) {
  if (locks_ == nullptr) return;
  noted_before_ = locks_->header().last_own_change.load(std::memory_order_seq_cst);
  was_own_ = has_only_own_changes(*locks_, state_);
}

OwnChange::~OwnChange() {
  if (locks_ == nullptr) return;
  // Writers and pollers change the file at the same time. If this process met another one between
  // its change and its note, that one has noted meanwhile, or will note both changes.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const std::uint64_t noted = locks_->header().last_own_change.load(std::memory_order_seq_cst);
  if (was_own_ || (noted != noted_before_ && noted != nothing_noted))
    note_own_changes(*locks_, state_);
}

}  // namespace whycache
