// The state file that the reads of one State use, and the switch to the file that replaces it.
//
// A replaced file keeps its mapping until no thread of this process can be reading it (rcu.h), and
// until the last pin releases it.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include <whycache/types.h>

#include "base/clock.h"
#include "base/fork_handlers.h"
#include "base/mutex.h"
#include "state/file/mapping.h"
#include "state/file/state_info.h"
#include "state/read/rcu.h"
#include "state/read/state_path.h"

namespace whycache {

// Whether another process is about to replace the file, or has done so.
inline bool is_superseded(const Mapping& mapping) {
  // Acquire: pairs with the setting of the bit, before the successor is renamed into place.
  return (mapping.header().reclaim_generation.load(std::memory_order_acquire) & superseded_bit) !=
         0;
}

class CurrentFile final : public ForkHandler {
  // A mapping that was replaced, or that a thread keeps while it sleeps.
  struct RetiredMapping {
    std::shared_ptr<Mapping> mapping;
    // Nullopt: there was no memory for it yet.
    std::optional<GracePeriod> grace_period;

    void start_grace_period() noexcept;
    bool poll_grace_period() noexcept;
  };

 public:
  // `directory_cache` is what point reads load: that of the current mapping, or one that fits no
  // file while there is none. Its owner keeps it where a read finds it with one load. `on_switch`
  // runs after each switch.
  CurrentFile(const StateOptions& options, std::atomic<const DirectoryCache*>& directory_cache,
              std::function<void()> on_switch);
  ~CurrentFile();

  void before_fork() noexcept override;
  void after_fork_in_parent() noexcept override;
  void after_fork_in_child() noexcept override;

  // Returns the current mapping, or null if there is none.
  std::shared_ptr<Mapping> mapping() const;
  // The same for a caller in a ReadSection, which the mapping outlives.
  const Mapping* unowned_mapping() const {
    return unowned_mapping_.load(std::memory_order_acquire);
  }
  // Returns the current mapping. If its file was replaced, switches to the successor first. Returns
  // null if there is no mapping. Throws Error(unavailable) if this process cannot open the
  // successor, or if that is of another log than the expected one.
  std::shared_ptr<Mapping> newest_mapping();

  // Keeps the newest mapping for a thread that sleeps. A child that is forked meanwhile does not
  // have that thread, and releases the mapping.
  class AwaitedMapping {
   public:
    // May throw as newest_mapping().
    explicit AwaitedMapping(CurrentFile& file);
    AwaitedMapping(const AwaitedMapping&) = delete;
    AwaitedMapping& operator=(const AwaitedMapping&) = delete;
    ~AwaitedMapping();

    // Null if there is no mapping.
    const Mapping* get() const { return mapping_; }

   private:
    CurrentFile& file_;
    std::list<RetiredMapping>::iterator place_;
    const Mapping* mapping_;
  };

  // A file that comes to the path may belong to another log of the same name. Reads switch only to
  // states of the expected log: that of the last call, or else of the first mapping.
  void expect_log(const Uuid& log_uuid);
  bool is_expected(const Uuid& log_uuid) const;

  // Switches to a mapping that was opened under StateLock::install, or before other threads know
  // this State: no other file can take its place meanwhile. Expects its log from now on.
  void switch_to(std::shared_ptr<Mapping> mapping);
  // Opens the file at the path and switches to it if it is of the expected log. Returns the mapping
  // of that file; null if it cannot be used. Throws Error as open_state_file().
  std::shared_ptr<Mapping> switch_to_file_at_path();
  // Runs `remove_file` while no read of this process has a file mapped, except for pins. New reads
  // wait meanwhile. Maps the file at the path again if `remove_file` returns false. Returns what
  // that returned, or false if a read did not end before the deadline.
  bool run_unmapped(const std::function<bool()>& remove_file, const Deadline& deadline);
  // Unmaps replaced mappings that no thread can be reading any more.
  void unmap_retired();
  // A read of `mapping` needed another directory cache. Makes that the one of later reads, unless
  // another thread holds the mutex: it may be switching to another file.
  void refresh_directory_cache(const Mapping& mapping);
  // While disabled, point reads load the directory cache of no file, which sends each to its slow
  // path. A read that has loaded another one before finishes on it. Enabled at first.
  void enable_fast_reads(bool enabled);

  // Why there is no usable file; empty if it was removed.
  std::string unusable_reason() const;
  void set_unusable_reason(std::string reason);

  // The directory cache of no file.
  static const DirectoryCache& no_directory_cache();

 private:
  // Tells a file at the path from one that was there before.
  struct FileVersion {
    std::uint64_t device;
    std::uint64_t inode;
    std::int64_t changed_ns;

    friend bool operator==(const FileVersion&, const FileVersion&) = default;
  };
  // A file that could not be used. It is tried again after a while; another one at once.
  struct FailedSearch {
    std::optional<FileVersion> file;  // nullopt: it was the present one
    std::int64_t at_ns;
    std::optional<Error> error;  // if reads must not continue without it
  };

  std::optional<FileVersion> find_successor(const Mapping& mapping) const;
  std::shared_ptr<Mapping> open_successor(std::optional<Error>& error)
      WHYCACHE_REQUIRES(successor_mutex_);
  void prepare_for_views(const Mapping& mapping);
  void switch_locked(std::shared_ptr<Mapping> mapping) WHYCACHE_REQUIRES(successor_mutex_);
  // Stores what point reads load from now on.
  void publish_directory_cache() WHYCACHE_REQUIRES(switch_mutex_);
  bool wait_until_unmapped(const Deadline& deadline) WHYCACHE_REQUIRES(successor_mutex_);
  // Moves the replaced mappings that no thread can be reading any more to `unmapped`, whose
  // destruction may wait for a fork: the caller releases the mutex first.
  void take_elapsed(std::list<RetiredMapping>& unmapped) noexcept WHYCACHE_REQUIRES(switch_mutex_);

  const StateOptions& options_;
  const std::function<void()> on_switch_;
  StatePath state_path_;
  // Held from opening the file at the path until the switch to it: otherwise a slow thread would
  // switch back to a file that has been replaced since. Taken before switch_mutex_, and never while
  // waiting for a StateLock.
  Mutex successor_mutex_;
  std::optional<FailedSearch> failed_search_ WHYCACHE_GUARDED_BY(successor_mutex_);

  mutable Mutex switch_mutex_;
  std::shared_ptr<Mapping> mapping_ WHYCACHE_GUARDED_BY(switch_mutex_);
  std::list<RetiredMapping> retired_ WHYCACHE_GUARDED_BY(switch_mutex_);
  std::list<RetiredMapping> awaited_ WHYCACHE_GUARDED_BY(switch_mutex_);
  std::string unusable_reason_ WHYCACHE_GUARDED_BY(switch_mutex_);
  std::optional<Uuid> expected_log_ WHYCACHE_GUARDED_BY(switch_mutex_);
  bool fast_reads_enabled_ WHYCACHE_GUARDED_BY(switch_mutex_) = true;
  // mapping_.get(). Stored under switch_mutex_ (release); point reads in a ReadSection acquire it.
  std::atomic<const Mapping*> unowned_mapping_{nullptr};
  // The directory cache of the same mapping, stored and acquired in the same way; that of no file
  // while fast reads are disabled.
  std::atomic<const DirectoryCache*>& directory_cache_;
};

}  // namespace whycache
