// memcached in front of a log, for fleets: who follows finds what is new there, and the log is
// asked every few seconds by one of them for all. Reasons, and what was rejected:
// docs/decisions/memcached-tier.md.
//
//   whycache1:UUID:u:ID      the bytes of update ID
//   whycache1:UUID:head      the head record: {number, head, mark, lease, took}
//   whycache1:UUID:ask       a lease: whoever adds it asks the log, and nobody else while it lasts
//   whycache1:UUID:fill:ID   a lease: whoever adds it fetches update ID, which was missing, from the log
//
// Only look() reads memcached. Everything else goes to the log, as if the tier were not there; but
// append() puts its update into memcached when it is durable, and then the head record.
//
// The head record says: the log was asked, and this was its head; `mark` is the chain of the update
// there, which ties it to all updates before it; `took` is how long ago that was when the record
// was put. A record takes the place of another only if the other stood there before the log was
// asked (memcached's compare-and-swap): so records follow each other in the order in which the log
// was asked. Who finds another there than the one he read tries again, for 5 seconds, but only over
// one that is lower than his own and not lower than the one he had read: that would be news of a
// restore. So what a sleeper puts over a newer record is at most 5 seconds old, and says how old.
//
// look() hands out nothing beyond the head record, and only if the last update it hands out has the
// record's mark. The caller verifies that these updates continue what he has. Both together mean
// that all he then has is what the log had when it was asked. So whatever stands in memcached,
// wrong updates are found before they are applied; only a wrong head record could mislead, and the
// log is asked
//   - by one of all every confirm_s, who puts a new record,
//   - by each at once when a new record is lower than where he stands, or names another update there: the log was
//     restored, or memcached lies,
//   - by each when the last record he could use is older than he may believe (Log::look), or than oldest(),
//   - by each after ask_s, whatever memcached says.
// A record that need not have been put after this process asked the log itself takes it nowhere
// beyond what the log answered: memcached may have kept it through a restore that it was not told
// of. One of all asks the log then. (Who puts a record later than late_ns after his question, a
// sleeper, has to show that he asked after this process did.)
//
// How old is an answer? Nobody's clock is compared with another's. A record that was not there when
// this process last looked was put since then, so the log was asked after that, less `took`. And a
// record's `lease` was put before the log was asked: if memcached still has it, that was no longer
// ago than it lasts.
//
// An update that is too large for memcached stands there as a mark that it has to be fetched from
// the log.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include <whycache/log.h>

#include "log/memcached.h"

namespace whycache {

struct MemcachedTierOptions {
  std::vector<MemcachedServer> servers;
  // How often the log is asked by all together.
  std::chrono::seconds confirm_interval{2};
  // How long a process believes memcached without having asked the log itself.
  std::chrono::seconds own_poll_interval{3600};
  // How long to wait for an answer of memcached.
  std::chrono::milliseconds timeout{100};
};

class MemcachedTier final : public Log {
 public:
  MemcachedTier(std::shared_ptr<Log> log, MemcachedTierOptions options);

  // That of the log: it is the same log.
  std::string name() const override { return log_->name(); }
  Extent extent() override;
  Appended append(UpdateId id, std::string_view bytes) override;
  Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) override;
  PollResult poll(UpdateId first, std::optional<std::chrono::nanoseconds> age_max,
                  const VisitUpdate& visit) override;
  void read_base(const VisitPart& visit) override { log_->read_base(visit); }
  bool rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) override;
  void release_idle_connections() noexcept override { log_->release_idle_connections(); }
  std::unique_ptr<Log> reopen() override;

 private:
  struct CachedUpdate {
    UpdateId id = 0;
    std::string bytes;
  };
  struct HeadRecord {
    std::uint64_t record_id =
        0;  // random: tells it from all others; 0: what stands there is no head record
    UpdateId head = 0;
    std::uint64_t head_chain = 0;
    std::uint64_t lease_id = 0;  // that was there when the log was asked; 0: unknown
    std::int64_t publish_delay_ns = 0;
    std::uint64_t cas_version = 0;  // memcached's, for replace()
  };
  struct CachedAnswer {
    PollResult result;
    std::vector<CachedUpdate> updates;
  };

  // What a head record tells a caller.
  enum class HeadVerdict {
    usable,    // up to the head, and it is not lower than anything that is known
    unusable,  // that can be used
    poll_log,
  };

  static std::uint64_t head_chain_of(std::string_view bytes);
  static std::string encode(const HeadRecord& head);
  static HeadRecord decode(const Memcached::CachedItem& item);
  std::string encode_lease(std::uint64_t number) const;
  std::int64_t earliest_poll_at_ns(const HeadRecord& head,
                                   const std::optional<Memcached::CachedItem>& lease,
                                   std::int64_t now_ns) const;
  std::string item_key(const std::string& what) const;
  std::string update_key(UpdateId id) const { return item_key("u:" + std::to_string(id)); }
  // No answer is older, whatever is asked for.
  std::chrono::nanoseconds served_staleness_max() const {
    return 2 * options_.confirm_interval + std::chrono::seconds(3);
  }

  // Reads the log to its end, and tells the others. `again`: who asked for that may do so all the
  // time.
  PollResult poll_log(UpdateId first, bool again, const VisitUpdate& visit);
  // The caller of these holds the mutex.
  std::optional<CachedAnswer> poll_memcached(UpdateId first, std::chrono::nanoseconds age_max);
  bool postdates_own_poll(const HeadRecord& head, std::int64_t asked_ns) const;
  HeadVerdict fetch_updates_to_head(const HeadRecord& head, UpdateId first,
                                    std::vector<CachedUpdate>& rows);
  bool try_take_fill_lease(UpdateId id);
  std::optional<CachedUpdate> fetch_update(UpdateId id);
  std::optional<HeadRecord> fetch_head_record();
  void record_extent(const Extent& extent);
  void invalidate_from(UpdateId id);
  void publish(std::optional<HeadRecord> before, const Extent& extent,
               const std::vector<CachedUpdate>& rows, std::uint64_t mark, std::uint64_t lease,
               std::int64_t asked_at_ns);
  void publish_update(UpdateId id, std::string_view bytes);
  void publish_head_record(std::optional<HeadRecord> before, HeadRecord head,
                           std::int64_t asked_at_ns);

  const std::shared_ptr<Log> log_;
  const MemcachedTierOptions options_;
  const std::chrono::nanoseconds
      staleness_jitter_;  // than oldest() this one asks: not all at the same time

  std::mutex mutex_;  // of what follows
  Memcached memcached_;
  Extent known_extent_;  // what the log said of itself last; its head may have been seen since
  bool has_released_connections_ = false;
  std::int64_t own_poll_at_ns_ = 0;  // when this process last read the log to its end; 0: never
  std::int64_t own_poll_prepared_at_ns_ = 0;  // when it turned to memcached, just before that
  UpdateId own_poll_head_ = 0;  // the head that it had then, or that this process appended since
  // That was put for that question alone; 0: none. The first record that has it was put by this
  // process once the log had answered, and who repeats it had seen that one before he asked.
  std::uint64_t own_poll_lease_id_ = 0;
  std::int64_t next_own_poll_at_ns_ = 0;  // when it will, whatever memcached says
  std::int64_t last_append_at_ns_ = 0;
  // After an append that did not succeed, only the log knows what stands there: until it has it, or
  // for a while.
  UpdateId invalidated_id_ = 0;
  std::int64_t invalidated_until_ns_ = 0;
  // All that the log had at confirmed_at_ns_ is what stands up to confirmed_head_.
  std::int64_t confirmed_at_ns_ = 0;
  UpdateId confirmed_head_ = 0;
  // The head record that was there at head_read_at_ns_.
  std::uint64_t last_record_id_ = 0;
  std::int64_t last_record_at_ns_ = 0;
  std::int64_t last_publish_at_ns_ = 0;  // when this process last put one
  std::uint64_t pending_lease_id_ =
      0;                             // the lease that find() got; whoever asks the log next has it
  CachedUpdate last_served_update_;  // the last update that was handed out
};

}  // namespace whycache
