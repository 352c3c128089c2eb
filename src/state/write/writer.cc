#include "state/write/writer.h"

#include <utility>

#include "base/file_system.h"
#include "base/fork_handlers.h"
#include "state/errors.h"
#include "state/file/applied_wait.h"
#include "state/file/machine_counters.h"
#include "state/file/state_file.h"
#include "state/write/recovery.h"

namespace whycache {
namespace {

std::unique_ptr<WritableMapping> take_or_map(const StateOptions& options, const Mapping& current,
                                             WritableMappingCache& cache) {
  std::unique_ptr<WritableMapping> writable = cache.take(current);
  if (!writable) writable = std::make_unique<WritableMapping>(options.path, options.bytes_max);
  const Mapping& mapping = writable->mapping;
  if (mapping.inode() != current.inode() || mapping.device() != current.device())
    throw Error(ErrorKind::corrupt, "state file was replaced while a writer opened it: path=" +
                                        options.path + " (update, then retry)");
  // Storing to a block that the file shares with a copy of it would end the process by SIGBUS on a
  // full disk.
  if (writable->can_share_blocks) {
    if (const int error = unshare_blocks(mapping.descriptor(), mapping.usable_bytes()))
      throw system_error("cannot give the state file blocks of its own", options.path, error);
    writable->last_change = no_change_known;  // that took time, in which another program may write
  }
  return writable;
}

}  // namespace

StateWriter::StateWriter(HeldLock writer_lock, const StateOptions& options,
                         std::shared_ptr<const Mapping> current, WritableMappingCache& cache,
                         ChangeRingKeeper& ring_keeper, MappingPolicy mapping_policy)
    : lock_(std::move(writer_lock)),
      current_(std::move(current)),
      lease_{cache, take_or_map(options, *current_, cache)},
      mapping_(lease_.writable->mapping),
      change_(&lock_.file(), mapping_.descriptor(), lease_.writable->last_change),
      options_(options),
      ring_keeper_(ring_keeper),
      applier_(mapping_, Readers::any, options.bytes_max),
      fork_count_(fork_count()),
      mapping_policy_(mapping_policy) {
  applier_.allocator().set_mapping_of_views(*current_);
  if (const std::string fault = header_fault(mapping_.header().fixed); !fault.empty()) {
    throw corrupt_state("path=" + mapping_.path() + " reason=\"" + fault + "\"");
  }
  // The file is in place, and replacing or removing it takes the writer lock, which we hold. If the
  // bit is set, a process died after setting it and before it replaced the file. Release, like
  // every store of the generation; readers load it with acquire.
  mapping_.writable_header().reclaim_generation.fetch_and(~superseded_bit,
                                                          std::memory_order_release);
  const WriterMark mark = mark_writer_active(mapping_.writable_header());
  recovered_ = mark == WriterMark::active;
  if (mark == WriterMark::none) return;
  current_->release_surplus_pins();  // recovery frees more if there is no view
  try {
    recover(applier_.allocator(), applier_.point_index());
  } catch (...) {
    if (!recovered_) mark_writer_failed(mapping_.writable_header());
    throw;
  }
}

StateWriter::~StateWriter() {
  // In a forked child the lock and the mapping are the parent's.
  if (fork_count_ != fork_count()) return;
  if (failed_) {
    mark_writer_failed(mapping_.writable_header());
  } else {
    clear_writer_active(mapping_.writable_header());
  }
  // Updates before one that failed may have been applied. A writer that died may have stored the
  // applied id, and not woken anybody.
  if (applied_ || recovered_) wake_applied_waiters(mapping_.header());
  lease_.return_to_cache = applied_ && !failed_ && mapping_policy_ == MappingPolicy::cache;
}

StateInfo StateWriter::info() const {
  check_not_forked();
  return state_info(mapping_);
}

LogPosition StateWriter::log_position() const {
  check_not_forked();
  return whycache::log_position(mapping_);
}

void StateWriter::apply(const Update& update) {
  check_not_forked();
  if (failed_)
    throw Error(ErrorKind::invalid,
                "an earlier update failed, and only a new writer can recover the state: path=" +
                    mapping_.path());
  failed_ = true;  // until apply() has returned
  keep_for_feeds(update);
  applied_ = true;
  applier_.apply(update);
  failed_ = false;
}

void StateWriter::add_counters(const Counters& added) noexcept {
  if (fork_count_ == fork_count()) add_machine_counters(mapping_.writable_header(), added);
}

void StateWriter::keep_for_feeds(const Update& update) {
  const PublishedBlock& applied = applier_.published();
  if (update.encoded.empty() || update.id != applied.id + 1) return;
  ring_keeper_.keep(lease_.writable->ring, options_, mapping_.descriptor(),
                    mapping_.header().fixed.state_id, applied, update.id, update.encoded,
                    !applied_);
}

// A child does not inherit the mapping (MADV_DONTFORK).
void StateWriter::check_not_forked() const {
  if (fork_count_ != fork_count())
    throw Error(ErrorKind::invalid,
                "writer was created before fork: create another one in the child");
}

}  // namespace whycache
