#include "state/read/current_file.h"

#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <new>
#include <thread>
#include <utility>

#include <whycache/error.h>

#include "base/clock.h"
#include "state/errors.h"
#include "state/file/applied_wait.h"
#include "state/file/state_file.h"

namespace whycache {
namespace {

constexpr std::int64_t successor_search_interval_ns = 10'000'000;
constexpr std::chrono::milliseconds unmapping_time_max{100};

Error other_log_error(const Mapping& present, const Mapping& found) {
  return Error(ErrorKind::unavailable,
               "state was replaced by the state of another log: path=" + found.path() +
                   " state_uuid=" + to_string(log_uuid_of(found)) +
                   " uuid_read_before=" + to_string(log_uuid_of(present)) +
                   " (call update(): it asks this process's log which of them it is)");
}

}  // namespace

CurrentFile::CurrentFile(const StateOptions& options,
                         std::atomic<const DirectoryCache*>& directory_cache,
                         std::function<void()> on_switch)
    : options_(options),
      on_switch_(std::move(on_switch)),
      state_path_(options.path),
      directory_cache_(directory_cache) {
  register_fork_handler(this);
}

CurrentFile::~CurrentFile() { unregister_fork_handler(this); }

// The analysis does not see that the mutex stays locked across the fork.
void CurrentFile::before_fork() noexcept WHYCACHE_NO_THREAD_SAFETY_ANALYSIS {
  switch_mutex_.lock();
}

void CurrentFile::after_fork_in_parent() noexcept WHYCACHE_NO_THREAD_SAFETY_ANALYSIS {
  switch_mutex_.unlock();
}

void CurrentFile::after_fork_in_child() noexcept WHYCACHE_NO_THREAD_SAFETY_ANALYSIS {
  retired_.splice(retired_.end(), awaited_);
  switch_mutex_.unlock();
  // Another thread of the parent may have held it, and changed what it guards.
  new (&successor_mutex_) Mutex;
  new (&failed_search_) std::optional<FailedSearch>;
}

std::shared_ptr<Mapping> CurrentFile::mapping() const {
  const MutexLock lock(switch_mutex_);
  return mapping_;
}

CurrentFile::AwaitedMapping::AwaitedMapping(CurrentFile& file) : file_(file) {
  std::list<RetiredMapping> kept(1);
  kept.front().mapping = file.newest_mapping();
  mapping_ = kept.front().mapping.get();
  place_ = kept.begin();
  const MutexLock lock(file.switch_mutex_);
  file.awaited_.splice(file.awaited_.end(), kept);
}

CurrentFile::AwaitedMapping::~AwaitedMapping() {
  std::list<RetiredMapping> released;  // outside the mutex: unmapping may wait for a fork
  const MutexLock lock(file_.switch_mutex_);
  released.splice(released.end(), file_.awaited_, place_);
}

std::shared_ptr<Mapping> CurrentFile::newest_mapping() {
  for (;;) {
    std::shared_ptr<Mapping> current = mapping();
    // Another process may have made the first file.
    if (!current && ::access(options_.path.c_str(), F_OK) == 0) {
      const MutexLock lock(successor_mutex_);
      if (mapping()) continue;
      std::shared_ptr<Mapping> first;
      try {
        first = open_state_file(options_).mapping;
      } catch (const Error&) {  // the next update() reports it
      }
      if (!first || !is_expected(log_uuid_of(*first))) return nullptr;
      switch_locked(first);
      return first;
    }
    // Until a successor is in place, reads continue with the old file.
    if (!current || (current->holds_whole_file() && !find_successor(*current))) return current;
    // Other readers wait here until the successor is found: each must see what was written to it
    // before its read began.
    const MutexLock lock(successor_mutex_);
    if (mapping() != current) continue;
    const std::optional<FileVersion> successor = find_successor(*current);
    const std::int64_t now = boot_time_ns();
    if (failed_search_ && failed_search_->file == successor &&
        now - failed_search_->at_ns < successor_search_interval_ns) {
      if (failed_search_->error) throw Error(*failed_search_->error);
      return current;
    }
    failed_search_.reset();
    unmap_retired();  // address space may be limited
    std::optional<Error> error;
    std::shared_ptr<Mapping> found = open_successor(error);
    if (found && !is_expected(log_uuid_of(*found))) {
      error = other_log_error(*current, *found);
      found = nullptr;
    }
    const bool is_whole = found && found->holds_whole_file();
    // Without a successor, the present file is only read with less address space than it needs.
    if (!successor) error.reset();
    if (!is_whole) failed_search_ = FailedSearch{successor, now, error};
    if (error) throw Error(*error);
    if (!found) return current;
    switch_locked(found);
    if (!is_whole) return found;
  }
}

// Returns the file that has taken the place of a superseded one, or nullopt if none has. Throws
// Error(unavailable) if that cannot be found out: the read must not continue with data that may be
// old.
std::optional<CurrentFile::FileVersion> CurrentFile::find_successor(const Mapping& mapping) const {
  if (!is_superseded(mapping)) return std::nullopt;
  try {
    const std::optional<struct stat> status = state_path_.find();
    if (!status || (status->st_ino == mapping.inode() && status->st_dev == mapping.device()))
      return std::nullopt;
    return FileVersion{status->st_dev, status->st_ino,
                       status->st_ctim.tv_sec * 1'000'000'000 + status->st_ctim.tv_nsec};
  } catch (const Error& error) {
    throw unusable_successor(error);
  }
}

// Returns null if the file at the path is no state, or if another process is adopting it: it is no
// successor then, and the next update() reports or replaces it. Sets `error` if the file may be one
// that this process cannot use.
std::shared_ptr<Mapping> CurrentFile::open_successor(std::optional<Error>& error) {
  try {
    FileDescriptor file = state_path_.open();
    if (!file) return nullptr;
    StateFileResult result = use_state_file(std::move(file), options_);
    if (result.is_of_other_format)
      error = unusable_successor(Error(ErrorKind::corrupt, result.unusable_reason));
    return std::move(result.mapping);
  } catch (const Error& failure) {
    if (failure.kind() != ErrorKind::corrupt) error = unusable_successor(failure);
    return nullptr;
  }
}

void CurrentFile::switch_to(std::shared_ptr<Mapping> mapping) {
  const MutexLock lock(successor_mutex_);
  switch_locked(std::move(mapping));
}

std::shared_ptr<Mapping> CurrentFile::switch_to_file_at_path() {
  const MutexLock lock(successor_mutex_);
  std::shared_ptr<Mapping> found = open_state_file(options_).mapping;
  if (found && is_expected(log_uuid_of(*found))) switch_locked(found);
  return found;
}

void CurrentFile::expect_log(const Uuid& log_uuid) {
  const MutexLock lock(successor_mutex_);
  failed_search_.reset();
  const MutexLock switch_lock(switch_mutex_);
  expected_log_ = log_uuid;
}

bool CurrentFile::is_expected(const Uuid& log_uuid) const {
  const MutexLock lock(switch_mutex_);
  return !expected_log_ || *expected_log_ == log_uuid;
}

// Opens what views of the file need while that is possible: later, the process may have other
// rights or another root directory. If it is not possible, views try again.
void CurrentFile::prepare_for_views(const Mapping& mapping) {
  for (bool has_descriptor = true; has_descriptor; has_descriptor = state_path_.release_spare()) {
    try {
      mapping.pins();
      return;
    } catch (const Error& error) {
      if (error.system_error() != EMFILE && error.system_error() != ENFILE) return;
    }
  }
}

void CurrentFile::switch_locked(std::shared_ptr<Mapping> mapping) {
  prepare_for_views(*mapping);
  std::list<RetiredMapping> unmapped;
  {
    const MutexLock lock(switch_mutex_);
    take_elapsed(unmapped);
    // First, because it may throw bad_alloc: the old mapping must not be lost then.
    RetiredMapping& retired = retired_.emplace_back();
    retired.mapping = std::move(mapping_);
    mapping_ = std::move(mapping);
    expected_log_ = log_uuid_of(*mapping_);
    unowned_mapping_.store(mapping_.get(), std::memory_order_release);
    publish_directory_cache();
    // After both stores: the grace period covers every read that loaded an old pointer.
    retired.start_grace_period();
    if (retired.mapping) wake_applied_waiters(retired.mapping->header());
  }
  on_switch_();
}

bool CurrentFile::run_unmapped(const std::function<bool()>& remove_file, const Deadline& deadline) {
  const MutexLock lock(successor_mutex_);
  {
    const MutexLock switching(switch_mutex_);
    if (mapping_) {
      RetiredMapping& retired = retired_.emplace_back();
      retired.mapping = std::move(mapping_);
      unowned_mapping_.store(nullptr, std::memory_order_release);
      publish_directory_cache();
      retired.start_grace_period();
      wake_applied_waiters(retired.mapping->header());  // they keep it mapped
    }
  }
  on_switch_();
  // All reads of this process wait meanwhile, and a view may not end soon.
  const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline.remaining());
  const Deadline brief(std::min(unmapping_time_max, left), deadline.stop());
  if (wait_until_unmapped(brief) && remove_file()) return true;
  std::shared_ptr<Mapping> found = open_state_file(options_).mapping;
  if (found && is_expected(log_uuid_of(*found))) switch_locked(std::move(found));
  return false;
}

bool CurrentFile::wait_until_unmapped(const Deadline& deadline) {
  for (;;) {
    bool is_unmapped = false;
    {
      std::list<RetiredMapping> unmapped;
      const MutexLock lock(switch_mutex_);
      take_elapsed(unmapped);
      is_unmapped = retired_.empty();
    }
    if (is_unmapped || deadline.passed()) return is_unmapped;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

void CurrentFile::unmap_retired() {
  std::list<RetiredMapping> unmapped;
  {
    const MutexLock lock(switch_mutex_);
    take_elapsed(unmapped);
  }
  if (unmapped.empty()) return;
  unmapped.clear();
  state_path_.keep_spares();
}

void CurrentFile::take_elapsed(std::list<RetiredMapping>& unmapped) noexcept {
  for (auto retired = retired_.begin(); retired != retired_.end();) {
    const auto candidate = retired++;
    if (candidate->poll_grace_period()) unmapped.splice(unmapped.end(), retired_, candidate);
  }
}

void CurrentFile::refresh_directory_cache(const Mapping& mapping) {
  if (!switch_mutex_.try_lock()) return;
  if (mapping_.get() == &mapping) publish_directory_cache();
  switch_mutex_.unlock();
}

void CurrentFile::enable_fast_reads(bool enabled) {
  const MutexLock lock(switch_mutex_);
  fast_reads_enabled_ = enabled;
  publish_directory_cache();
}

void CurrentFile::publish_directory_cache() {
  const bool is_fast = fast_reads_enabled_ && mapping_ != nullptr;
  directory_cache_.store(is_fast ? mapping_->last_directory_cache() : &no_directory_cache(),
                         std::memory_order_release);
}

std::string CurrentFile::unusable_reason() const {
  const MutexLock lock(switch_mutex_);
  return unusable_reason_;
}

void CurrentFile::set_unusable_reason(std::string reason) {
  const MutexLock lock(switch_mutex_);
  unusable_reason_ = std::move(reason);
}

const DirectoryCache& CurrentFile::no_directory_cache() {
  alignas(Header) static constexpr std::byte no_file[sizeof(Header)]{};
  static const DirectoryCache cache = DirectoryCache::empty(no_file, KeyHash());
  return cache;
}

void CurrentFile::RetiredMapping::start_grace_period() noexcept {
  try {
    grace_period.emplace();
  } catch (const std::bad_alloc&) {  // poll_grace_period() tries again
  }
}

bool CurrentFile::RetiredMapping::poll_grace_period() noexcept {
  if (!grace_period) start_grace_period();
  return grace_period && grace_period->elapsed();
}

}  // namespace whycache
