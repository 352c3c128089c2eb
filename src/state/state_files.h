// The files of a State, as this process has them: the lock file and the locks between threads, the
// mapping for reads, and the one for writes with its ring of recent changes.
#pragma once

#include <array>
#include <atomic>
#include <memory>
#include <mutex>
#include <optional>

#include <whycache/error.h>

#include "base/clock.h"
#include "base/fork_handlers.h"
#include "state/file/lock_file.h"
#include "state/file/state_info.h"
#include "state/file/state_lock.h"
#include "state/read/current_file.h"
#include "state/write/change_ring_writer.h"
#include "state/write/writable_mapping_cache.h"

namespace whycache {

class StateFiles final : public ForkHandler {
 public:
  // As CurrentFile. Nothing is opened yet.
  StateFiles(const StateOptions& options, std::atomic<const DirectoryCache*>& directory_cache);

  // Leaves lock_file null if this process may only read, and throws other errors.
  void open_lock_file(const StateOptions& options, const Deadline& deadline);
  // Throws lock_file_error if there is no lock file.
  LockFile& require_lock_file() const;
  // Another process then need not verify the file if this one dies at work (state_change.h).
  void trust_current_file() const;

  void after_fork_in_child() noexcept override;

  // Null if this process may only read; then the error that says so.
  std::unique_ptr<LockFile> lock_file;
  std::optional<Error> lock_file_error;
  mutable std::array<std::timed_mutex, state_lock_count> lock_mutexes;
  WritableMappingCache mapping_cache;
  ChangeRingKeeper ring_keeper;  // used only under the writer lock
  CurrentFile current_file;
};

}  // namespace whycache
