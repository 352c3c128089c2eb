#include "state/state.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <exception>
#include <optional>
#include <utility>
#include <vector>

#include "base/fork_handlers.h"
#include "base/lock_holders.h"
#include "base/process_lock.h"
#include "state/errors.h"
#include "state/file/applied_wait.h"
#include "state/file/lock_file.h"
#include "state/file/lock_queue.h"
#include "state/file/machine_counters.h"
#include "state/file/poll_record.h"
#include "state/file/state_change.h"
#include "state/file/state_file.h"
#include "state/file/use_locks.h"
#include "state/read/current_file.h"
#include "state/read/rcu.h"
#include "state/state_files.h"
#include "state/verify.h"
#include "state/write/adopt.h"
#include "state/write/builder.h"
#include "state/write/record_poll.h"
#include "state/write/writer.h"

namespace whycache {
namespace {

// How long an opening that does not wait for others waits for those of an earlier version to let go
// of their lock file. Without one of its own, it could not continue.
constexpr std::chrono::milliseconds upgrade_time_if_not_waiting{100};

// Returns whether the mapped state has applied more of the same log. A damaged one has not.
bool is_ahead_of(const Mapping& mapping, const StateInfo& than) {
  try {
    const StateInfo info = state_info(mapping);
    return info.log_uuid == than.log_uuid && info.applied_id > than.applied_id;
  } catch (const Error&) {
    return false;
  }
}

// Verifies a file from elsewhere for this process alone, which may not adopt it. Another process
// may adopt it later, while this one reads.
StateFileResult verify_without_locks(StateFileResult found) {
  if (!found.foreign) return found;
  Mapping& mapping = *found.foreign;
  // First, so that no process can adopt it meanwhile.
  const bool is_marked = mark_verifying(mapping.descriptor());
  if (!is_marked || mapping.header().fixed.state_id != mapping.state_id()) {
    found.unusable_reason =
        "another process is verifying it, or has just done so: path=" + mapping.path() + " (retry)";
    // Acquire: pairs with the release store of clear_writer_active().
  } else if (mapping.header().writer_active.load(std::memory_order_acquire) != 0) {
    found.unusable_reason = "it was being written when it was copied: path=" + mapping.path();
  } else if (const std::vector<std::string> faults = verify(mapping, false, {}); !faults.empty()) {
    found.unusable_reason = "it does not verify: " + faults.front() + " path=" + mapping.path();
  } else {
    mark_reading(mapping.descriptor());
    unmark_verifying(mapping.descriptor());
    found.mapping = std::move(found.foreign);
    found.adopted = true;
  }
  return found;
}

// Returns the log of the state at the path; nullopt if there is none that can be used.
std::optional<Uuid> find_log_of_usable_state(const StateOptions& options) {
  try {
    const StateFileResult found = open_state_file(options);
    return found.mapping ? std::optional(log_uuid_of(*found.mapping)) : std::nullopt;
  } catch (const Error&) {
    return std::nullopt;
  }
}

const char* lock_name(StateLock lock) {
  switch (lock) {
    case StateLock::writer: return "writer";
    case StateLock::follow: return "follow";
    case StateLock::append: return "append";
    case StateLock::install: return "install";
    case StateLock::follower: return "follower";
  }
  return "?";
}

}  // namespace

// --- Opening ---

State::State(Opening, StateOptions options)
    : options_(std::move(options)),
      directory_cache_(&CurrentFile::no_directory_cache()),
      get_(select_get()),
      try_get_(select_try_get()),
      files_(std::make_unique<StateFiles>(options_, directory_cache_)) {}

State::~State() {
  if (files_) unregister_fork_handler(files_.get());
}

StateOptions State::checked(const StateOptions& options) {
  if (options.path.empty()) throw Error(ErrorKind::invalid, "no path for the state");
  check_state_location(options);
  // The process may change its working directory later.
  StateOptions absolute = options;
  absolute.path = absolute_path(options.path);
  return absolute;
}

State::State(const StateOptions& options, const Deadline& deadline)
    : State(Opening(), checked(options)) {
  StateFiles& files = *files_;
  // A usable file at the path is opened without waiting for a lock. Beside a file that is refused,
  // no lock file is created.
  StateFileResult found = open_state_file(options_);
  register_fork_handler(&files);
  files.open_lock_file(
      options_, options_.waits_for_others ? deadline : Deadline(upgrade_time_if_not_waiting));
  if (!found.mapping && files.lock_file == nullptr) {
    found = verify_without_locks(std::move(found));
    if (!found.mapping && options_.waits_for_others && !options_.read_only)
      throw Error(*files.lock_file_error);
  } else if (!found.mapping || !is_trusted(*found.mapping)) {
    try {
      const HeldLock install = lock(StateLock::install, deadline);
      const HeldLock writer = lock(StateLock::writer, deadline);
      found = open_with_locks(deadline);
    } catch (const Error& error) {
      if (options_.waits_for_others || error.kind() != ErrorKind::unavailable) throw;
      found.unusable_reason = error.what();
    }
  }
  adopted_ = found.adopted;
  files.current_file.set_unusable_reason(found.unusable_reason);
  if (found.mapping) files.current_file.switch_to(std::move(found.mapping));
}

// Whether the file may be read without verification. A process that may not use the lock file
// cannot find out.
bool State::is_trusted(const Mapping& mapping) const {
  return files_->lock_file == nullptr ||
         has_only_own_changes(*files_->lock_file, mapping.descriptor()) ||
         is_trusted_elsewhere(mapping.descriptor());
}

// Opens the file at the path. One from elsewhere, or that another program has changed, is verified.
// The caller holds StateLock::install and StateLock::writer.
StateFileResult State::open_with_locks(const Deadline& deadline) const {
  StateFileResult found = open_or_adopt_state_file(options_, deadline);
  if (!found.mapping) return found;
  if (!found.adopted) {
    if (is_trusted(*found.mapping)) return found;
    const std::optional<std::string> fault = verify_changed_state_file(options_, *found.mapping);
    if (!fault) return found;
    if (!fault->empty()) return {nullptr, *fault + ": path=" + options_.path, false, nullptr};
  }
  note_own_changes(*files_->lock_file, found.mapping->descriptor());
  return found;
}

bool State::usable() const {
  std::shared_ptr<Mapping> mapping = files_->current_file.mapping();
  if (!mapping) mapping = files_->current_file.newest_mapping();
  // A superseded file that is still in place is usable: the process that was about to replace it
  // has not finished yet, or has died.
  return mapping &&
         (!is_superseded(*mapping) || (is_in_place(*mapping) && mapping->holds_whole_file()));
}

std::string State::unusable_reason() const {
  const std::string reason = files_->current_file.unusable_reason();
  return reason.empty() ? "it was removed: path=" + options_.path : reason;
}

std::optional<LogIdentity> State::switch_if_replaced(const Deadline& deadline) const {
  CurrentFile& current_file = files_->current_file;
  const std::shared_ptr<Mapping> mapping = current_file.mapping();
  if (mapping && mapping->holds_whole_file() && is_in_place(*mapping) &&
      (can_lock() || !is_copied_up(*mapping))) {
    if (is_superseded(*mapping)) clear_stale_superseded_bit();
    current_file.unmap_retired();
    return std::nullopt;
  }
  std::string why_not;
  try {
    if (const std::shared_ptr<Mapping> found = current_file.switch_to_file_at_path())
      return of_other_log(*found);
    // The file at the path may come from elsewhere: verify and adopt it.
    std::optional<HeldLock> install;
    std::optional<HeldLock> writer;
    StateFileResult found;
    if (can_lock()) {
      install.emplace(lock(StateLock::install, deadline));
      writer.emplace(lock(StateLock::writer, deadline));
      found = open_with_locks(deadline);
    } else {
      found = verify_without_locks(open_state_file(options_));
    }
    if (found.mapping) {
      if (std::optional<LogIdentity> other = of_other_log(*found.mapping)) return other;
      current_file.switch_to(std::move(found.mapping));
      return std::nullopt;
    }
    why_not = std::move(found.unusable_reason);
  } catch (const Error& error) {  // the same kind as in a read
    if (error.kind() == ErrorKind::corrupt || error.kind() == ErrorKind::unavailable) throw;
    throw unusable_successor(error);
  }
  // There is no successor yet. Reads continue with the old file, and usable() reports that a new
  // one has to be built.
  if (mapping) supersede(*mapping);
  current_file.set_unusable_reason(std::move(why_not));
  return std::nullopt;
}

// Returns what the file at the path is, if it is a state of another log than the expected one.
// Marks the current file as superseded, so that reads notice, too.
std::optional<LogIdentity> State::of_other_log(const Mapping& found) const {
  CurrentFile& current_file = files_->current_file;
  if (current_file.is_expected(log_uuid_of(found))) return std::nullopt;
  current_file.set_unusable_reason("the state of another log is in its place: path=" +
                                   options_.path + " state_uuid=" + to_string(log_uuid_of(found)));
  if (const std::shared_ptr<Mapping> mapping = current_file.mapping()) {
    try {
      supersede(*mapping);
    } catch (const Error&) {  // this process may not write to the file
    }
  }
  return log_of(found.header().fixed);
}

void State::expect_log(const Uuid& log_uuid) const { files_->current_file.expect_log(log_uuid); }

bool State::is_used_by_others() const {
  std::shared_ptr<Mapping> mapping = files_->current_file.mapping();
  if (!mapping || !is_in_place(*mapping)) mapping = open_state_file(options_).mapping;
  return mapping && (is_in_use_by_others(mapping->descriptor()) ||
                     !is_open_file(mapping->descriptor(), mapping->device(), mapping->inode()));
}

bool State::expects_log(const Uuid& log_uuid) const {
  return files_->current_file.is_expected(log_uuid);
}

// A process may die after setting the superseded bit but before renaming its new file into place.
// While the bit is set, every read takes the slow path to look for a successor, so clear it.
// The constructor of StateWriter clears it too.
void State::clear_stale_superseded_bit() const noexcept {
  try {
    const Deadline at_once(std::chrono::milliseconds(0));
    const HeldLock install = lock(StateLock::install, at_once);
    const HeldLock writer = lock(StateLock::writer, at_once);
    if (const FileDescriptor file = open_file_if_exists(options_.path, O_RDWR)) {
      const OwnChange change(files_->lock_file.get(), file.number());
      set_superseded_bit(file, options_.path, false);
    }
  } catch (const Error&) {
    // Another process holds the locks, or this one may not write to the file.
  }
}

// --- What a state says ---

StateInfo State::info() const {
  const std::shared_ptr<Mapping> mapping = files_->current_file.newest_mapping();
  if (!mapping) throw Error(ErrorKind::unavailable, "no usable state: " + unusable_reason());
  return state_info(*mapping);
}

LogPosition State::log_position() const {
  const std::shared_ptr<Mapping> mapping = files_->current_file.newest_mapping();
  if (!mapping) throw Error(ErrorKind::unavailable, "no usable state: " + unusable_reason());
  return whycache::log_position(*mapping);
}

UpdateId State::applied_id() const {
  {
    const ReadSection reading;
    const Mapping* const mapping = files_->current_file.unowned_mapping();
    if (mapping != nullptr) {
      const UpdateId id = mapping->header().applied_id.load(std::memory_order_acquire);
      if (!is_superseded(*mapping))
        // Loaded last: until then, no other file had a newer update.
        return id;
    }
  }
  return info().applied_id;
}

UpdateId State::wait(UpdateId after, const Deadline& deadline, UpdateId before) const {
  // Between looks for a state, or for the one that takes the place of the present one.
  constexpr std::chrono::milliseconds search_interval{100};
  for (;;) {
    unmap_whole_if_idle();
    std::chrono::nanoseconds at_most = search_interval;
    {
      const CurrentFile::AwaitedMapping mapping(files_->current_file);
      if (mapping.get() != nullptr) {
        const Header& header = mapping.get()->header();
        const std::uint64_t seen = header.applied_id.max_entry_word(std::memory_order_acquire);
        const UpdateId id = EntryWord(seen).id();
        if (id > after || id < before || deadline.passed()) return id;
        before = id;
        const std::chrono::nanoseconds left = deadline.remaining();
        at_most = is_superseded(*mapping.get()) ? std::min(at_most, left) : left;
        sleep_until_applied(header, seen, at_most, deadline.stop());
        continue;
      }
    }
    if (deadline.passed())
      throw Error(ErrorKind::unavailable, "no usable state: " + unusable_reason());
    deadline.sleep(at_most);
  }
}

void State::wake_waiters() const noexcept {
  const std::shared_ptr<Mapping> mapping = files_->current_file.mapping();
  if (mapping) wake_applied_waiters(mapping->header());
}

StatePosition State::position() const {
  {
    const ReadSection reading;
    const Mapping* const mapping = files_->current_file.unowned_mapping();
    if (mapping != nullptr) {
      const Header& header = mapping->header();
      const UpdateId id = header.applied_id.load(std::memory_order_acquire);
      if (!is_superseded(*mapping)) return {state_id_of(header), id};
    }
  }
  const StateInfo now = info();
  return {now.state_id, now.applied_id};
}

// --- Freshness ---

std::optional<std::int64_t> State::last_poll_time_ns(std::int64_t now_ns) const {
  return poll_time(&PollRecord::last, now_ns);
}

std::optional<std::int64_t> State::last_store_poll_time_ns(std::int64_t now_ns) const {
  return poll_time(&PollRecord::last_of_store, now_ns);
}

std::optional<std::int64_t> State::poll_time(PollTime PollRecord::*which,
                                             std::int64_t now_ns) const {
  const ReadSection reading;
  const Mapping* const mapping = files_->current_file.unowned_mapping();
  if (mapping == nullptr || is_superseded(*mapping)) return std::nullopt;
  const Header& header = mapping->header();
  const auto recorded_for = [&](std::uint64_t state_id) {
    return read_poll_time(header.poll_record.*which, state_id, now_ns);
  };
  const std::optional<std::int64_t> time_ns = recorded_for(mapping->state_id());
  // A file that this process has verified for itself may have been adopted since.
  return time_ns || header.fixed.state_id == mapping->state_id()
             ? time_ns
             : recorded_for(header.fixed.state_id);
}

bool State::was_polled_by_another_clock() const {
  const ReadSection reading;
  const Mapping* const mapping = files_->current_file.unowned_mapping();
  if (mapping == nullptr || is_superseded(*mapping)) return false;
  const Header& header = mapping->header();
  const PollTime& last = header.poll_record.last;
  // The id in the header: another process may have adopted the file.
  return last.time_ns.load(std::memory_order_relaxed) != 0 &&
         !read_poll_time(last, header.fixed.state_id, 0);
}

UpdateId State::known_head() const {
  const ReadSection reading;
  const Mapping* const mapping = files_->current_file.unowned_mapping();
  return mapping == nullptr
             ? 0
             : mapping->header().poll_record.known_head.load(std::memory_order_relaxed);
}

void State::record_poll(std::int64_t at_ns, UpdateId head, bool by_store) const noexcept {
  const std::shared_ptr<Mapping> mapping = files_->current_file.mapping();
  if (mapping && files_->lock_file != nullptr)
    whycache::record_poll(*mapping, *files_->lock_file, at_ns, head, by_store);
}

void State::record_known_head(UpdateId head) const noexcept {
  const std::shared_ptr<Mapping> mapping = files_->current_file.mapping();
  if (mapping && files_->lock_file != nullptr)
    whycache::record_known_head(*mapping, *files_->lock_file, head);
}

// --- Locks ---

bool State::can_lock() const { return files_->lock_file != nullptr; }

HeldLock State::lock(StateLock which, const Deadline& deadline) const {
  StateFiles& files = *files_;
  LockFile& lock_file = files.require_lock_file();
  const auto offset = static_cast<std::uint64_t>(which);
  constexpr std::int64_t search_delay_ns = 20'000'000;
  const std::int64_t began_ns = boot_time_ns();
  const auto gave_up = [&] {
    // The search takes milliseconds, which a caller that has not waited has not to spend. The
    // holder of the follow lock waits for the log.
    const bool has_waited = boot_time_ns() - began_ns > search_delay_ns;
    const std::string processes = has_waited && which != StateLock::follow
                                      ? lock_holders(lock_file.path(), offset)
                                      : std::string();
    return Error(ErrorKind::unavailable,
                 std::string("another process or thread holds the ") + lock_name(which) +
                     " lock: path=" + lock_file.path() +
                     (processes.empty() ? "" : " lock_holders=" + processes) +
                     " (retry, or raise the deadline)",
                 which == StateLock::follow ? 0 : EBUSY);
  };
  std::unique_lock<std::timed_mutex> threads(files.lock_mutexes[offset], std::defer_lock);
  while (!threads.try_lock() && !threads.try_lock_for(deadline.next_wait())) {
    if (deadline.passed()) throw gave_up();
  }
  lock_file.ensure_open();
  if (!wait_for_lock(lock_file, which, deadline)) throw gave_up();
  HeldLock held(lock_file, which, std::move(threads));
  lock_file.check_in_place();
  return held;
}

std::optional<HeldLock> State::try_lock(StateLock which) const {
  const StateFiles& files = *files_;
  LockFile& lock_file = files.require_lock_file();
  std::unique_lock<std::timed_mutex> threads(files.lock_mutexes[static_cast<std::size_t>(which)],
                                             std::try_to_lock);
  const Deadline at_once(std::chrono::milliseconds(0));
  if (!threads) return std::nullopt;
  lock_file.ensure_open();
  if (!wait_for_lock(lock_file, which, at_once)) return std::nullopt;
  HeldLock held(lock_file, which, std::move(threads));
  lock_file.check_in_place();
  return held;
}

void State::announce_release(StateLock which) const noexcept {
  if (files_->lock_file != nullptr) wake_next_waiter(*files_->lock_file, which);
}

// --- Writing ---

std::unique_ptr<StateWriter> State::begin_write(const Deadline& deadline,
                                                MappingPolicy after) const {
  for (int tries = 0;; ++tries) {
    HeldLock writer = lock(StateLock::writer, deadline);
    const std::shared_ptr<Mapping> mapping = files_->current_file.mapping();
    if (mapping && is_in_place(*mapping))
      return std::make_unique<StateWriter>(std::move(writer), options_, mapping,
                                           files_->mapping_cache, files_->ring_keeper, after);
    if (tries == 2)
      throw Error(ErrorKind::corrupt, "state file was removed or is being replaced: path=" +
                                          options_.path + " (update, then retry)");
    writer.release();
    if (const std::optional<LogIdentity> other = switch_if_replaced(deadline)) {
      throw Error(ErrorKind::unavailable,
                  "state was replaced by the state of another log: path=" + options_.path +
                      " state_uuid=" + to_string(other->uuid) + " (update, then retry)");
    }
  }
}

void State::unmap_if_idle() const noexcept { files_->mapping_cache.unmap_if_idle(); }

void State::unmap_whole_if_idle() const noexcept { files_->mapping_cache.unmap_whole_if_idle(); }

bool State::has_cached_mapping() const noexcept { return files_->mapping_cache.has_mapping(); }

void State::unmap_cached() const noexcept { files_->mapping_cache.unmap(); }

void State::disable_mapping_cache() const noexcept { files_->mapping_cache.disable(); }

void State::enable_mapping_cache() const noexcept { files_->mapping_cache.enable(); }

std::unique_ptr<StateBuilder> State::begin_build(const Uuid& log_uuid,
                                                 const std::string& log_name) const {
  return std::make_unique<StateBuilder>(options_, log_uuid, log_name);
}

bool State::install(StateBuilder& builder, InstallPolicy policy,
                    const std::function<void()>& catch_up, const Deadline& deadline,
                    const std::optional<Uuid>& other_log) const {
  const StateInfo built = builder.info();
  const HeldLock install = lock(StateLock::install, deadline);
  const HeldLock writer = lock(StateLock::writer, deadline);
  // Set the superseded bit before the rename. If this process died between the two in the other
  // order, processes that only read would never notice the new file. Until the new file is in
  // place, readers find the old one there and continue to use it.
  const std::shared_ptr<Mapping> old = files_->current_file.mapping();
  if (old && is_in_place(*old) && is_ahead_of(*old, built)) {
    if (policy == InstallPolicy::unless_behind) return false;
    if (catch_up) catch_up();
  }
  if (old && is_in_place(*old)) builder.add_counters(read_machine_counters(old->header()));
  const FileDescriptor old_file = open_file_if_exists(options_.path, O_RDWR);
  const bool was_own = old_file && has_only_own_changes(*files_->lock_file, old_file.number());
  if (old_file) {
    const std::optional<Uuid> present = find_log_of_usable_state(options_);
    if (present && present != built.log_uuid && present != other_log &&
        !(old && present == log_uuid_of(*old)))
      return false;
    check_may_be_replaced(old_file, options_);
    supersede(old_file, options_.path);
  }
  if (::rename(builder.path().c_str(), options_.path.c_str()) != 0) {
    const int error = errno;
    if (old_file) set_superseded_bit(old_file, options_.path, false);
    if (was_own) note_own_changes(*files_->lock_file, old_file.number());
    throw system_error("cannot put state file in place", options_.path, error);
  }
  StateFileResult found = open_or_adopt_state_file(options_, deadline);
  if (!found.mapping)
    throw Error(ErrorKind::corrupt, "new state cannot be used: " + found.unusable_reason);
  note_own_changes(*files_->lock_file, found.mapping->descriptor());
  files_->current_file.switch_to(std::move(found.mapping));
  if (old) supersede(*old);  // it may have been moved away from the path
  return true;
}

bool State::remove_if_unused(const Deadline& deadline) const {
  const HeldLock install = lock(StateLock::install, deadline);
  const HeldLock writer = lock(StateLock::writer, deadline);
  const bool removed = files_->current_file.run_unmapped(
      [&] {
        const FileDescriptor file = open_file_if_exists(options_.path, O_RDWR);
        if (!file) return false;
        check_may_be_replaced(file, options_);
        const std::optional<Uuid> present = find_log_of_usable_state(options_);
        if (present && !files_->current_file.is_expected(*present)) return false;
        const SoleUse sole_use(file.number());
        if (!sole_use) return false;
        // For a process that is opening the file right now.
        supersede(file, options_.path);
        return ::unlink(options_.path.c_str()) == 0;
      },
      deadline);
  if (removed)
    files_->current_file.set_unusable_reason("it was removed to make room for a new one: path=" +
                                             options_.path);
  return removed;
}

// --- Care ---

void State::sync(const Deadline& deadline) const {
  const HeldLock writer = lock(StateLock::writer, deadline);
  const std::shared_ptr<Mapping> mapping = files_->current_file.mapping();
  if (mapping) sync_file(mapping->descriptor(), options_.path);
}

void State::remove(const Deadline& deadline) const {
  const HeldLock install = lock(StateLock::install, deadline);
  const HeldLock writer = lock(StateLock::writer, deadline);
  remove_change_ring(options_.path);
  if (const FileDescriptor file = open_file_if_exists(options_.path, O_RDWR))
    supersede(file, options_.path);
  if (::unlink(options_.path.c_str()) != 0 && errno != ENOENT)
    throw system_error("cannot remove state file", options_.path, errno);
}

std::vector<std::string> State::check(
    const Deadline& deadline,
    const std::function<void(std::uint64_t, std::uint64_t)>& progress) const {
  // begin_write() rolls back an unfinished update of a writer that died.
  const std::unique_ptr<StateWriter> writer = begin_write(deadline);
  const std::shared_ptr<Mapping> mapping = files_->current_file.mapping();
  mapping->refresh_usable_bytes();
  return verify(*mapping, true, progress);
}

void State::describe_use(Stats& stats) const {
  const std::shared_ptr<Mapping> mapping = files_->current_file.mapping();
  if (!mapping) return;
  stats.file_bytes = mapping->header().file_bytes.load(std::memory_order_acquire);
  stats.machine_counters = read_machine_counters(mapping->header());
  if (const std::optional<ProcessInfo> holder = find_oldest_pin(mapping->descriptor())) {
    stats.oldest_pinned_id = holder->oldest_pinned_id;
    stats.oldest_pinned_process_id = holder->process_id;
    stats.oldest_pinned_process_name = holder->process_name;
  }
  if (!mapping || !stats.oldest_pinned_id) return;
  // Without a view of an older update, the writer frees what is retired at its next update.
  const Header& header = mapping->header();
  if (*stats.oldest_pinned_id >= header.applied_id.load(std::memory_order_acquire)) return;
  // A copy: a writer may be changing it.
  std::uint32_t retired_count;
  std::memcpy(&retired_count, &header.allocator_state.retired_count, sizeof retired_count);
  stats.pinned_bytes = retired_count * segment_bytes;
}

bool State::is_mostly_free() const {
  constexpr std::uint64_t large_bytes = std::uint64_t{64} << 20;
  const std::shared_ptr<Mapping> mapping = files_->current_file.mapping();
  if (!mapping) return false;
  // A copy: a writer may be changing it.
  AllocatorState state;
  std::memcpy(&state, &mapping->header().allocator_state, sizeof state);
  // Segments that the last update retired are free at the next one.
  return state.segment_count * segment_bytes >= large_bytes &&
         state.free_count + state.retired_count > state.segment_count / 2;
}

StateInspection State::inspect() const {
  const std::shared_ptr<Mapping> mapping = files_->current_file.mapping();
  if (!mapping) throw Error(ErrorKind::unavailable, "no usable state: " + unusable_reason());
  mapping->refresh_usable_bytes();
  StateInspection inspection = inspect_state_file(*mapping);
  // Its own marks are invisible to the open file that holds them.
  const auto own_id = static_cast<std::uint64_t>(::getpid());
  const auto is_own = [&](const ProcessInfo& process) { return process.process_id == own_id; };
  if (std::none_of(inspection.processes.begin(), inspection.processes.end(), is_own))
    inspection.processes.push_back({own_id, process_name(own_id), std::nullopt});
  return inspection;
}

}  // namespace whycache
