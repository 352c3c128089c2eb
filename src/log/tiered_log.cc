#include "log/tiered_log.h"

#include <algorithm>
#include <cstdio>
#include <deque>
#include <limits>
#include <new>
#include <utility>

#include "base/call_limit.h"
#include "base/clock.h"
#include "base/fork_handlers.h"
#include "base/hash.h"
#include "base/random.h"
#include "log/log_checks.h"

namespace whycache {
namespace {

constexpr std::chrono::seconds fill_lease_duration{2};
// A follower that is farther behind reads the log.
constexpr std::uint64_t served_updates_max = 4'096;
constexpr std::size_t served_bytes_max = std::size_t{4} << 20;
// How many updates to request at once, until it is known how large they are.
constexpr UpdateId updates_per_get_initial = 8;
constexpr UpdateId updates_per_get_max = 256;
// After a poll of the log, only the last updates are published.
constexpr std::size_t fill_updates_max = 1'000;
constexpr std::size_t fill_bytes_max = std::size_t{8} << 20;
// A head is not published any more once its poll began longer ago.
constexpr std::int64_t publish_window_ns = std::int64_t{5} * 1'000'000'000;
constexpr int publish_attempts_max = 3;
// How often a process that polls the log all the time publishes what it found.
constexpr std::int64_t publish_interval_ns = 100'000'000;
// A process that has not appended for so long gives up its connections to the log's store.
constexpr std::int64_t connection_release_delay_ns = std::int64_t{60} * 1'000'000'000;

constexpr UpdateId no_end = std::numeric_limits<UpdateId>::max();

// When the process that has the lease polls the log again. Its caller may come early, since it
// shortens its intervals by a random part.
std::int64_t renewal_ns(std::chrono::nanoseconds confirm_interval) {
  return confirm_interval.count() / 4 * 3;
}

// The process that has the lease comes back after confirm_interval, and renews it. An hour is the
// most that decode_poll_lease() takes.
std::chrono::seconds lease_duration(std::chrono::seconds confirm_interval) {
  return std::min<std::chrono::seconds>(confirm_interval + std::chrono::seconds(1),
                                        std::chrono::hours(1));
}

}  // namespace

// The last updates that a poll of the log returned, within the limits of what is published.
class TieredLog::UpdateTail {
 public:
  void add(UpdateId id, std::string_view bytes) {
    updates_.push_back({id, std::string(bytes)});
    bytes_ += bytes.size();
    while (updates_.size() > 1 && (updates_.size() > fill_updates_max || bytes_ > fill_bytes_max)) {
      bytes_ -= updates_.front().bytes.size();
      updates_.pop_front();
    }
  }
  const std::deque<CachedUpdate>& updates() const { return updates_; }
  CachedUpdate last() const { return updates_.empty() ? CachedUpdate{} : updates_.back(); }
  // Whether the poll returned all updates up to `head`.
  bool reached(UpdateId head) const { return updates_.empty() || updates_.back().id == head; }

 private:
  std::deque<CachedUpdate> updates_;
  std::size_t bytes_ = 0;
};

std::string tiered_item_prefix(const Extent& extent, const std::string& log_name) {
  const std::uint64_t store = extent.store_id != 0 ? extent.store_id : hash64(log_name);
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(store));
  return "whycache2:" + to_string(extent.uuid) + ':' + text + ':';
}

TieredLog::TieredLog(std::shared_ptr<Log> log, MakeTierStore make_tier, TierOptions options)
    : log_(std::move(log)),
      make_tier_(std::move(make_tier)),
      options_(options),
      owner_fork_count_(fork_count()),
      tier_(make_tier_()),
      tracker_(log_->extent(), options_.confirm_interval, options_.own_poll_interval,
               random_u64()) {}

// In the child, a thread of the parent may seem to hold mutex_ for ever.
TieredLog::~TieredLog() {
  if (fork_count() != owner_fork_count_) static_cast<void>(last_served_update_.release());
}

std::unique_ptr<Log> TieredLog::reopen() {
  std::shared_ptr<Log> log = log_->reopen();
  return std::make_unique<TieredLog>(log ? log : log_, make_tier_, options_);
}

// Others hold the mutex while they ask the tier.
Deadline TieredLog::call_deadline() const {
  return CallLimit::deadline(std::max(options_.timeout * 10, std::chrono::milliseconds(10'000)));
}

std::string TieredLog::item_prefix() const {
  return tiered_item_prefix(tracker_.known_extent(), name());
}

PollLease TieredLog::poll_lease(std::uint64_t lease_id) const {
  return {lease_id, static_cast<std::uint32_t>(lease_duration(options_.confirm_interval).count())};
}

// --- The log. ---

void TieredLog::record_extent(const Extent& extent) {
  if (!is_same_log(tracker_.known_extent(), extent)) {
    // The log was replaced, or moved to another server. Destroy the head record of the old one, so
    // that every process that still follows it polls the log, and finds out.
    try {
      const std::optional<FoundHeadRecord> found = fetch_head_record();
      if (found && found->record.record_id != 0) {
        tier_->publish(
            item_prefix(), {},
            TierStore::HeadChange{.found = found->stored, .head = update_id_max, .make_record = [] {
                                    return std::to_string(random_u64());
                                  }});
      }
    } catch (const std::bad_alloc&) {  // as if the tier had not answered
    }
    *last_served_update_ = {};
  }
  tracker_.record_extent(extent);
  has_released_connections_ = false;
}

void TieredLog::note_extent(const Extent& extent) {
  {
    const MutexLock lock(outcomes_mutex_);
    outcomes_.extent = extent;
  }
  if (!mutex_.try_lock_until(CallLimit::deadline(options_.timeout))) return;
  const LogCallLock lock(mutex_);
  record_outcomes();
}

void TieredLog::note_append_failed(UpdateId id) {
  const MutexLock lock(outcomes_mutex_);
  outcomes_.failed_id = std::max(outcomes_.failed_id, id);
  outcomes_.failed_at_ns = boot_time_ns();
}

void TieredLog::note_appended(UpdateId id) {
  const MutexLock lock(outcomes_mutex_);
  outcomes_.appended_id = std::max(outcomes_.appended_id, id);
  if (outcomes_.failed_id <= id) outcomes_.failed_id = 0;
  outcomes_.store_id = log_->store_id();
  outcomes_.appended_at_ns = boot_time_ns();
}

// Every call does this first once it holds the mutex.
void TieredLog::record_outcomes() {
  Outcomes outcomes;
  {
    const MutexLock lock(outcomes_mutex_);
    outcomes = std::exchange(outcomes_, {});
  }
  if (outcomes.extent) record_extent(*outcomes.extent);
  if (outcomes.has_rewrite) tracker_.record_rewrite();
  if (outcomes.appended_id != 0) {
    last_append_at_ns_ = outcomes.appended_at_ns;
    // The log may meanwhile have connected to another server, a replica that took over: the
    // followers of the store that this process knew must not get the update.
    if (outcomes.store_id != 0 && outcomes.store_id != tracker_.known_extent().store_id) {
      tracker_.invalidate_from(outcomes.appended_id, outcomes.appended_at_ns);
    } else {
      tracker_.record_append(outcomes.appended_id);
    }
  }
  if (outcomes.failed_id != 0) {
    last_append_at_ns_ = std::max(last_append_at_ns_, outcomes.failed_at_ns);
    tracker_.invalidate_from(outcomes.failed_id, outcomes.failed_at_ns);
  }
  if (outcomes.has_rewrite || outcomes.appended_id != 0 || outcomes.failed_id != 0)
    has_released_connections_ = false;
}

Extent TieredLog::extent() {
  const UpdateId claimed = tier_->claimed_head();
  const Extent extent = log_->extent();
  tier_->note_head(extent.head, claimed);
  note_extent(extent);
  return extent;
}

Extent TieredLog::read(UpdateId first, UpdateId last, const VisitUpdate& visit) {
  const UpdateId claimed = tier_->claimed_head();
  const Extent extent = log_->read(first, last, visit);
  tier_->note_head(extent.head, claimed);
  note_extent(extent);
  return extent;
}

PollResult TieredLog::poll_log(UpdateId first, bool is_repeated, const VisitUpdate& visit) {
  const std::int64_t prepared_at_ns = boot_time_ns();
  LogPoll poll;
  {
    const LogCallLock lock(mutex_, call_deadline(), name());
    record_outcomes();
    poll = prepare_log_poll(is_repeated, prepared_at_ns);
  }
  poll.began_at_ns = boot_time_ns();
  UpdateTail tail;
  const Extent extent = log_->read(first, no_end, [&](UpdateId id, std::string_view bytes) {
    tail.add(id, bytes);
    return visit(id, bytes);
  });

  // read() may have been answered by a replica that lags: it must not lower the head. extent() asks
  // the server that takes the appends.
  if (poll.found && poll.found->record.head > extent.head && log_->extent().head > extent.head)
    return {extent};

  const std::optional<std::uint64_t> head_chain = find_head_chain(extent, tail);
  const LogCallLock lock(mutex_, call_deadline(), name());
  record_outcomes();
  finish_log_poll(std::move(poll), is_repeated, extent, tail, head_chain);
  return {extent};
}

// Finds out what is in the tier, and stores a poll lease unless there is one that will do.
TieredLog::LogPoll TieredLog::prepare_log_poll(bool is_repeated, std::int64_t prepared_at_ns) {
  LogPoll poll;
  poll.prepared_at_ns = prepared_at_ns;
  poll.known_extent = tracker_.known_extent();
  poll.found = fetch_head_record();
  poll.lease_id = std::exchange(pending_lease_id_, 0);
  if (poll.lease_id == 0 && is_repeated && poll.found &&
      boot_time_ns() - last_publish_at_ns_ < publish_interval_ns) {
    poll.lease_id = poll.found->record.lease_id;
    poll.is_own_lease = false;
  }
  if (poll.lease_id == 0) {
    poll.is_own_lease = true;
    poll.lease_id = random_u64();
    if (!tier_->set_poll_lease(item_prefix(), encode_poll_lease(poll_lease(poll.lease_id)),
                               lease_duration(options_.confirm_interval)))
      poll.lease_id = 0;
  }
  return poll;
}

// Returns nullopt if the caller has not read to the end.
std::optional<std::uint64_t> TieredLog::find_head_chain(const Extent& extent,
                                                        const UpdateTail& tail) const {
  if (extent.head == extent.base) return extent.base_chain;
  if (!tail.reached(extent.head)) return std::nullopt;
  if (!tail.updates().empty()) return head_chain_of(tail.updates().back().bytes);
  // The log ends before `first`: it was restored, or the caller wanted only what is new.
  std::optional<std::uint64_t> head_chain;
  log_->read(extent.head, extent.head, [&](UpdateId, std::string_view bytes) {
    head_chain = head_chain_of(bytes);
    return true;
  });
  return head_chain;
}

// Records and publishes what the log returned.
void TieredLog::finish_log_poll(LogPoll poll, bool is_repeated, const Extent& extent,
                                const UpdateTail& tail, std::optional<std::uint64_t> head_chain) {
  record_extent(extent);
  if (!is_same_log(poll.known_extent, extent)) poll.found.reset();
  const std::optional<FoundHeadRecord>& found = poll.found;
  if (tail.reached(extent.head)) {
    OwnPoll own_poll{.prepared_at_ns = poll.prepared_at_ns, .began_at_ns = poll.began_at_ns};
    if (poll.is_own_lease) own_poll.lease_id = poll.lease_id;
    if (found) own_poll.record_id = found->record.record_id;
    holds_lease_ = own_poll.lease_id != 0;
    if (tracker_.record_own_poll(own_poll, extent.head, random_u64()))
      *last_served_update_ = tail.last();
  }
  if (!head_chain) return;
  const bool is_known = found && found->record.record_id != 0 &&
                        found->record.head == extent.head &&
                        found->record.head_chain == *head_chain;
  if (is_repeated && is_known && poll.began_at_ns - last_publish_at_ns_ < publish_interval_ns)
    return;
  if (!tier_->is_available()) return;
  std::vector<TierStore::UpdateView> updates;
  for (const CachedUpdate& update : tail.updates()) {
    if (update.id > extent.base) updates.push_back({update.id, update.bytes});
  }
  publish(std::move(updates), found,
          {.head = extent.head, .head_chain = *head_chain, .lease_id = poll.lease_id},
          poll.began_at_ns);
}

// Other threads may hold the mutex while the tier does not answer them. That must not fail the
// append, nor keep a caller waiting whose update is in the log.
Log::Appended TieredLog::append(UpdateId id, std::string_view bytes) {
  std::optional<FoundHeadRecord> found;
  bool has_looked = false;
  if (mutex_.try_lock_until(CallLimit::deadline(options_.timeout))) {
    const LogCallLock lock(mutex_);
    record_outcomes();
    found = fetch_head_record();
    has_looked = true;
  }
  const std::int64_t began_at_ns = boot_time_ns();
  Appended appended;
  try {
    appended = log_->append(id, bytes);
  } catch (...) {
    note_append_failed(id);
    throw;
  }
  if (appended != Appended::yes) {
    note_append_failed(id);
    return appended;
  }
  note_appended(id);
  // Not published, the update becomes visible to followers when one of them confirms.
  if (!mutex_.try_lock_until(CallLimit::deadline(options_.timeout))) return appended;
  const LogCallLock lock(mutex_);
  try {
    record_outcomes();
    publish_appended({id, bytes}, std::move(found), has_looked, began_at_ns);
  } catch (const std::bad_alloc&) {  // the update is in the log
  }
  return appended;
}

// `found` is the head record before the append, if it `has_looked`.
void TieredLog::publish_appended(const TierStore::UpdateView& update,
                                 std::optional<FoundHeadRecord> found, bool has_looked,
                                 std::int64_t began_at_ns) {
  // A replica may have taken over, as record_outcomes() says.
  const std::uint64_t store = log_->store_id();
  if (store != 0 && store != tracker_.known_extent().store_id) return;
  if (!has_looked) {  // a newer head record could not be told from an older one
    tier_->publish(item_prefix(), {&update, 1}, std::nullopt);
    return;
  }
  // An append also asks the log, and it began after the record that it found was put.
  const std::uint64_t lease_id = found ? found->record.lease_id : 0;
  publish({update}, std::move(found),
          {.head = update.id, .head_chain = head_chain_of(update.bytes), .lease_id = lease_id},
          began_at_ns);
}

bool TieredLog::rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) {
  const bool switched = log_->rewrite(base, base_chain, next_part);
  const MutexLock lock(outcomes_mutex_);
  outcomes_.has_rewrite = true;
  return switched;
}

// --- Polling the tier. ---

PollResult TieredLog::poll(UpdateId first, std::optional<std::chrono::nanoseconds> staleness_max,
                           const VisitUpdate& visit) {
  first = std::max<UpdateId>(first, 1);
  const UpdateId claimed = tier_->claimed_head();
  std::optional<CachedAnswer> answer;
  {
    const LogCallLock lock(mutex_, call_deadline(), name());
    record_outcomes();
    answer = poll_tier(first, staleness_max.value_or(tracker_.served_staleness_max()));
    if (answer && !has_released_connections_ && !holds_lease_ &&
        boot_time_ns() - last_append_at_ns_ > connection_release_delay_ns) {
      log_->release_idle_connections();
      has_released_connections_ = true;
    }
  }
  if (!answer) {
    const PollResult result = poll_log(first, staleness_max.has_value(), visit);
    tier_->note_head(result.extent.head, claimed);
    return result;
  }
  tier_->note_head(answer->result.extent.head, claimed);
  for (const CachedUpdate& update : answer->updates) {
    if (!visit(update.id, update.bytes)) break;
  }
  return answer->result;
}

std::optional<TieredLog::CachedAnswer> TieredLog::poll_tier(
    UpdateId first, std::chrono::nanoseconds staleness_max) {
  const std::int64_t now_ns = boot_time_ns();
  if (tracker_.must_poll_log(first, staleness_max, now_ns)) return std::nullopt;

  const std::optional<TierStore::HeadAndLease> found = tier_->get_head(item_prefix());
  const std::optional<PollLease> lease =
      found && found->poll_lease ? decode_poll_lease(*found->poll_lease) : std::nullopt;
  holds_lease_ = lease && tracker_.is_own_lease(*lease);
  if (holds_lease_ && now_ns - tracker_.own_poll_at_ns() >= renewal_ns(options_.confirm_interval))
    return std::nullopt;
  // The lease has expired: the first process that takes it polls the log.
  if (found && !found->poll_lease && try_take_poll_lease()) return std::nullopt;

  CachedAnswer answer;
  HeadVerdict verdict = HeadVerdict::unusable;
  if (found && found->head) {
    const HeadRecord record = decode_head_record(found->head->bytes);
    if (record.record_id == 0) return std::nullopt;
    verdict = use_head_record(record, lease, first, now_ns, answer.updates);
  }
  if (verdict == HeadVerdict::poll_log) return std::nullopt;
  if (verdict == HeadVerdict::unusable) {
    // Nothing new is known. This answer ages until some process polls the log. While the tier does
    // not answer, each process polls the log itself, but not every time: the load that the tier
    // kept from the log must not hit it at once.
    std::optional<CachedUpdate> update;
    if (tracker_.has_nothing_new_after(first)) update = fetch_update(first);
    if (!update) return std::nullopt;
    answer.updates = {std::move(*update)};
  }

  const auto staleness = tracker_.staleness(staleness_max, now_ns);
  if (!staleness) return std::nullopt;
  answer.result = {tracker_.known_extent(), *staleness};
  Extent& extent = answer.result.extent;
  extent.head =
      answer.updates.empty() ? std::max(extent.base, first - 1) : answer.updates.back().id;
  return answer;
}

bool TieredLog::try_take_poll_lease() {
  const std::uint64_t lease_id = random_u64();
  if (!tier_->add_poll_lease(item_prefix(), encode_poll_lease(poll_lease(lease_id)),
                             lease_duration(options_.confirm_interval)))
    return false;
  pending_lease_id_ = lease_id;
  return true;
}

// Returns `usable` with the updates to hand out, `unusable` or `poll_log`.
HeadVerdict TieredLog::use_head_record(const HeadRecord& record,
                                       const std::optional<PollLease>& lease, UpdateId first,
                                       std::int64_t now_ns, std::vector<CachedUpdate>& updates) {
  const std::int64_t polled_at_ns = tracker_.earliest_poll_at_ns(record, lease, now_ns);
  HeadVerdict verdict = tracker_.judge(record, first, polled_at_ns);
  if (verdict == HeadVerdict::unproven) {
    // The next new record proves more, or one process of all polls the log now.
    verdict = try_take_fill_lease(tracker_.first_unproven_id()) ? HeadVerdict::poll_log
                                                                : HeadVerdict::unusable;
    tracker_.record_seen(record, now_ns);
    return verdict;
  }
  if (verdict == HeadVerdict::needs_updates)
    verdict = fetch_updates_to_head(record, first, updates);
  if (verdict == HeadVerdict::usable) {
    tracker_.record_used(record, polled_at_ns, now_ns);
    *last_served_update_ = updates.empty() ? CachedUpdate{} : updates.back();
  }
  return verdict;
}

// Fetches the updates from `first` to the head. Returns `usable` if all of them are there and the
// last one has the record's chain.
HeadVerdict TieredLog::fetch_updates_to_head(const HeadRecord& record, UpdateId first,
                                             std::vector<CachedUpdate>& updates) {
  const UpdateId begin = std::max(first, tracker_.known_extent().base + 1);
  if (record.head - begin >= served_updates_max) return HeadVerdict::poll_log;
  std::size_t bytes = 0;
  std::size_t largest_bytes = 1;
  UpdateId count = updates_per_get_initial;
  for (UpdateId next = begin; next <= record.head;) {
    if (next == last_served_update_->id) {
      updates.push_back(*last_served_update_);
      ++next;
      continue;
    }
    auto found = tier_->get_updates(item_prefix(), next, std::min(record.head, next + count - 1));
    if (!found) {
      updates.clear();
      return HeadVerdict::unusable;
    }
    for (std::optional<TierStore::StoredUpdate>& update : *found) {
      if (!update) {  // one process fetches it for all
        updates.clear();
        return try_take_fill_lease(next) ? HeadVerdict::poll_log : HeadVerdict::unusable;
      }
      bytes += update->bytes.size();
      largest_bytes = std::max(largest_bytes, update->bytes.size());
      if (update->is_too_large() || bytes > served_bytes_max) return HeadVerdict::poll_log;
      updates.push_back({next++, std::move(update->bytes)});
    }
    const UpdateId fitting = (served_bytes_max - bytes) / largest_bytes;
    count = std::clamp<UpdateId>(std::min(fitting, 4 * count), 1, updates_per_get_max);
  }
  return head_chain_of(updates.back().bytes) == record.head_chain ? HeadVerdict::usable
                                                                  : HeadVerdict::poll_log;
}

bool TieredLog::try_take_fill_lease(UpdateId id) {
  return tier_->add_fill_lease(item_prefix(), id, fill_lease_duration);
}

std::optional<TieredLog::CachedUpdate> TieredLog::fetch_update(UpdateId id) {
  if (id == last_served_update_->id) return *last_served_update_;
  auto found = tier_->get_updates(item_prefix(), id, id);
  if (!found || !(*found)[0] || (*found)[0]->is_too_large()) return std::nullopt;
  return CachedUpdate{id, std::move((*found)[0]->bytes)};
}

std::optional<TieredLog::FoundHeadRecord> TieredLog::fetch_head_record() {
  std::optional<TierStore::HeadAndLease> found = tier_->get_head(item_prefix());
  if (!found || !found->head) return std::nullopt;
  const HeadRecord record = decode_head_record(found->head->bytes);
  return FoundHeadRecord{record, std::move(*found->head)};
}

// The caller polls after confirm_interval at the latest, so that one of all followers polls the
// log.
bool TieredLog::wait(UpdateId after, std::chrono::nanoseconds at_most) {
  if (!tier_->notifies()) return Log::wait(after, at_most);
  const std::int64_t ends_at_ns =
      boot_time_ns() + std::clamp<std::chrono::nanoseconds>(at_most, std::chrono::nanoseconds(0),
                                                            options_.confirm_interval)
                           .count();
  const auto time_left = [&] {
    return std::chrono::nanoseconds(std::max<std::int64_t>(ends_at_ns - boot_time_ns(), 0));
  };
  std::string prefix;
  {
    // While requests of others take so long, nothing is known of updates.
    const auto timeout = std::chrono::ceil<std::chrono::milliseconds>(time_left());
    if (!mutex_.try_lock_until(CallLimit::deadline(timeout))) return false;
    const LogCallLock lock(mutex_);
    prefix = item_prefix();
  }
  return tier_->wait(prefix, after, time_left());
}

// --- Publishing. ---

void TieredLog::publish(std::vector<TierStore::UpdateView> updates,
                        std::optional<FoundHeadRecord> found, HeadRecord record,
                        std::int64_t began_at_ns) {
  const UpdateId found_head = found ? found->record.head : 0;
  for (int attempt = 0; attempt < publish_attempts_max; ++attempt) {
    const std::int64_t now_ns = boot_time_ns();
    if ((attempt > 0 || !found) && now_ns - began_at_ns > publish_window_ns) break;
    record.record_id = std::max<std::uint64_t>(random_u64(), 1);
    const bool ends = attempt > 0 || !found;
    std::int64_t sent_at_ns = now_ns;
    const auto make_record = [&]() -> std::optional<std::string> {
      sent_at_ns = boot_time_ns();
      if (ends && sent_at_ns - began_at_ns > publish_window_ns) return std::nullopt;
      record.publish_delay_ns = sent_at_ns - began_at_ns;
      return encode_head_record(record);
    };
    TierStore::HeadChange change{.head = record.head, .make_record = make_record};
    if (found) change.found = std::move(found->stored);
    const TierStore::Published published = tier_->publish(item_prefix(), updates, change);
    if (published.has_updates) updates.clear();
    if (published.head == TierStore::HeadResult::stored) {
      tracker_.record_seen(record, sent_at_ns);
      last_publish_at_ns_ = sent_at_ns;
    }
    if (published.head != TierStore::HeadResult::not_stored) return;
    // Another process was first. Its record stays if its head is not lower, or if it is lower than
    // the one we found: the log has lost updates since.
    found = fetch_head_record();
    if (found && found->record.record_id != 0 &&
        (found->record.head >= record.head || found->record.head < found_head))
      break;
  }
  if (!updates.empty()) tier_->publish(item_prefix(), updates, std::nullopt);
}

}  // namespace whycache
