// The state: the dataset of one machine, one mapped file shared by its processes.
//
// Readers map it read-only and take no lock. The process that holds the writer lock maps it
// writable and applies updates to it, one at a time. The file is a cache of the log: deleting and
// rebuilding it is always safe. Layout: file/layout.h and docs/formats/state.md.
#pragma once

#include <atomic>
#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <whycache/error.h>
#include <whycache/types.h>

#include "base/clock.h"
#include "state/file/state_info.h"
#include "state/file/state_lock.h"
#include "state/inspect.h"
#include "state/read/change_ring_reader.h"
#include "state/write/mapping_policy.h"

namespace whycache {

namespace detail {
class Pin;
}
struct DirectoryCache;
class Mapping;
struct PollRecord;
struct PollTime;
struct ReaderThread;
class StateBuilder;
struct StateFileResult;
class StateWriter;
enum class ReadOutcome : std::uint8_t;

// Memory of a caller that a read copies a value to.
struct ValueBuffer {
  char* data = nullptr;
  std::size_t bytes = 0;
  // A larger value leaves the read undecided.
  std::size_t bytes_max = 0;
  // Sets `data` and `bytes` for a value of another size. Returns false if memory is missing. Runs
  // in a read section: it must not read a state, nor wait.
  bool (*resize)(ValueBuffer& buffer, std::size_t bytes) = nullptr;
  // Set if State::try_get() returned false without having decided that the key is absent.
  bool is_undecided = false;
};

// Identifies the value of a key on this machine. A state file has one history, so a key that
// has the same version there again has had the same value all the time. After the log was restored
// or replaced, the state is another file, with another id.
struct EntryVersion {
  std::uint64_t state_id = 0;
  UpdateId version = 0;

  friend bool operator==(const EntryVersion&, const EntryVersion&) = default;
};
// The update up to which a state file was read.
struct StatePosition {
  std::uint64_t state_id = 0;
  UpdateId applied_id = 0;

  friend bool operator==(const StatePosition&, const StatePosition&) = default;
};

class StateFiles;

// The object that a State belongs to, if it decides about reads: State::set_owner().
class StateOwner {
 public:
  // A read is about to take the slow path. It throws what this throws.
  virtual void before_slow_read() = 0;
  // A read has found the state damaged, and throws Error(corrupt).
  virtual void note_damage() noexcept = 0;

 protected:
  ~StateOwner() = default;
};

// Whether State::install() replaces a current state that has applied more of the same log than the
// new one, which happens if a writer of this machine has been active meanwhile.
enum class InstallPolicy : std::uint8_t { always, unless_behind };

class State {
 public:
  // Opens the state at options.path. If there is no usable state, usable() returns false and
  // unusable_reason() says why; a StateBuilder then makes one. A state from another boot, or a
  // copied file, is verified completely before it is trusted. Throws Error(invalid) for a bad path,
  // missing permission, an unsuitable file system, or a file of another user. Throws Error(corrupt)
  // if the file is not a whycache state of this format; such a file is never overwritten.
  //
  // Verifying and adopting needs locks. Throws Error(unavailable) if others hold them until the
  // deadline. A process that may not use the lock file, or has asked for options.read_only, can
  // read, and verify for itself; whatever needs the lock file throws Error(invalid) there.
  explicit State(const StateOptions& options, const Deadline& deadline = default_deadline());
  static std::unique_ptr<State> open(const StateOptions& options,
                                     const Deadline& deadline = default_deadline()) {
    return std::make_unique<State>(options, deadline);
  }
  static Deadline default_deadline() { return Deadline(std::chrono::seconds(10)); }
  ~State();
  State(const State&) = delete;
  State& operator=(const State&) = delete;

  const std::string& path() const { return options_.path; }
  // Returns whether there is a state to read.
  bool usable() const;
  std::string unusable_reason() const;
  // Returns whether open() found a file from elsewhere (another inode or boot), verified and
  // adopted it.
  bool adopted() const { return adopted_; }

  // --- Reads. They throw Error(corrupt) if the file is damaged, Error(invalid) if not usable().
  // ---

  // Copies the value into `value` and returns true, or returns false if the key is absent.
  bool get(std::string_view key, std::string& value) const { return get_(*this, key, value); }
  // The part of get() that never waits, throws or makes a system call, for a caller that holds a
  // lock while it reads. Returns true if the buffer holds exactly the value. Its content is
  // unspecified otherwise, and `is_undecided` says whether to read by get().
  bool try_get(std::string_view key, ValueBuffer& buffer) const noexcept {
    return try_get_(*this, key, buffer);
  }
  // As get(), into a new string; nullopt: the key is absent.
  std::optional<std::string> get(std::string_view key) const;
  bool contains(std::string_view key) const {
    EntryVersion version;
    return find_version(key, version);
  }
  // Sets `version` and returns true, or returns false if the key is absent.
  bool find_version(std::string_view key, EntryVersion& version) const;
  // The same under the conditions of try_get(). Returns nullopt if it is undecided.
  std::optional<bool> try_find_version(std::string_view key, EntryVersion& version) const noexcept;
  // Names the object that the reads above ask before they take the slow path, try_get() and
  // try_find_version() apart, which leave that to the caller. While fast reads are disabled, it is
  // asked before every read. Call this before the first read. The owner outlives the reads.
  void set_owner(StateOwner& owner) { owner_ = &owner; }
  // Disables the fast path of all reads, in all threads, or enables it again. A read that is under
  // way may still take it. Enabled at first.
  void enable_fast_reads(bool enabled) const;
  // Whether pin(), and so get_multi(), may have to wait: for a file that replaces the present one,
  // or until the present one, which has grown, is mapped again.
  bool may_wait_for_file() const noexcept;
  // Returns a position at or before the one that the next read sees. Costs some nanoseconds.
  StatePosition position() const;
  // Reads all keys as of one update id, into as many values, whose memory it reuses; nullopt: the
  // key is absent. Returns how many are present.
  std::size_t get_multi(std::span<const std::string_view> keys,
                        std::span<std::optional<std::string>> values) const;
  std::shared_ptr<const detail::Pin> pin() const;
  StateInfo info() const;
  // Returns the position of the newest file. Throws as info().
  LogPosition log_position() const;
  UpdateId applied_id() const;
  // Sleeps until the applied id is greater than `after`, or less than before, as in the state of a
  // log that was restored; or until the deadline has passed. Returns the applied id. While there is
  // no state, looks for one ten times a second. `before`: the applied id that the caller has seen.
  UpdateId wait(UpdateId after, const Deadline& deadline, UpdateId before = 0) const;
  // Wakes every thread that waits, in any process; a hint without a reason. For tests.
  void wake_waiters() const noexcept;

  // Returns a reader of the ring of recent changes beside the file.
  ChangeRingReader changes() const { return ChangeRingReader(options_); }

  // --- Freshness, shared by the processes of this machine. ---

  // Returns the time of the last poll of the log whose answer has been applied: CLOCK_BOOTTIME
  // nanoseconds, taken before the question was sent. Returns nullopt if there was none by this
  // process's clock (poll_record.h). Takes tens of nanoseconds and no system call; less if the
  // caller has read the clock.
  std::optional<std::int64_t> last_poll_time_ns(std::int64_t now_ns = 0) const;
  // Returns the head that the log had at that time.
  UpdateId known_head() const;
  // The same, but counts only polls that the log's store itself answered, not a tier in front of it
  // (Log::poll).
  std::optional<std::int64_t> last_store_poll_time_ns(std::int64_t now_ns = 0) const;
  // Records that the log has this head, though not all of it is applied: known_head() is then not
  // behind what a process has seen. Conditions as record_poll().
  void record_known_head(UpdateId head) const noexcept;
  // Whether the log was polled, but by a process whose clock this one cannot compare with its own,
  // in another time namespace.
  bool was_polled_by_another_clock() const;
  // The caller holds StateLock::follow. Records nothing if this process may not write to the state
  // file, or has no memory or descriptor for it: then each process polls the log for itself.
  void record_poll(std::int64_t at_ns, UpdateId head, bool by_store = true) const noexcept;

  // --- Writing. ---

  // Whether this process may use the lock file. Without it, nothing can be written here.
  bool can_lock() const;
  // Waits for the lock. Throws Error(unavailable), with the name of the lock, if the deadline
  // passes; Error(invalid) if the process may not use the lock file.
  HeldLock lock(StateLock which, const Deadline& deadline) const;
  // The same without waiting. Returns nullopt if another process or thread has the lock.
  std::optional<HeldLock> try_lock(StateLock which) const;
  // Wakes the next waiter early: the holder calls it when it expects to release the lock within
  // some tens of microseconds, which is what waking takes. If the release takes longer, the waiter
  // sleeps again.
  void announce_release(StateLock which) const noexcept;
  // Takes the writer lock, after following a switch of files. Repairs what a writer left that died.
  std::unique_ptr<StateWriter> begin_write(const Deadline& deadline,
                                           MappingPolicy after = MappingPolicy::unmap) const;
  // Unmaps the writable mapping, or a part of it, if it has been unused for 100 ms. Takes a quarter
  // of a millisecond, and some nanoseconds if there is nothing to do.
  void unmap_if_idle() const noexcept;
  // The same, but all of it, however long that takes.
  void unmap_whole_if_idle() const noexcept;
  bool has_cached_mapping() const noexcept;
  // Unmaps it now, however long that takes.
  void unmap_cached() const noexcept;
  // Unmaps the writable mapping now, and keeps none after later writes.
  void disable_mapping_cache() const noexcept;
  void enable_mapping_cache() const noexcept;
  std::unique_ptr<StateBuilder> begin_build(const Uuid& log_uuid,
                                            const std::string& log_name) const;
  // Puts the file of `builder` in place of the current one. Processes that read the current one
  // notice and switch. The caller holds StateLock::follow, so that no other process installs.
  // Returns false, without installing, if `policy` forbids it, or if a usable state of another log
  // has come to the path: neither of the log of the current file or of `builder`, nor of
  // `other_log`. With InstallPolicy::always, calls
  // `catch_up` under the writer lock if the current state is ahead of the new one. `catch_up`
  // applies the rest of the log to `builder`. Otherwise items that were visible in the current
  // state would disappear for a while.
  bool install(StateBuilder& builder, InstallPolicy policy = InstallPolicy::always,
               const std::function<void()>& catch_up = {},
               const Deadline& deadline = default_deadline(),
               const std::optional<Uuid>& other_log = std::nullopt) const;
  // Removes the file, to make room for one that is being built, if no other process and no view of
  // this one has it open. Returns whether it did. Reads then throw Error(unavailable),
  // until another file is installed.
  bool remove_if_unused(const Deadline& deadline) const;
  // Switches to the file that replaced ours, if there is one. Reads do this by themselves.
  // Throws Error(unavailable) if this process cannot use it, or if it has to be verified and others
  // hold the locks until the deadline.
  //
  // Does not switch to a state of another log than the one whose states were read here. Returns
  // what that is; the caller asks its log, and calls expect_log() if it is the same.
  std::optional<LogIdentity> switch_if_replaced(
      const Deadline& deadline = default_deadline()) const;
  // From now on, reads switch to states of this log only. Until the first call, it is the log of
  // the first state that was read.
  void expect_log(const Uuid& log_uuid) const;
  bool expects_log(const Uuid& log_uuid) const;
  // Whether other processes use the state at the path. Throws Error as open().
  bool is_used_by_others() const;

  // --- Care. ---

  // Writes the file to the disk, with its clean mark. Waits for a writer.
  void sync(const Deadline& deadline) const;
  // Removes the file. Other processes notice.
  void remove(const Deadline& deadline) const;
  StateInspection inspect() const;
  // Whether the file is large (64 MiB) and more than half of its segments are free, as after a
  // large part of the dataset was erased. A file never shrinks; a new one has no free segments.
  bool is_mostly_free() const;
  // Sets the members of `stats` that tell of the file and of its views.
  void describe_use(Stats& stats) const;
  // Verifies every structure: header, directory, every index word and entry, the order and content
  // of the key index against the entries, segment accounting, digest. Returns what is wrong; empty
  // if nothing is. Holds the writer lock meanwhile. `progress(done, total)` may be empty.
  std::vector<std::string> check(
      const Deadline& deadline,
      const std::function<void(std::uint64_t, std::uint64_t)>& progress) const;

 private:
  struct Opening {};
  State(Opening, StateOptions options);
  static StateOptions checked(const StateOptions& options);
  void clear_stale_superseded_bit() const noexcept;
  bool is_trusted(const Mapping& mapping) const;
  StateFileResult open_with_locks(const Deadline& deadline) const;
  std::optional<LogIdentity> of_other_log(const Mapping& found) const;
  // --- Point reads (read/point_read.h) ---
  struct CopyValue;
  struct CopyToBuffer;
  struct FindVersion;
  struct TryFindVersion;
  // get() with the bucket search that this processor is best at.
  using GetFunction = bool(const State& state, std::string_view key, std::string& value);
  static GetFunction get_avx2;
  static GetFunction* select_get();
  using TryGetFunction = bool(const State& state, std::string_view key, ValueBuffer& buffer);
  static TryGetFunction try_get_avx2;
  static TryGetFunction* select_try_get();
  // Point reads of keys of any size, with the bucket search of AVX2.
  template <typename Sink>
  static bool read_avx2(const State& state, std::string_view key, Sink sink);
  template <typename Sink>
  static bool read_any_size_avx2(const State& state, std::string_view key, Sink sink);
  template <typename Sink>
  static bool read_portable(const State& state, std::string_view key, Sink sink);
  // Reads keys of any size. A thread whose keys are mostly absent probes the filter of the index
  // first, unless the caller has done so (`passed_filter`).
  template <typename Sink>
  [[gnu::noinline]] bool read(std::string_view key, Sink sink, bool passed_filter) const;
  bool filter_excludes(ReaderThread& thread, std::string_view key) const;
  // Copies a value that is long, or that has another size than the string.
  [[gnu::noinline]] static bool finish_get(std::string_view key, std::string& value,
                                           std::string_view found);
  [[gnu::noinline]] static bool finish_get_in_new_memory(std::string_view key, std::string& value,
                                                         std::string_view found);
  [[gnu::noinline]] static bool finish_try_get(ValueBuffer& buffer, std::string_view found);
  // One attempt without a pin, which waits for nothing and takes no memory. Passes the mapping and
  // the value to `take`, where it may still prove torn. Returns found or not_found if that is
  // certain, else another outcome.
  template <typename Take>
  [[gnu::noinline]] ReadOutcome read_once(std::string_view key, const Take& take) const noexcept;
  // Reads that the fast path left undecided, after the owner has agreed.
  template <typename Sink>
  [[gnu::noinline]] bool slow_read(std::string_view key, Sink sink) const;
  // Several attempts without a pin, then one with a pin.
  template <typename Sink>
  bool slow_read_of_file(std::string_view key, Sink sink) const;
  std::optional<std::int64_t> poll_time(PollTime PollRecord::*which, std::int64_t now_ns) const;

  StateOptions options_;
  bool adopted_ = false;
  // The directory cache of the current mapping. CurrentFile stores it (release); point reads
  // acquire it in a read section. It is a member here rather than of CurrentFile, so that a read
  // finds it with one load.
  std::atomic<const DirectoryCache*> directory_cache_;
  bool (*const get_)(const State&, std::string_view, std::string&);
  bool (*const try_get_)(const State&, std::string_view, ValueBuffer&);
  StateOwner* owner_ = nullptr;
  std::unique_ptr<StateFiles> files_;
};

}  // namespace whycache
