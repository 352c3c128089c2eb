#include "state/writer.h"

#include <fcntl.h>

#include "state/applier.h"
#include "state/recovery.h"
#include "state/state_file.h"

namespace whycache {
namespace {

class FileWriter final : public StateWriter {
 public:
  FileWriter(HeldLock writer_lock, const StateOptions& options, LockFile& locks)
      : lock_(std::move(writer_lock)),
        mapping_(open_file(options.path, O_RDWR), options.path, options.bytes_max, Mapping::Access::write),
        applier_(mapping_, &locks, options.bytes_max) {
    std::atomic<std::uint64_t>& active = mapping_.writable_header().writer_active;
    recovered_ = active.load(std::memory_order_acquire) != 0;
    active.store(1, std::memory_order_release);
    if (recovered_) recover(applier_.arena(), applier_.index());
  }

  ~FileWriter() override {
    // After a failure the books are no better than a dead writer's.
    if (!failed_) mapping_.writable_header().writer_active.store(0, std::memory_order_release);
  }

  StateInfo info() const override { return state_info(mapping_); }

  void apply(const Update& update) override {
    if (failed_) throw Error(ErrorKind::invalid, "an update failed: the state has to be taken over again: path=" + mapping_.path());
    failed_ = true;
    applier_.apply(update);
    failed_ = false;
  }

  bool recovered() const override { return recovered_; }

 private:
  HeldLock lock_;  // released last
  Mapping mapping_;
  Applier applier_;
  bool recovered_ = false;
  bool failed_ = false;
};

}  // namespace

std::unique_ptr<StateWriter> open_writer(HeldLock writer_lock, const StateOptions& options, LockFile& locks) {
  return std::make_unique<FileWriter>(std::move(writer_lock), options, locks);
}

}  // namespace whycache
