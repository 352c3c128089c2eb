// Applies updates to the state file that is in place.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <utility>

#include "state/file/mapping.h"
#include "state/file/state_change.h"
#include "state/file/state_info.h"
#include "state/file/state_lock.h"
#include "state/write/applier.h"
#include "state/write/change_ring_writer.h"
#include "state/write/mapping_policy.h"
#include "state/write/writable_mapping_cache.h"

namespace whycache {

// Applies updates to the state. Holds the writer lock while it exists; no process writes to the
// file without that lock. If an exception leaves apply(), the unfinished update stays invisible,
// and the next writer rolls it back.
class StateWriter {
 public:
  // Takes over the writer lock. The file at options.path is the state, and `current` maps it.
  // Rolls back what a dead writer left. Throws Error(corrupt) if the file is damaged.
  StateWriter(HeldLock writer_lock, const StateOptions& options,
              std::shared_ptr<const Mapping> current, WritableMappingCache& cache,
              ChangeRingKeeper& ring_keeper, MappingPolicy mapping_policy);
  StateWriter(const StateWriter&) = delete;
  StateWriter& operator=(const StateWriter&) = delete;
  ~StateWriter();

  StateInfo info() const;
  LogPosition log_position() const;
  // Applies update applied_id + 1, entirely or not at all. Throws Error(limit) if the state would
  // exceed state_bytes_max or the disk is full, Error(corrupt) if the file is damaged.
  void apply(const Update& update);
  // Adds to the counters of the machine.
  void add_counters(const Counters& added) noexcept;
  // Whether the previous writer had died while writing. The constructor has repaired the state, as
  // it does after an update that failed.
  bool recovered() const { return recovered_; }
  // Returns why recent changes are not kept for feeds, once for each time that this begins.
  std::optional<std::string> take_ring_fault() { return ring_keeper_.take_fault(); }

 private:
  // Returns the mapping to the cache, or unmaps it, when the writer is done with it.
  struct MappingLease {
    ~MappingLease() {
      if (return_to_cache) cache.put(std::move(writable));
    }
    WritableMappingCache& cache;
    std::unique_ptr<WritableMapping> writable;
    bool return_to_cache = false;
  };

  void keep_for_feeds(const Update& update);
  void check_not_forked() const;

  HeldLock lock_;  // released last
  std::shared_ptr<const Mapping> current_;
  MappingLease lease_;  // destroyed after everything that uses the mapping
  Mapping& mapping_;
  OwnChange change_;
  const StateOptions& options_;
  ChangeRingKeeper& ring_keeper_;
  Applier applier_;
  std::uint64_t fork_count_;
  bool recovered_ = false;
  MappingPolicy mapping_policy_;
  bool applied_ = false;
  bool failed_ = false;
};

}  // namespace whycache
