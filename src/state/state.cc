#include "state/state.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <chrono>
#include <cstring>
#include <exception>
#include <new>
#include <optional>
#include <utility>
#include <vector>

#include "base/fork_handlers.h"
#include "base/lock_holders.h"
#include "base/process_lock.h"
#include "base/string_length.h"
#include "state/errors.h"
#include "state/file/applied_wait.h"
#include "state/file/lock_file.h"
#include "state/file/lock_queue.h"
#include "state/file/poll_record.h"
#include "state/file/state_change.h"
#include "state/file/state_file.h"
#include "state/file/use_locks.h"
#include "state/index/lookup.h"
#include "state/read/current_file.h"
#include "state/read/pin.h"
#include "state/read/point_read.h"
#include "state/read/rcu.h"
#include "state/verify.h"
#include "state/write/adopt.h"
#include "state/write/builder.h"
#include "state/write/change_ring_writer.h"
#include "state/write/record_poll.h"
#include "state/write/writable_mapping_cache.h"
#include "state/write/writer.h"

namespace whycache {
namespace {

constexpr int point_read_attempts_max = 4;
// How long an opening that does not wait for others waits for those of an earlier version to let go
// of their lock file. Without one of its own, it could not continue.
constexpr std::chrono::milliseconds upgrade_time_if_not_waiting{100};

// Returns the mode of the lock file: only those who may write to the state can open it, for
// reading, too. Who can open it can hold a lock that keeps others from writing.
std::uint32_t lock_file_mode(std::uint32_t state_mode) {
  const std::uint32_t writers = state_mode & 0222;
  return writers | writers << 1;
}

// Whether an error of the lock file means that this process may only read the state. An error of
// another call, which can have the same reason, or one that passes, does not.
bool may_only_read(const Error& error, const std::string& lock_path) {
  const int reason = error.system_error();
  if (reason != EACCES && reason != EROFS) return false;
  return !FileDescriptor(open_at_path(lock_path.c_str(), O_RDWR | O_NONBLOCK | O_NOFOLLOW));
}

// Extends the usable bytes if the file has grown since this process asked for its size: a read may
// have met an offset in the new part.
void refresh_if_grown(const Mapping& mapping) {
  if (mapping.header().file_bytes.load(std::memory_order_acquire) > mapping.usable_bytes())
    mapping.refresh_usable_bytes();
}

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

struct State::Impl final : ForkHandler {
  explicit Impl(State& owner)
      : current_file(owner.options_, owner.directory_cache_, [this] {
          mapping_cache.unmap();  // it is the old file's
          trust_current_file();
        }) {}
  ~Impl() = default;

  void open_lock_file(const StateOptions& options, const Deadline& deadline) {
    const std::string path = options.path + ".lock";
    try {
      if (options.read_only)
        throw Error(ErrorKind::invalid, "state is open for reads alone: path=" + options.path);
      lock_file = std::make_unique<LockFile>(path, lock_file_mode(mode_of_state(options)),
                                             trusted_owner(options), deadline);
    } catch (const Error& error) {
      if (!options.read_only && !may_only_read(error, path)) throw;
      lock_file_error = error;
    }
  }
  // Another process then need not verify the file if this one dies at work (state_change.h).
  void trust_current_file() const {
    const std::shared_ptr<Mapping> mapping = current_file.mapping();
    if (!mapping || lock_file == nullptr) return;
    const int descriptor = mapping->descriptor();
    if (has_only_own_changes(*lock_file, descriptor) || is_trusted_elsewhere(descriptor))
      mark_trusted(descriptor);
  }
  LockFile& require_lock_file() const {
    if (lock_file == nullptr) throw Error(*lock_file_error);
    return *lock_file;
  }

  void after_fork_in_child() noexcept override {
    // Another thread of the parent may have held them. The locks they guard are the parent's.
    for (std::timed_mutex& mutex : lock_mutexes) new (&mutex) std::timed_mutex;
  }

  // Null if this process may only read; then the error that says so.
  std::unique_ptr<LockFile> lock_file;
  std::optional<Error> lock_file_error;
  mutable std::array<std::timed_mutex, state_lock_count> lock_mutexes;
  WritableMappingCache mapping_cache;
  ChangeRingKeeper ring_keeper;  // used only under the writer lock
  CurrentFile current_file;
};

// --- Opening ---

State::State(Opening, StateOptions options)
    : options_(std::move(options)),
      directory_cache_(&CurrentFile::no_directory_cache()),
      get_(select_get()),
      try_get_(select_try_get()),
      impl_(std::make_unique<Impl>(*this)) {}

State::~State() {
  if (impl_) unregister_fork_handler(impl_.get());
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
  Impl& inner = *impl_;
  // A usable file at the path is opened without waiting for a lock. Beside a file that is refused,
  // no lock file is created.
  StateFileResult found = open_state_file(options_);
  register_fork_handler(&inner);
  inner.open_lock_file(
      options_, options_.waits_for_others ? deadline : Deadline(upgrade_time_if_not_waiting));
  if (!found.mapping && inner.lock_file == nullptr) {
    found = verify_without_locks(std::move(found));
    if (!found.mapping && options_.waits_for_others && !options_.read_only)
      throw Error(*inner.lock_file_error);
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
  inner.current_file.set_unusable_reason(found.unusable_reason);
  if (found.mapping) inner.current_file.switch_to(std::move(found.mapping));
}

// Whether the file may be read without verification. A process that may not use the lock file
// cannot find out.
bool State::is_trusted(const Mapping& mapping) const {
  return impl_->lock_file == nullptr ||
         has_only_own_changes(*impl_->lock_file, mapping.descriptor()) ||
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
  note_own_changes(*impl_->lock_file, found.mapping->descriptor());
  return found;
}

bool State::usable() const {
  std::shared_ptr<Mapping> mapping = impl_->current_file.mapping();
  if (!mapping) mapping = impl_->current_file.newest_mapping();
  // A superseded file that is still in place is usable: the process that was about to replace it
  // has not finished yet, or has died.
  return mapping &&
         (!is_superseded(*mapping) || (is_in_place(*mapping) && mapping->holds_whole_file()));
}

std::string State::unusable_reason() const {
  const std::string reason = impl_->current_file.unusable_reason();
  return reason.empty() ? "it was removed: path=" + options_.path : reason;
}

std::optional<LogIdentity> State::switch_if_replaced(const Deadline& deadline) const {
  CurrentFile& current_file = impl_->current_file;
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
  CurrentFile& current_file = impl_->current_file;
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

void State::expect_log(const Uuid& log_uuid) const { impl_->current_file.expect_log(log_uuid); }

bool State::is_used_by_others() const {
  std::shared_ptr<Mapping> mapping = impl_->current_file.mapping();
  if (!mapping || !is_in_place(*mapping)) mapping = open_state_file(options_).mapping;
  return mapping && (is_in_use_by_others(mapping->descriptor()) ||
                     !is_open_file(mapping->descriptor(), mapping->device(), mapping->inode()));
}

bool State::expects_log(const Uuid& log_uuid) const {
  return impl_->current_file.is_expected(log_uuid);
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
      const OwnChange change(impl_->lock_file.get(), file.number());
      set_superseded_bit(file, options_.path, false);
    }
  } catch (const Error&) {
    // Another process holds the locks, or this one may not write to the file.
  }
}

// --- Reads ---

namespace {

// Copies a value of any size. If the string already has the value's size, the copy uses the
// string's size instead of the one in the entry. The processor then knows all addresses before the
// entry arrives from memory. It can start on the entry's later cache lines, and on code that reads
// the copy.
void copy_into(std::string& value, std::string_view found) {
  const std::size_t bytes_before = value.size();
  // Hidden before the comparison. After it, the compiler would know that both sizes are equal, and
  // might hide the other one.
  const std::size_t bytes = hide_from_optimizer(bytes_before);
  if (bytes_before == found.size()) {
    std::memcpy(value.data(), found.data(), bytes);
  } else if (has_bytes_beyond_length && found.size() <= value.capacity()) {
    // As assign() does, in half as many instructions: the value is not in the string itself.
    std::memcpy(value.data(), found.data(), found.size());
    set_length(value, found.size());
  } else {
    value.assign(found.data(), found.size());
  }
}

// Passes finish_get() its arguments without spilling registers on the fast path. Set immediately
// before the call. Not re-entrant.
struct PendingGet {
  const State* state;
  const Header* header;
  OptimisticRead read;
};
constinit thread_local PendingGet pending_get
    __attribute__((tls_model("initial-exec"))) = {nullptr, nullptr, OptimisticRead()};

static_assert(copy_short_bytes_max <= fast_value_bytes_max);

// Whether CopyValue::take_short() can be used for kept strings.
bool copies_beyond_values() {
#if WHYCACHE_AVX2
  return has_bytes_beyond_length && has_avx2();
#else
  return false;
#endif
}

// Whether a string that has memory has too little for take_short(). A value that fits into the
// string itself, without memory, is no reason to allocate any.
bool needs_room_for_short_values(const std::string& value, std::size_t bytes) {
  const std::size_t capacity_without_memory = std::string().capacity();
  return bytes <= copy_short_bytes_max && value.capacity() < copy_short_bytes_max &&
         value.capacity() > capacity_without_memory && copies_beyond_values();
}

// A thread expects the next value that it gets into a new string to have this size: that of the
// last one, if the one before it had the same, else 0.
struct ExpectedSize {
  static constexpr std::size_t bytes_max = 4096;

  void note(std::size_t value_bytes) {
    expected = value_bytes == last && value_bytes <= bytes_max ? value_bytes : 0;
    last = value_bytes;
  }

  std::size_t expected = 0;
  std::size_t last = 0;
};
constinit thread_local ExpectedSize expected_size __attribute__((tls_model("initial-exec")));

}  // namespace

// Copies the value into a string that most often has the value's size already.
struct State::CopyValue {
  // The addresses of the copy must not depend on the size in the entry, which comes from memory.
  // Hidden before the comparison: after it, the compiler would take either, since they are equal.
  // The comparison comes first, because it is predicted where sizes vary. The other would not be.
  template <typename Vectors>
  [[gnu::always_inline]] bool take(const UnpinnedRead&, const FastValue&, std::size_t,
                                   std::string_view value) const {
    const std::size_t bytes_before = target.size();
    const std::size_t bytes = hide_from_optimizer(bytes_before);
    if (value.size() != bytes_before) [[unlikely]]
      return take_short<Vectors>(value);
    if (bytes > copy_short_bytes_max) [[unlikely]]
      return false;
    Vectors::copy(target.data(), value.data(), bytes);
    return true;
  }
  [[gnu::always_inline]] static bool not_found() { return record_miss(); }
  // Copies a value of another size than the string has. If sizes vary, the processor predicts a
  // branch that depends on the size wrong, and starts nothing of what follows before the entry is
  // there. take_short() therefore copies as much as a short value can have, and sets the length
  // afterwards. The bytes behind the value are within the mapping, too (fast_read_bytes). The
  // writer may be writing to them. A thread sanitizer does not see that, since with it all reads
  // are portable.
  template <typename Vectors>
  [[gnu::always_inline]] bool take_short(std::string_view value) const {
    if (!Vectors::copies_beyond_values || !has_bytes_beyond_length ||
        value.size() > copy_short_bytes_max || target.capacity() < copy_short_bytes_max)
      return false;
    Vectors::copy(target.data(), value.data(), copy_short_bytes_max);
    set_length(target, value.size());
    return true;
  }
  [[gnu::always_inline]] bool take_slowly(const State& state, const UnpinnedRead& read,
                                          std::string_view key, std::string_view value) const {
    pending_get = {&state, &read.header(), read.optimistic()};
    return finish_get(key, target, value);
  }
  [[gnu::always_inline]] bool read_slowly(const State& state, std::string_view key) const {
    return state.slow_read(key, *this);
  }
  void take_any(const Mapping&, std::string_view, std::string_view value) const {
    copy_into(target, value);
  }

  std::string& target;
};

// Copies the value into a buffer that most often has the value's size already, and leaves to the
// caller what the fast path cannot decide.
struct State::CopyToBuffer {
  template <typename Vectors>
  [[gnu::always_inline]] bool take(const UnpinnedRead&, const FastValue&, std::size_t,
                                   std::string_view value) const {
    const std::size_t bytes_before = target.bytes;
    const std::size_t bytes = hide_from_optimizer(bytes_before);
    if (value.size() != bytes_before) [[unlikely]]
      return false;
    if (bytes > copy_short_bytes_max) [[unlikely]]
      return false;
    Vectors::copy(target.data, value.data(), bytes);
    return true;
  }
  [[gnu::always_inline]] static bool not_found() { return record_miss(); }
  [[gnu::always_inline]] bool take_slowly(const State& state, const UnpinnedRead& read,
                                          std::string_view, std::string_view value) const {
    pending_get = {&state, &read.header(), read.optimistic()};
    return finish_try_get(target, value);
  }
  // A miss in a full bucket comes here, too, and each key of such a bucket whose word was
  // displaced.
  [[gnu::always_inline]] bool read_slowly(const State& state, std::string_view key) const {
    return try_slowly(state, key, target);
  }
  [[gnu::noinline]] static bool try_slowly(const State& state, std::string_view key,
                                           ValueBuffer& target) {
    bool is_copied = false;
    const ReadOutcome outcome = state.read_once(key, [&](const Mapping&, std::string_view value) {
      if (value.size() > target.bytes_max) return;
      if (value.size() != target.bytes && !target.resize(target, value.size())) return;
      std::memcpy(target.data, value.data(), value.size());
      is_copied = true;
    });
    const bool is_found = outcome == ReadOutcome::found && is_copied;
    target.is_undecided = !is_found && outcome != ReadOutcome::not_found;
    return is_found;
  }

  ValueBuffer& target;
};

// Takes the update id of the entry instead of its value.
struct State::FindVersion {
  template <typename Vectors>
  [[gnu::always_inline]] bool take(const UnpinnedRead& read, const FastValue& entry, std::size_t,
                                   std::string_view) const {
    const auto* const word = reinterpret_cast<const std::uint64_t*>(entry.entry);
    target.version = EntryWord(__atomic_load_n(word, __ATOMIC_RELAXED)).id();
    target.state_id = state_id_of(read.header());
    return true;
  }
  [[gnu::always_inline]] static bool not_found() { return record_miss(); }
  [[gnu::always_inline]] bool take_slowly(const State& state, const UnpinnedRead&,
                                          std::string_view key, std::string_view) const {
    return read_slowly(state, key);  // never called: take() accepts every value
  }
  [[gnu::always_inline]] bool read_slowly(const State& state, std::string_view key) const {
    return state.slow_read(key, *this);
  }
  void take_any(const Mapping& mapping, std::string_view key, std::string_view value) const {
    target.version = entry_word_before(value.data() - key.size(), key, value).id();
    target.state_id = state_id_of(mapping.header());
  }

  EntryVersion& target;
};

// As FindVersion, but makes one attempt instead of taking the slow path.
struct State::TryFindVersion {
  template <typename Vectors>
  [[gnu::always_inline]] bool take(const UnpinnedRead& read, const FastValue& entry,
                                   std::size_t hidden_bytes, std::string_view value) const {
    return sink.take<Vectors>(read, entry, hidden_bytes, value);
  }
  [[gnu::always_inline]] static bool not_found() { return record_miss(); }
  [[gnu::always_inline]] bool take_slowly(const State& state, const UnpinnedRead&,
                                          std::string_view key, std::string_view) const {
    return read_slowly(state, key);  // never called: take() accepts every value
  }
  [[gnu::always_inline]] bool read_slowly(const State& state, std::string_view key) const {
    const ReadOutcome outcome =
        state.read_once(key, [&](const Mapping& mapping, std::string_view value) {
          sink.take_any(mapping, key, value);
        });
    is_decided = outcome == ReadOutcome::found || outcome == ReadOutcome::not_found;
    return outcome == ReadOutcome::found;
  }

  FindVersion sink;
  bool& is_decided;
};

// The end of finish_get() for a value for which the string needs more memory.
bool State::finish_get_in_new_memory(std::string_view key, std::string& value,
                                     std::string_view found) {
  // A function that allocates memory may read another state meanwhile.
  const PendingGet get = pending_get;
  bool holds = false;
  {
    // Memory may be missing.
    struct LeaveOnExit {
      ~LeaveOnExit() { this_reader.thread->leave(); }
    } const leaving;
    // As much as CopyValue::take_short() copies. But a new string gets as much as it needs.
    if (copies_beyond_values() && !value.empty() && found.size() <= copy_short_bytes_max)
      value.reserve(copy_short_bytes_max);
    value.assign(found);
    holds = get.read.validate(*get.header);
  }
  return holds || CopyValue{value}.read_slowly(*get.state, key);
}

bool State::finish_get(std::string_view key, std::string& value, std::string_view found) {
  // This may be the cache of another file by now. Then the value does not lie within its mapping,
  // and the slow path decides.
  const DirectoryCache& cache =
      *pending_get.state->directory_cache_.load(std::memory_order_acquire);
  // Hidden before the comparison, as in CopyValue.
  const std::size_t bytes_before = value.size();
  const std::size_t bytes = hide_from_optimizer(bytes_before);
  bool holds = false;
  if (is_value_mapped(cache, found)) [[likely]] {
    if (found.size() == bytes_before) {
      std::memcpy(value.data(), found.data(), bytes);
    } else if (has_bytes_beyond_length && found.size() <= value.capacity() &&
               !needs_room_for_short_values(value, found.size())) {
      // As assign() does, in half as many instructions.
      std::memcpy(value.data(), found.data(), found.size());
      set_length(value, found.size());
    } else {
      return finish_get_in_new_memory(key, value, found);
    }
    holds = pending_get.read.validate(*pending_get.header);
  }
  this_reader.thread->leave();
  return holds || CopyValue{value}.read_slowly(*pending_get.state, key);
}

// As finish_get(), but does not wait.
bool State::finish_try_get(ValueBuffer& buffer, std::string_view found) {
  const PendingGet get = pending_get;
  const DirectoryCache& cache = *get.state->directory_cache_.load(std::memory_order_acquire);
  bool holds = false;
  // Hidden before the comparison, as in CopyToBuffer.
  std::size_t bytes = hide_from_optimizer(std::size_t{buffer.bytes});
  if (found.size() != buffer.bytes) bytes = found.size();
  if (is_value_mapped(cache, found) && found.size() <= buffer.bytes_max &&
      (found.size() == buffer.bytes || buffer.resize(buffer, found.size()))) [[likely]] {
    std::memcpy(buffer.data, found.data(), bytes);
    holds = get.read.validate(*get.header);
  }
  this_reader.thread->leave();
  buffer.is_undecided = !holds;
  return holds;
}

#if WHYCACHE_AVX2
template <typename Sink>
WHYCACHE_INLINE_AVX2 bool State::read_avx2(const State& state, std::string_view key, Sink sink) {
  ReaderThread* const thread = this_reader.fast_thread;
  if (!fits_two_words(key.size())) [[unlikely]]
    return read_any_size_avx2(state, key, sink);
  if (thread != nullptr) [[likely]]
    return point_read_avx2(UnpinnedRead(*thread, state.directory_cache_), state, key, sink);
  if (this_reader.thread == nullptr) [[unlikely]]
    return state.read(key, sink, false);
  const UnpinnedRead read(*this_reader.thread, state.directory_cache_);
  const bool excluded = avx2::filter_excludes(read.directory_cache(), read.header(), key) &&
                        !read.superseded() && read.validate();
  // Not read.leave(): keeping the record's address would cost every get one more register.
  this_reader.thread->leave();
  if (!excluded) return state.read(key, sink, true);
  this_reader.record_filter_exclusion();
  return false;
}

template <typename Sink>
[[WHYCACHE_TARGET_AVX2, gnu::noinline]] bool State::read_any_size_avx2(const State& state,
                                                                       std::string_view key,
                                                                       Sink sink) {
  ReaderThread* const thread = this_reader.fast_thread;
  if (thread == nullptr) [[unlikely]]
    return state.read(key, sink, false);
  return point_read_any_size_avx2(UnpinnedRead(*thread, state.directory_cache_), state, key, sink);
}

[[WHYCACHE_TARGET_AVX2]] bool State::get_avx2(const State& state, std::string_view key,
                                              std::string& value) {
  return read_avx2(state, key, CopyValue{value});
}

[[WHYCACHE_TARGET_AVX2]] bool State::try_get_avx2(const State& state, std::string_view key,
                                                  ValueBuffer& buffer) {
  return read_avx2(state, key, CopyToBuffer{buffer});
}
#endif

template <typename Sink>
[[gnu::always_inline]] inline bool State::read_portable(const State& state, std::string_view key,
                                                        Sink sink) {
  if (key.size() - 8 < this_reader.fast_key_size_count) [[likely]]
    return point_read<true>(UnpinnedRead(*this_reader.fast_thread, state.directory_cache_), state,
                            key, sink);
  return state.read(key, sink, false);
}

// Makes a string of the size that the value is expected to have, so that no address of the copy
// depends on memory that has not arrived.
std::optional<std::string> State::get(std::string_view key) const {
  std::optional<std::string> value(std::in_place);
  const std::size_t expected = expected_size.expected;
  if (expected != 0) {
    value->reserve(expected);
    set_length(*value, expected);
  }
  if (!get(key, *value)) {
    value.reset();
  } else if (value->size() != expected) {
    expected_size.note(value->size());
    // Does not keep memory for what was expected.
    if (value->capacity() / 2 > value->size()) value.emplace(std::string(*value));
  }
  return value;
}

bool State::find_version(std::string_view key, EntryVersion& version) const {
  return read_portable(*this, key, FindVersion{version});
}

std::optional<bool> State::try_find_version(std::string_view key,
                                            EntryVersion& version) const noexcept {
  bool is_decided = true;
  const bool found = read_portable(*this, key, TryFindVersion{{version}, is_decided});
  return is_decided ? std::optional(found) : std::nullopt;
}

template <typename Sink>
bool State::read(std::string_view key, Sink sink, bool passed_filter) const {
  const ThisReader& reader = this_reader;
  if (reader.fast_thread != nullptr)
    return point_read<false>(UnpinnedRead(*reader.fast_thread, directory_cache_), *this, key, sink);
  if (reader.thread == nullptr) [[unlikely]]
    return sink.read_slowly(*this, key);
  if (!passed_filter && filter_excludes(*reader.thread, key)) return false;
  const UnpinnedRead read(*reader.thread, directory_cache_);
  const bool found = fits_two_words(key.size()) ? point_read<true>(read, *this, key, sink)
                                                : point_read<false>(read, *this, key, sink);
  if (found) this_reader.record_hit();
  return found;
}

bool State::filter_excludes(ReaderThread& thread, std::string_view key) const {
  const UnpinnedRead read(thread, directory_cache_);
  const DirectoryCache& cache = read.directory_cache();
  const bool excludes = whycache::filter_excludes(cache, read.header(), cache.key_hash(key)) &&
                        !read.superseded() && read.validate();
  read.leave();
  if (excludes) this_reader.record_filter_exclusion();
  return excludes;
}

State::GetFunction* State::select_get() {
#if WHYCACHE_AVX2
  if (has_avx2()) return get_avx2;
#endif
  return [](const State& state, std::string_view key, std::string& value) {
    return read_portable(state, key, CopyValue{value});
  };
}

State::TryGetFunction* State::select_try_get() {
#if WHYCACHE_AVX2
  if (has_avx2()) return try_get_avx2;
#endif
  return [](const State& state, std::string_view key, ValueBuffer& buffer) {
    return read_portable(state, key, CopyToBuffer{buffer});
  };
}

template <typename Take>
ReadOutcome State::read_once(std::string_view key, const Take& take) const noexcept {
  // To register the thread takes memory, which may be missing.
  if (this_reader.thread == nullptr) return ReadOutcome::retry;
  try {
    const ReadSection reading;
    const Mapping* const mapping = impl_->current_file.unowned_mapping();
    if (mapping == nullptr) return ReadOutcome::retry;
    // The slow path renews the directory cache, and asks the owner while fast reads are disabled,
    // when it is that of no file.
    const DirectoryCache* const cache = directory_cache_.load(std::memory_order_acquire);
    if (cache != mapping->last_directory_cache()) return ReadOutcome::retry;
    const ReadOutcome outcome =
        try_point_read(*mapping, MappedBytes(*mapping, *cache), key,
                       [&](std::string_view value) { take(*mapping, value); });
    if (outcome == ReadOutcome::not_found) record_miss();
    return outcome;
  } catch (const std::exception&) {
    return ReadOutcome::retry;  // damage, which the slow path reports
  }
}

bool State::may_wait_for_file() const noexcept {
  try {
    const ReadSection reading;
    const Mapping* const mapping = impl_->current_file.unowned_mapping();
    return mapping == nullptr || is_superseded(*mapping) || !mapping->holds_whole_file();
  } catch (const std::exception&) {  // this thread gets no record, so nothing is known
    return true;
  }
}

template <typename Sink>
bool State::slow_read(std::string_view key, Sink sink) const {
  if (owner_ == nullptr) return slow_read_of_file(key, sink);
  owner_->before_slow_read();
  try {
    return slow_read_of_file(key, sink);
  } catch (const Error& error) {
    if (error.kind() == ErrorKind::corrupt) owner_->note_damage();
    throw;
  }
}

template <typename Sink>
bool State::slow_read_of_file(std::string_view key, Sink sink) const {
  ReadOutcome outcome = ReadOutcome::superseded;
  const auto read_without_pin = [&] {
    const ReadSection reading;
    const Mapping* const mapping = impl_->current_file.unowned_mapping();
    for (int tries = 0; mapping != nullptr && tries < point_read_attempts_max; ++tries) {
      outcome = try_point_read(*mapping, MappedBytes(*mapping), key, [&](std::string_view value) {
        sink.take_any(*mapping, key, value);
      });
      if (mapping->last_directory_cache() != directory_cache_.load(std::memory_order_relaxed))
        impl_->current_file.refresh_directory_cache(*mapping);
      if (outcome != ReadOutcome::retry) return;
      refresh_if_grown(*mapping);
    }
  };
  read_without_pin();
  if (outcome == ReadOutcome::superseded && impl_->current_file.newest_mapping() != nullptr)
    read_without_pin();
  if (outcome == ReadOutcome::found) return true;
  if (outcome == ReadOutcome::not_found) return record_miss();
  // Keeps the value mapped until it is copied.
  const std::shared_ptr<const detail::Pin> held = pin();
  const std::string_view value = held->find(key);
  if (value.data() == nullptr) return record_miss();
  sink.take_any(held->mapping(), key, value);
  return true;
}

void State::enable_fast_reads(bool enabled) const {
  impl_->current_file.enable_fast_reads(enabled);
}

std::shared_ptr<const detail::Pin> State::pin() const {
  unmap_if_idle();
  std::shared_ptr<Mapping> mapping = impl_->current_file.newest_mapping();
  if (!mapping) throw Error(ErrorKind::unavailable, "no usable state: " + unusable_reason());
  return std::make_shared<const detail::Pin>(std::move(mapping));
}

std::size_t State::get_multi(std::span<const std::string_view> keys,
                             std::span<std::optional<std::string>> values) const {
  assert(values.size() == keys.size());
  std::size_t found = 0;
  std::size_t next = 0;  // keys before it are done
  const auto reset_before = [&](std::size_t end) {
    for (; next < end; ++next) values[next].reset();
  };
  pin()->get_many(keys, [&](std::size_t i, const LookupResult& result) {
    reset_before(i);
    next = i + 1;
    ++found;
    if (values[i]) {
      values[i]->assign(result.value);
    } else {
      values[i].emplace(result.value);
    }
  });
  reset_before(keys.size());
  return found;
}

StateInfo State::info() const {
  const std::shared_ptr<Mapping> mapping = impl_->current_file.newest_mapping();
  if (!mapping) throw Error(ErrorKind::unavailable, "no usable state: " + unusable_reason());
  return state_info(*mapping);
}

UpdateId State::applied_id() const {
  {
    const ReadSection reading;
    const Mapping* const mapping = impl_->current_file.unowned_mapping();
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
      const CurrentFile::AwaitedMapping mapping(impl_->current_file);
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
  const std::shared_ptr<Mapping> mapping = impl_->current_file.mapping();
  if (mapping) wake_applied_waiters(mapping->header());
}

StatePosition State::position() const {
  {
    const ReadSection reading;
    const Mapping* const mapping = impl_->current_file.unowned_mapping();
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
  const Mapping* const mapping = impl_->current_file.unowned_mapping();
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
  const Mapping* const mapping = impl_->current_file.unowned_mapping();
  if (mapping == nullptr || is_superseded(*mapping)) return false;
  const Header& header = mapping->header();
  const PollTime& last = header.poll_record.last;
  // The id in the header: another process may have adopted the file.
  return last.time_ns.load(std::memory_order_relaxed) != 0 &&
         !read_poll_time(last, header.fixed.state_id, 0);
}

UpdateId State::known_head() const {
  const ReadSection reading;
  const Mapping* const mapping = impl_->current_file.unowned_mapping();
  return mapping == nullptr
             ? 0
             : mapping->header().poll_record.known_head.load(std::memory_order_relaxed);
}

void State::record_poll(std::int64_t at_ns, UpdateId head, bool by_store) const noexcept {
  const std::shared_ptr<Mapping> mapping = impl_->current_file.mapping();
  if (mapping && impl_->lock_file != nullptr)
    whycache::record_poll(*mapping, *impl_->lock_file, at_ns, head, by_store);
}

void State::record_known_head(UpdateId head) const noexcept {
  const std::shared_ptr<Mapping> mapping = impl_->current_file.mapping();
  if (mapping && impl_->lock_file != nullptr)
    whycache::record_known_head(*mapping, *impl_->lock_file, head);
}

// --- Locks ---

bool State::can_lock() const { return impl_->lock_file != nullptr; }

HeldLock State::lock(StateLock which, const Deadline& deadline) const {
  Impl& inner = *impl_;
  LockFile& lock_file = inner.require_lock_file();
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
  std::unique_lock<std::timed_mutex> threads(inner.lock_mutexes[offset], std::defer_lock);
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
  const Impl& inner = *impl_;
  LockFile& lock_file = inner.require_lock_file();
  std::unique_lock<std::timed_mutex> threads(inner.lock_mutexes[static_cast<std::size_t>(which)],
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
  if (impl_->lock_file != nullptr) wake_next_waiter(*impl_->lock_file, which);
}

// --- Writing ---

std::unique_ptr<StateWriter> State::begin_write(const Deadline& deadline,
                                                MappingPolicy after) const {
  for (int tries = 0;; ++tries) {
    HeldLock writer = lock(StateLock::writer, deadline);
    const std::shared_ptr<Mapping> mapping = impl_->current_file.mapping();
    if (mapping && is_in_place(*mapping))
      return std::make_unique<StateWriter>(std::move(writer), options_, mapping,
                                           impl_->mapping_cache, impl_->ring_keeper, after);
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

void State::unmap_if_idle() const noexcept { impl_->mapping_cache.unmap_if_idle(); }

void State::unmap_whole_if_idle() const noexcept { impl_->mapping_cache.unmap_whole_if_idle(); }

void State::disable_mapping_cache() const noexcept { impl_->mapping_cache.disable(); }

void State::enable_mapping_cache() const noexcept { impl_->mapping_cache.enable(); }

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
  const std::shared_ptr<Mapping> old = impl_->current_file.mapping();
  if (old && is_in_place(*old) && is_ahead_of(*old, built)) {
    if (policy == InstallPolicy::unless_behind) return false;
    if (catch_up) catch_up();
  }
  const FileDescriptor old_file = open_file_if_exists(options_.path, O_RDWR);
  const bool was_own = old_file && has_only_own_changes(*impl_->lock_file, old_file.number());
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
    if (was_own) note_own_changes(*impl_->lock_file, old_file.number());
    throw system_error("cannot put state file in place", options_.path, error);
  }
  StateFileResult found = open_or_adopt_state_file(options_, deadline);
  if (!found.mapping)
    throw Error(ErrorKind::corrupt, "new state cannot be used: " + found.unusable_reason);
  note_own_changes(*impl_->lock_file, found.mapping->descriptor());
  impl_->current_file.switch_to(std::move(found.mapping));
  if (old) supersede(*old);  // it may have been moved away from the path
  return true;
}

bool State::remove_if_unused(const Deadline& deadline) const {
  const HeldLock install = lock(StateLock::install, deadline);
  const HeldLock writer = lock(StateLock::writer, deadline);
  const bool removed = impl_->current_file.run_unmapped(
      [&] {
        const FileDescriptor file = open_file_if_exists(options_.path, O_RDWR);
        if (!file) return false;
        check_may_be_replaced(file, options_);
        const std::optional<Uuid> present = find_log_of_usable_state(options_);
        if (present && !impl_->current_file.is_expected(*present)) return false;
        const SoleUse sole_use(file.number());
        if (!sole_use) return false;
        // For a process that is opening the file right now.
        supersede(file, options_.path);
        return ::unlink(options_.path.c_str()) == 0;
      },
      deadline);
  if (removed)
    impl_->current_file.set_unusable_reason("it was removed to make room for a new one: path=" +
                                            options_.path);
  return removed;
}

// --- Care ---

void State::sync(const Deadline& deadline) const {
  const HeldLock writer = lock(StateLock::writer, deadline);
  const std::shared_ptr<Mapping> mapping = impl_->current_file.mapping();
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
  const std::shared_ptr<Mapping> mapping = impl_->current_file.mapping();
  mapping->refresh_usable_bytes();
  return verify(*mapping, true, progress);
}

void State::describe_use(Stats& stats) const {
  const std::shared_ptr<Mapping> mapping = impl_->current_file.mapping();
  if (!mapping) return;
  stats.file_bytes = mapping->header().file_bytes.load(std::memory_order_acquire);
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
  const std::shared_ptr<Mapping> mapping = impl_->current_file.mapping();
  if (!mapping) return false;
  // A copy: a writer may be changing it.
  AllocatorState state;
  std::memcpy(&state, &mapping->header().allocator_state, sizeof state);
  // Segments that the last update retired are free at the next one.
  return state.segment_count * segment_bytes >= large_bytes &&
         state.free_count + state.retired_count > state.segment_count / 2;
}

StateInspection State::inspect() const {
  const std::shared_ptr<Mapping> mapping = impl_->current_file.mapping();
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
