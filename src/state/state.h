// The state: the dataset on one machine, one mapped file shared by its processes.
//
// Readers map it read-only and take no lock. Whoever holds the writer lock maps it writable and
// carries updates into it, one at a time. The file is a cache of the log: to drop and rebuild it is
// always right. Layout: layout.h and docs/formats/state.md.
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
#include "state/write/mapping_policy.h"

namespace whycache {

namespace detail {
class Pin;
}
struct DirectoryCache;
struct ReaderThread;
class StateBuilder;
class StateWriter;

// Whether State::install() replaces a current state that has applied more of the same log than the
// new one, which happens if a writer of this machine has been active meanwhile.
enum class InstallPolicy : std::uint8_t { always, unless_behind };

class State {
 public:
  // Opens the state at options.path, or finds that there is none that can be used: then usable() is
  // false, why_unusable() says why, and a StateBuilder has to make one. A state from another boot
  // or a copied file is verified as a whole before it is believed. Throws Error invalid (path,
  // permission, file system; the file belongs to another user) and corrupt for a file that is there
  // but is not a whycache state of this format: it is never overwritten.
  static std::unique_ptr<State> open(const StateOptions& options);
  ~State();

  const std::string& path() const { return options_.path; }
  // Whether there is a state to read.
  bool usable() const;
  std::string unusable_reason() const;
  // Whether the file was brought here from elsewhere (another inode or boot) and passed
  // verification just now.
  bool adopted() const { return adopted_; }

  // --- Reads. Throw Error corrupt if the file is damaged, invalid if not usable. ---

  // Copies the value into `value` if the key is there.
  bool get(std::string_view key, std::string& value) const { return get_(*this, key, value); }
  bool contains(std::string_view key) const;
  // All as of one update id. `found(i, value)` is called once for each key that is there, in any
  // order.
  UpdateId get_multi(std::span<const std::string_view> keys,
                     const std::function<void(std::size_t, std::string_view)>& found) const;
  std::shared_ptr<const detail::Pin> pin() const;
  StateInfo info() const;
  UpdateId applied_id() const;

  // --- Freshness, shared by the processes of this machine. ---

  // CLOCK_BOOTTIME nanoseconds at which the log was last asked, counted from before the question
  // was sent, all it answered being applied; nullopt: not in this boot. Tens of nanoseconds, no
  // system call.
  std::optional<std::int64_t> last_poll_time_ns() const;
  // The head the log had then.
  UpdateId known_head() const;
  // The same, but only what the log's store itself answered counts, not what stands in front of it
  // (Log::look).
  std::optional<std::int64_t> last_store_poll_time_ns() const;
  void record_poll(std::int64_t at_ns, UpdateId head, bool by_store = true) const;

  // --- Writing. ---

  // Waits for the lock until the deadline. Throws Error unavailable, naming the lock, when it has
  // passed.
  HeldLock lock(StateLock which, const Deadline& deadline) const;
  // Called by who holds the lock when he is nearly done, as far as he knows: waking takes whoever
  // is next some tens of microseconds. If it takes longer, he goes to sleep again.
  void announce_release(StateLock which) const noexcept;
  // Takes the writer lock. Mends what a dead writer left. Follows a switch of files first.
  std::unique_ptr<StateWriter> begin_write(const Deadline& deadline,
                                           MappingPolicy after = MappingPolicy::unmap) const;
  // Unmaps what was kept since a write, if nobody wrote for 10 ms. Some nanoseconds if there is
  // nothing to do.
  void unmap_if_idle() const noexcept;
  // The same at once, and from now on nothing is kept.
  void disable_mapping_cache() const noexcept;
  std::unique_ptr<StateBuilder> begin_build(const Uuid& log_uuid,
                                            const std::string& log_name) const;
  // Puts the file of `builder` in place of the current one. Processes that read the current one
  // notice and switch. The caller holds StateLock::follow, so that nobody else installs. Returns
  // false, without installing, if `policy` forbids it. With InstallPolicy::always, `catch_up` is
  // called if the current state is ahead of the new one. It applies the rest of the log to
  // `builder` while nobody can write to the current state; otherwise items that were visible there
  // would disappear for a while.
  bool install(StateBuilder& builder, InstallPolicy policy = InstallPolicy::always,
               const std::function<void()>& catch_up = {}) const;
  // Opens the file that took the place of ours, if one did. Reads do this by themselves.
  void switch_if_replaced() const;

  // --- Care. ---

  // Brings the file to the disk, with its clean mark. Waits for a writer.
  void sync(const Deadline& deadline) const;
  // Removes the file; others notice.
  void remove(const Deadline& deadline) const;
  StateInspection inspect() const;
  // Verifies every structure: header, directory, every index word and entry, order and content of
  // the key index against the entries, segment accounting, digest. Returns what is wrong, empty if
  // nothing is. Holds the writer lock while it looks. `progress(done, total)` may be empty.
  std::vector<std::string> check(
      const Deadline& deadline,
      const std::function<void(std::uint64_t, std::uint64_t)>& progress) const;

 private:
  explicit State(StateOptions options);
  void clear_stale_superseded_bit() const noexcept;
  // --- Point reads (read/point_read.h) ---
  struct CopyValue;
  struct TestPresence;
  // get() with the bucket search that this processor is best at.
  using GetFunction = bool(const State& state, std::string_view key, std::string& value);
  static GetFunction get_portable;
  static GetFunction get_avx2;
  static GetFunction* select_get();
  template <typename Sink>
  bool read(std::string_view key, Sink sink) const;
  // Keys of any size. Also reads of threads whose keys are mostly absent: these ask the filter of
  // the index first.
  template <typename Sink>
  [[gnu::noinline]] bool read_any(std::string_view key, Sink sink) const;
  [[gnu::noinline]] static GetFunction get_filter_first_avx2;
  bool filter_excludes(ReaderThread& thread, std::string_view key) const;
  template <typename Sink>
  [[gnu::noinline]] bool read_past_filter(std::string_view key, Sink sink) const;
  // Copies a value that is long, or that has another size than the string.
  [[gnu::noinline]] static bool finish_get(std::string_view key, std::string& value,
                                           std::string_view found);
  // Reads that the fast path left undecided: several attempts without a pin, then one with a pin.
  template <typename Sink>
  [[gnu::noinline]] bool slow_read(std::string_view key, Sink sink) const;
  std::optional<std::int64_t> poll_time(std::atomic<std::int64_t> LockFileHeader::*which) const;

  struct Impl;
  StateOptions options_;
  bool adopted_ = false;
  // Of the mapping that reads use now. CurrentFile stores it (release); point reads acquire it in a
  // read section. Here rather than in CurrentFile, so that a read finds it with one load.
  std::atomic<const DirectoryCache*> directory_cache_;
  bool (*const get_)(const State&, std::string_view, std::string&);
  std::unique_ptr<Impl> impl_;
};

}  // namespace whycache
