// A cheaper store in front of a log, the tier, for fleets: followers read new updates from it, and
// one of them polls the log every few seconds for all. Reasons, and what was rejected:
// docs/decisions/memcached-tier.md. log/tier_store.h lists what the tier keeps.
//
// The prefix of what it keeps, whycache2:UUID:STORE:, differs for a copy of the log: the copy has
// the same uuid, and its first own update continues the same history.
//
// Only poll() reads updates from the tier. All other calls use the log directly. append() also
// publishes its update once the log has it, and then a head record.
//
// Publishing. A head record claims: the log was polled, and its head was this id, with this chain;
// publish_delay_ns later the record was sent. It replaces only the record that the process found
// before it polled the log (compare-and-swap). Records therefore follow each other in
// the order in which the log was polled. If another record is there instead, the process tries
// again for 5 seconds. Then it replaces a record whose head is lower than its own, but not one that
// is lower than the record it had found: that may report a restored log. A process that was
// suspended can thus replace a newer record only within 5 seconds, and its record says how old it
// is.
//
// Waiting. wait() asks the tier, and sleeps if the tier wakes no process: polling it is cheap. A
// log that wakes its followers would need a connection for each of them.
//
// Following. poll() hands out nothing beyond the head record, and only if the last update it hands
// out has the record's chain. The caller verifies that the updates continue its own. Together this
// proves that the caller then has what the log had when it was polled. Wrong updates are found
// before they are applied, whatever the tier holds; only a wrong head record could mislead.
// Therefore the log is polled
//   - by one process of all every confirm_s, which publishes a new record. It renews its lease
//     before that expires, and keeps its connection to the log. If it dies, another takes over.
//   - by every process that finds a new record below its own head, or one that names another update
//     there: either the log was restored, or the tier is wrong,
//   - by every process whose last usable record is older than the caller of poll() allows, or than
//     HeadTracker::served_staleness_max(),
//   - by every process after ask_s, whatever the tier holds.
// The tier may have kept a record through a restore of the log. Therefore a record takes a process
// beyond its own poll of the log only if it must have been published after that poll began.
// Otherwise one process of all polls the log. A record that was published more than a second after
// its poll has to prove that this poll was later than our own.
//
// Staleness. Clocks of different machines are never compared. A record that was not there when this
// process read the tier last was published since: the log was polled after that time, less
// publish_delay_ns. The record's poll lease was stored before the log was polled: if the tier still
// has the lease, the poll is no older than the lease lasts.
//
// Forks. A child does not use the object of its parent, but reopen(). It may destroy it while a
// thread of the parent seems to change it.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <whycache/log.h>

#include "base/mutex.h"
#include "base/timed_mutex.h"
#include "log/head_record.h"
#include "log/head_tracker.h"
#include "log/tier_store.h"

namespace whycache {

struct TierOptions {
  // How often one process of all polls the log.
  std::chrono::seconds confirm_interval{2};
  // How long a process trusts the tier without polling the log itself.
  std::chrono::seconds own_poll_interval{3600};
  // How long a request to the tier may take.
  std::chrono::milliseconds timeout{100};
};

// Returns what the keys of a log in a tier begin with.
std::string tiered_item_prefix(const Extent& extent, const std::string& log_name);

class TieredLog final : public Log {
 public:
  TieredLog(std::shared_ptr<Log> log, MakeTierStore make_tier, TierOptions options);
  ~TieredLog() override;

  // The name of the log behind the tier: both are the same log.
  std::string name() const override { return log_->name(); }
  Extent extent() override;
  Appended append(UpdateId id, std::string_view bytes) override;
  Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) override;
  PollResult poll(UpdateId first, std::optional<std::chrono::nanoseconds> staleness_max,
                  const VisitUpdate& visit) override;
  bool wait(UpdateId after, std::chrono::nanoseconds at_most) override;
  bool notifies() const noexcept override { return tier_->notifies(); }
  void read_base(const VisitPart& visit) override { log_->read_base(visit); }
  bool rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) override;
  void check_may_rewrite() override { log_->check_may_rewrite(); }
  std::uint64_t store_id() const noexcept override { return log_->store_id(); }
  void release_idle_connections() noexcept override { log_->release_idle_connections(); }
  std::unique_ptr<Log> reopen() override;

 private:
  struct CachedUpdate {
    UpdateId id = 0;
    std::string bytes;
  };
  // A head record as it was found in the tier.
  struct FoundHeadRecord {
    HeadRecord record;
    TierStore::StoredHead stored;
  };
  struct CachedAnswer {
    PollResult result;
    std::vector<CachedUpdate> updates;
  };
  // A poll of the log under way.
  struct LogPoll {
    Extent known_extent;  // of the log as it was known before
    std::optional<FoundHeadRecord> found;
    std::uint64_t lease_id = 0;
    bool is_own_lease = true;
    std::int64_t prepared_at_ns = 0;
    std::int64_t began_at_ns = 0;
  };
  class UpdateTail;
  // What the log answered, until the tracker knows it.
  struct Outcomes {
    std::optional<Extent> extent;
    UpdateId appended_id = 0;  // the greatest
    UpdateId failed_id = 0;    // the greatest; 0 if a later append succeeded
    std::uint64_t store_id = 0;
    std::int64_t appended_at_ns = 0;
    std::int64_t failed_at_ns = 0;
    bool has_rewrite = false;
  };

  Deadline call_deadline() const;
  std::string item_prefix() const WHYCACHE_REQUIRES(mutex_);
  PollLease poll_lease(std::uint64_t lease_id) const;

  // Polls the log to its end, and publishes what it returned. `is_repeated`: the caller may do so
  // all the time, so publish only now and then.
  PollResult poll_log(UpdateId first, bool is_repeated, const VisitUpdate& visit);
  LogPoll prepare_log_poll(bool is_repeated, std::int64_t prepared_at_ns) WHYCACHE_REQUIRES(mutex_);
  std::optional<std::uint64_t> find_head_chain(const Extent& extent, const UpdateTail& tail) const;
  void finish_log_poll(LogPoll poll, bool is_repeated, const Extent& extent, const UpdateTail& tail,
                       std::optional<std::uint64_t> head_chain) WHYCACHE_REQUIRES(mutex_);
  void record_extent(const Extent& extent) WHYCACHE_REQUIRES(mutex_);
  void note_extent(const Extent& extent) WHYCACHE_EXCLUDES(mutex_, outcomes_mutex_);
  void note_append_failed(UpdateId id) WHYCACHE_EXCLUDES(outcomes_mutex_);
  void note_appended(UpdateId id) WHYCACHE_EXCLUDES(outcomes_mutex_);
  void record_outcomes() WHYCACHE_REQUIRES(mutex_) WHYCACHE_EXCLUDES(outcomes_mutex_);

  // Returns nullopt if the log has to be polled.
  std::optional<CachedAnswer> poll_tier(UpdateId first, std::chrono::nanoseconds staleness_max)
      WHYCACHE_REQUIRES(mutex_);
  bool try_take_poll_lease() WHYCACHE_REQUIRES(mutex_);
  HeadVerdict use_head_record(const HeadRecord& record, const std::optional<PollLease>& lease,
                              UpdateId first, std::int64_t now_ns,
                              std::vector<CachedUpdate>& updates) WHYCACHE_REQUIRES(mutex_);
  HeadVerdict fetch_updates_to_head(const HeadRecord& record, UpdateId first,
                                    std::vector<CachedUpdate>& updates) WHYCACHE_REQUIRES(mutex_);
  bool try_take_fill_lease(UpdateId id) WHYCACHE_REQUIRES(mutex_);
  std::optional<CachedUpdate> fetch_update(UpdateId id) WHYCACHE_REQUIRES(mutex_);
  std::optional<FoundHeadRecord> fetch_head_record() WHYCACHE_REQUIRES(mutex_);

  void publish_appended(const TierStore::UpdateView& update, std::optional<FoundHeadRecord> found,
                        bool has_looked, std::int64_t began_at_ns) WHYCACHE_REQUIRES(mutex_);
  // Publishes updates that follow each other, and what the log returned to a poll that began at
  // `began_at_ns`, when `found` was the head record.
  void publish(std::vector<TierStore::UpdateView> updates, std::optional<FoundHeadRecord> found,
               HeadRecord record, std::int64_t began_at_ns) WHYCACHE_REQUIRES(mutex_);

  const std::shared_ptr<Log> log_;
  const MakeTierStore make_tier_;
  const TierOptions options_;
  const std::uint64_t owner_fork_count_;  // fork_count() of the process that created this
  // Requests are made by the thread that holds mutex_.
  const std::unique_ptr<TierStore> tier_;

  // Held during requests to the tier. Each takes options_.timeout at most, and a call may make
  // several, as log/tier_store.h says.
  TimedMutex mutex_;
  HeadTracker tracker_ WHYCACHE_GUARDED_BY(mutex_);
  // The poll lease that poll_tier() got. The next poll of the log takes it.
  std::uint64_t pending_lease_id_ WHYCACHE_GUARDED_BY(mutex_) = 0;
  std::int64_t last_publish_at_ns_ WHYCACHE_GUARDED_BY(mutex_) = 0;
  std::int64_t last_append_at_ns_ WHYCACHE_GUARDED_BY(mutex_) = 0;
  bool has_released_connections_ WHYCACHE_GUARDED_BY(mutex_) = false;
  // Whether the poll lease in the tier was this process's own when it looked last.
  bool holds_lease_ WHYCACHE_GUARDED_BY(mutex_) = false;
  // The last update that was handed out: followers ask for it again, to verify the next one.
  // Leaked by a child of a fork, which another thread may have cut off while it assigned.
  std::unique_ptr<CachedUpdate> last_served_update_ WHYCACHE_GUARDED_BY(mutex_) =
      std::make_unique<CachedUpdate>();

  // A call that the log has answered must not wait for the requests of other threads. It leaves the
  // outcome here, and the next call that holds mutex_ records it first. Held for moments.
  Mutex outcomes_mutex_;
  Outcomes outcomes_ WHYCACHE_GUARDED_BY(outcomes_mutex_);
};

}  // namespace whycache
