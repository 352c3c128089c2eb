#include "state/write/writer.h"

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
  // It is in its place, and whoever installs or removes holds the lock that we have: one that
  // meant to died before it did.
  mapping_.writable_header().reclaim_generation.fetch_and(~superseded_bit,
                                                          std::memory_order_release);
  std::atomic<std::uint64_t>& active = mapping_.writable_header().writer_active;
  recovered_ = active.load(std::memory_order_acquire) != 0;
  active.store(1, std::memory_order_release);
  if (recovered_) recover(applier_.allocator(), applier_.point_index());
}

StateWriter::~StateWriter() {
  // After a failure the books are no better than a dead writer's. In a forked child all this is
  // the parent's.
  if (failed_ || fork_count_ != fork_count()) return;
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
                "an update failed: the state has to be taken over again: path=" + mapping_.path());
  failed_ = true;
  applied_ = true;
  lease_.writable->touched_pages += estimate_touched_pages(update);
  applier_.apply(update);
  failed_ = false;
}

// About as many as will have to be unmapped.
std::size_t StateWriter::estimate_touched_pages(const Update& update) const {
  std::size_t pages = 2 + (update.erases_all ? info().item_count : 0);
  for (const Change& change : update.changes)
    pages += 4 + (change.key.size() + change.value.size()) / header_page_bytes;
  return pages;
}

// The mapping is not there in a child.
void StateWriter::check_not_forked() const {
  if (fork_count_ != fork_count())
    throw Error(ErrorKind::invalid, "writing began before fork: begin anew in the child");
}

}  // namespace whycache
