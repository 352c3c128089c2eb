#include "state/write/writer.h"

#include <atomic>
#include <cassert>
#include <utility>

#include "base/fork_handlers.h"
#include "state/errors.h"
#include "state/file/state_file.h"
#include "state/write/recovery.h"

namespace whycache {
namespace {

std::unique_ptr<WritableMapping> take_or_map(const StateOptions& options, const Mapping& current,
                                             WritableMappingCache& cache) {
  if (std::unique_ptr<WritableMapping> cached = cache.take(current)) return cached;
  return std::make_unique<WritableMapping>(options.path, options.bytes_max);
}

// Stores that a writer is at work, and returns whether the previous one died at work.
//
// The next writer must find the mark set if this one is killed after any of its changes. The kernel
// kills a thread between two instructions: earlier stores become visible to other processes, later
// ones do not happen. So only the order of the instructions counts, which the signal fence keeps. A
// release store would not: it lets the compiler move later stores in front of it. No machine fence
// is needed, for the next writer takes the writer lock, which the kernel releases after all stores
// of the dead process.
bool mark_active(std::atomic<std::uint64_t>& writer_active) {
  // Acquire: pairs with the release store of ~StateWriter().
  const bool previous_died = writer_active.load(std::memory_order_acquire) != 0;
  writer_active.store(1, std::memory_order_relaxed);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  return previous_died;
}

}  // namespace

StateWriter::StateWriter(HeldLock writer_lock, const StateOptions& options, LockFile& locks,
                         const Mapping& current, WritableMappingCache& cache,
                         MappingPolicy mapping_policy)
    : lock_(std::move(writer_lock)),
      lease_{cache, take_or_map(options, current, cache)},
      mapping_(lease_.writable->mapping),
      applier_(mapping_, &locks, options.bytes_max),
      fork_count_(fork_count()),
      mapping_policy_(mapping_policy) {
  if (const std::string fault = header_fault(mapping_.header().fixed); !fault.empty()) {
    throw corrupt_state("path=" + mapping_.path() + " reason=\"" + fault + "\"");
  }
  // The file is in place, and replacing or removing it takes the writer lock, which we hold. If the
  // bit is set, a process died after setting it and before it replaced the file. Release, like
  // every store of the generation; readers load it with acquire.
  mapping_.writable_header().reclaim_generation.fetch_and(~superseded_bit,
                                                          std::memory_order_release);
  recovered_ = mark_active(mapping_.writable_header().writer_active);
  if (recovered_) recover(applier_.allocator(), applier_.point_index());
}

StateWriter::~StateWriter() {
  // After a failure the allocator state is as inexact as that of a dead writer. In a forked child
  // the lock and the mapping are the parent's.
  if (failed_ || fork_count_ != fork_count()) return;
  // Release: pairs with the acquire load in mark_active(), and no change moves behind it.
  mapping_.writable_header().writer_active.store(0, std::memory_order_release);
  lease_.return_to_cache = applied_ && mapping_policy_ == MappingPolicy::cache;
}

StateInfo StateWriter::info() const {
  check_not_forked();
  return state_info(mapping_);
}

void StateWriter::apply(const Update& update) {
  check_not_forked();
  if (failed_)
    throw Error(ErrorKind::invalid,
                "an earlier update failed, and only a new writer can recover the state: path=" +
                    mapping_.path());
  failed_ = true;  // until apply() has returned
  applied_ = true;
  lease_.writable->touched_pages += estimate_touched_pages(update);
  applier_.apply(update);
  failed_ = false;
}

// Roughly the number of pages that munmap() will have to visit.
std::size_t StateWriter::estimate_touched_pages(const Update& update) const {
  std::size_t pages = 2 + (update.erases_all ? info().item_count : 0);
  for (const Change& change : update.changes)
    pages += 4 + (change.key.size() + change.value.size()) / header_page_bytes;
  return pages;
}

// A child does not inherit the mapping (MADV_DONTFORK).
void StateWriter::check_not_forked() const {
  if (fork_count_ != fork_count())
    throw Error(ErrorKind::invalid,
                "writer was created before fork: create another one in the child");
}

}  // namespace whycache
