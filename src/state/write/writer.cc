#include "state/write/writer.h"

#include "base/fork_handlers.h"
#include "state/file/state_file.h"
#include "state/write/applier.h"
#include "state/write/recovery.h"

namespace whycache {
namespace {

class FileWriter final : public StateWriter {
 public:
  FileWriter(HeldLock writer_lock, const StateOptions& options, LockFile& locks,
             const Mapping& present, WritableMappingCache& kept, MappingPolicy after)
      : lock_(std::move(writer_lock)),
        lease_{kept, take_or_map(options, present, kept)},
        mapping_(lease_.writable->mapping),
        applier_(mapping_, &locks, options.bytes_max),
        fork_count_(fork_count()),
        mapping_policy_(after) {
    if (const std::string fault = header_fault(mapping_.header().fixed); !fault.empty()) {
      throw Error(ErrorKind::corrupt, "state file damaged: path=" + mapping_.path() + " reason=\"" +
                                          fault + "\" (delete the state file)");
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

  ~FileWriter() override {
    // After a failure the books are no better than a dead writer's. In a forked child all this is
    // the parent's.
    if (failed_ || fork_count_ != fork_count()) return;
    mapping_.writable_header().writer_active.store(0, std::memory_order_release);
    lease_.return_to_cache = applied_ && mapping_policy_ == MappingPolicy::cache;
  }

  StateInfo info() const override {
    check_not_forked();
    return state_info(mapping_);
  }

  void apply(const Update& update) override {
    check_not_forked();
    if (failed_)
      throw Error(
          ErrorKind::invalid,
          "an update failed: the state has to be taken over again: path=" + mapping_.path());
    failed_ = true;
    applied_ = true;
    lease_.writable->touched_pages += estimate_touched_pages(update);
    applier_.apply(update);
    failed_ = false;
  }

  bool recovered() const override { return recovered_; }

 private:
  static std::unique_ptr<WritableMapping> take_or_map(const StateOptions& options,
                                                      const Mapping& present,
                                                      WritableMappingCache& kept) {
    if (std::unique_ptr<WritableMapping> left = kept.take(present)) return left;
    return std::make_unique<WritableMapping>(options.path, options.bytes_max);
  }
  // About as many as will have to be unmapped.
  std::size_t estimate_touched_pages(const Update& update) const {
    std::size_t pages = 2 + (update.erases_all ? info().item_count : 0);
    for (const Change& change : update.changes)
      pages += 4 + (change.key.size() + change.value.size()) / header_page_bytes;
    return pages;
  }
  // The mapping is not there in a child.
  void check_not_forked() const {
    if (fork_count_ != fork_count())
      throw Error(ErrorKind::invalid, "writing began before fork: begin anew in the child");
  }

  struct MappingLease {
    ~MappingLease() {
      if (return_to_cache) cache.put(std::move(writable));
    }
    WritableMappingCache& cache;
    std::unique_ptr<WritableMapping> writable;
    bool return_to_cache = false;
  };

  HeldLock lock_;       // released last
  MappingLease lease_;  // after all that uses the mapping is gone
  Mapping& mapping_;
  Applier applier_;
  std::uint64_t fork_count_;
  bool recovered_ = false;
  MappingPolicy mapping_policy_;
  bool applied_ = false;
  bool failed_ = false;
};

}  // namespace

std::unique_ptr<StateWriter> open_writer(HeldLock writer_lock, const StateOptions& options,
                                         LockFile& locks, const Mapping& present,
                                         WritableMappingCache& kept, MappingPolicy after) {
  return std::make_unique<FileWriter>(std::move(writer_lock), options, locks, present, kept, after);
}

}  // namespace whycache
