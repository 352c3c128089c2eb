#include "log/memcached_tier.h"

#include <algorithm>
#include <cstdio>
#include <deque>
#include <limits>
#include <utility>

#include "base/call_limit.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/random.h"
#include "log/log_checks.h"

namespace whycache {
namespace {

// How long memcached keeps an item after it was stored last.
constexpr std::chrono::seconds item_lifetime{std::chrono::hours(24)};
constexpr std::chrono::seconds fill_lease_duration{2};
// By default, memcached takes items of 1 MiB.
constexpr std::size_t cached_update_bytes_max = 1'000'000;
constexpr std::uint32_t flag_too_large = 1;
// A follower that is farther behind reads the log.
constexpr std::uint64_t served_updates_max = 4'096;
constexpr std::size_t served_bytes_max = std::size_t{4} << 20;
// How many updates to request at once, until it is known how large they are.
constexpr UpdateId keys_per_get_initial = 8;
constexpr UpdateId keys_per_get_max = 256;
// After a poll of the log, only the last updates are put into memcached.
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

}  // namespace

// The last updates that a poll of the log returned, within the limits of what is published.
class MemcachedTier::UpdateTail {
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

MemcachedTier::MemcachedTier(std::shared_ptr<Log> log, MemcachedTierOptions options)
    : log_(std::move(log)),
      options_(std::move(options)),
      memcached_(options_.servers, options_.timeout),
      tracker_(log_->extent(), options_.confirm_interval, options_.own_poll_interval,
               random_u64()) {}

std::unique_ptr<Log> MemcachedTier::reopen() {
  std::shared_ptr<Log> log = log_->reopen();
  return std::make_unique<MemcachedTier>(log ? log : log_, options_);
}

// Others hold the mutex while they ask memcached.
Deadline MemcachedTier::call_deadline() const {
  return CallLimit::deadline(std::max(options_.timeout * 10, std::chrono::milliseconds(10'000)));
}

std::string MemcachedTier::item_key(const std::string& what) const {
  return tiered_item_prefix(tracker_.known_extent(), name()) + what;
}

std::string MemcachedTier::update_key(UpdateId id) const {
  return item_key("u:" + std::to_string(id));
}

PollLease MemcachedTier::poll_lease(std::uint64_t lease_id) const {
  return {lease_id, static_cast<std::uint32_t>(options_.confirm_interval.count())};
}

// --- The log. ---

void MemcachedTier::record_extent(const Extent& extent) {
  if (!is_same_log(tracker_.known_extent(), extent)) {
    // The log was replaced, or moved to another server. Destroy the head record of the old one, so
    // that every process that still follows it polls the log, and finds out.
    const std::optional<FoundHeadRecord> found = fetch_head_record();
    if (found && found->record.record_id != 0)
      memcached_.compare_and_swap(item_key("head"), "", found->cas_version, item_lifetime);
    last_served_update_ = {};
  }
  tracker_.record_extent(extent);
  has_released_connections_ = false;
}

void MemcachedTier::note_extent(const Extent& extent) {
  {
    const MutexLock lock(outcomes_mutex_);
    outcomes_.extent = extent;
  }
  if (!mutex_.try_lock_until(CallLimit::deadline(options_.timeout))) return;
  const LogCallLock lock(mutex_);
  record_outcomes();
}

void MemcachedTier::note_append_failed(UpdateId id) {
  const MutexLock lock(outcomes_mutex_);
  outcomes_.failed_id = std::max(outcomes_.failed_id, id);
  outcomes_.failed_at_ns = boot_time_ns();
}

void MemcachedTier::note_appended(UpdateId id) {
  const MutexLock lock(outcomes_mutex_);
  outcomes_.appended_id = std::max(outcomes_.appended_id, id);
  if (outcomes_.failed_id <= id) outcomes_.failed_id = 0;
  outcomes_.store_id = log_->store_id();
  outcomes_.appended_at_ns = boot_time_ns();
}

// Every call does this first once it holds the mutex.
void MemcachedTier::record_outcomes() {
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

Extent MemcachedTier::extent() {
  const Extent extent = log_->extent();
  note_extent(extent);
  return extent;
}

Extent MemcachedTier::read(UpdateId first, UpdateId last, const VisitUpdate& visit) {
  const Extent extent = log_->read(first, last, visit);
  note_extent(extent);
  return extent;
}

PollResult MemcachedTier::poll_log(UpdateId first, bool is_repeated, const VisitUpdate& visit) {
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

// Finds out what is in memcached, and stores a poll lease unless there is one that will do.
MemcachedTier::LogPoll MemcachedTier::prepare_log_poll(bool is_repeated,
                                                       std::int64_t prepared_at_ns) {
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
    const Memcached::StoreResult stored =
        memcached_.set(item_key("ask"), encode_poll_lease(poll_lease(poll.lease_id)), 0,
                       options_.confirm_interval);
    if (stored != Memcached::StoreResult::stored) poll.lease_id = 0;
  }
  return poll;
}

// Returns nullopt if the caller has not read to the end.
std::optional<std::uint64_t> MemcachedTier::find_head_chain(const Extent& extent,
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
void MemcachedTier::finish_log_poll(LogPoll poll, bool is_repeated, const Extent& extent,
                                    const UpdateTail& tail,
                                    std::optional<std::uint64_t> head_chain) {
  record_extent(extent);
  if (!is_same_log(poll.known_extent, extent)) poll.found.reset();
  const std::optional<FoundHeadRecord>& found = poll.found;
  if (tail.reached(extent.head)) {
    OwnPoll own_poll{.prepared_at_ns = poll.prepared_at_ns, .began_at_ns = poll.began_at_ns};
    if (poll.is_own_lease) own_poll.lease_id = poll.lease_id;
    if (found) own_poll.record_id = found->record.record_id;
    if (tracker_.record_own_poll(own_poll, extent.head, random_u64()))
      last_served_update_ = tail.last();
  }
  if (!head_chain) return;
  const bool is_known = found && found->record.record_id != 0 &&
                        found->record.head == extent.head &&
                        found->record.head_chain == *head_chain;
  if (is_repeated && is_known && poll.began_at_ns - last_publish_at_ns_ < publish_interval_ns)
    return;
  if (!memcached_.is_available()) return;
  for (const CachedUpdate& update : tail.updates()) {
    if (update.id > extent.base) publish_update(update.id, update.bytes);
  }
  publish_head_record(found,
                      {.head = extent.head, .head_chain = *head_chain, .lease_id = poll.lease_id},
                      poll.began_at_ns);
}

// Other threads may hold the mutex while memcached does not answer them. That must not fail the
// append, nor keep a caller waiting whose update is in the log.
Log::Appended MemcachedTier::append(UpdateId id, std::string_view bytes) {
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
  record_outcomes();
  if (const std::uint64_t store = log_->store_id();
      store != 0 && store != tracker_.known_extent().store_id)
    return appended;  // a replica took over, as record_outcomes() says
  publish_update(id, bytes);
  if (!has_looked) return appended;  // a newer head record could not be told from an older one
  // An append also asks the log, and it began after the record that it found was put.
  publish_head_record(found,
                      {.head = id,
                       .head_chain = head_chain_of(bytes),
                       .lease_id = found ? found->record.lease_id : 0},
                      began_at_ns);
  return appended;
}

bool MemcachedTier::rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) {
  const bool switched = log_->rewrite(base, base_chain, next_part);
  const MutexLock lock(outcomes_mutex_);
  outcomes_.has_rewrite = true;
  return switched;
}

// --- Polling memcached. ---

PollResult MemcachedTier::poll(UpdateId first,
                               std::optional<std::chrono::nanoseconds> staleness_max,
                               const VisitUpdate& visit) {
  first = std::max<UpdateId>(first, 1);
  std::optional<CachedAnswer> answer;
  {
    const LogCallLock lock(mutex_, call_deadline(), name());
    record_outcomes();
    answer = poll_memcached(first, staleness_max.value_or(tracker_.served_staleness_max()));
    if (answer && !has_released_connections_ &&
        boot_time_ns() - last_append_at_ns_ > connection_release_delay_ns) {
      log_->release_idle_connections();
      has_released_connections_ = true;
    }
  }
  if (!answer) return poll_log(first, staleness_max.has_value(), visit);
  for (const CachedUpdate& update : answer->updates) {
    if (!visit(update.id, update.bytes)) break;
  }
  return answer->result;
}

std::optional<MemcachedTier::CachedAnswer> MemcachedTier::poll_memcached(
    UpdateId first, std::chrono::nanoseconds staleness_max) {
  const std::int64_t now_ns = boot_time_ns();
  if (tracker_.must_poll_log(first, staleness_max, now_ns)) return std::nullopt;

  const auto items = memcached_.get({item_key("head"), item_key("ask")});
  // The lease has expired: the first process that takes it polls the log.
  if (items && !(*items)[1] && try_take_poll_lease()) return std::nullopt;

  CachedAnswer answer;
  HeadVerdict verdict = HeadVerdict::unusable;
  if (items && (*items)[0]) {
    const HeadRecord record = decode_head_record((*items)[0]->bytes);
    if (record.record_id == 0) return std::nullopt;
    const std::optional<PollLease> lease =
        (*items)[1] ? decode_poll_lease((*items)[1]->bytes) : std::nullopt;
    verdict = use_head_record(record, lease, first, now_ns, answer.updates);
  }
  if (verdict == HeadVerdict::poll_log) return std::nullopt;
  if (verdict == HeadVerdict::unusable) {
    // Nothing new is known. This answer ages until some process polls the log. While memcached does
    // not answer, each process polls the log itself, but not every time: the load that memcached
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

bool MemcachedTier::try_take_poll_lease() {
  const std::uint64_t lease_id = random_u64();
  if (memcached_.add(item_key("ask"), encode_poll_lease(poll_lease(lease_id)),
                     options_.confirm_interval) != Memcached::StoreResult::stored)
    return false;
  pending_lease_id_ = lease_id;
  return true;
}

// Returns `usable` with the updates to hand out, `unusable` or `poll_log`.
HeadVerdict MemcachedTier::use_head_record(const HeadRecord& record,
                                           const std::optional<PollLease>& lease, UpdateId first,
                                           std::int64_t now_ns,
                                           std::vector<CachedUpdate>& updates) {
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
    last_served_update_ = updates.empty() ? CachedUpdate{} : updates.back();
  }
  return verdict;
}

// Fetches the updates from `first` to the head. Returns `usable` if all of them are there and the
// last one has the record's chain.
HeadVerdict MemcachedTier::fetch_updates_to_head(const HeadRecord& record, UpdateId first,
                                                 std::vector<CachedUpdate>& updates) {
  const UpdateId begin = std::max(first, tracker_.known_extent().base + 1);
  if (record.head - begin >= served_updates_max) return HeadVerdict::poll_log;
  std::size_t bytes = 0;
  std::size_t largest_bytes = 1;
  UpdateId key_count = keys_per_get_initial;
  for (UpdateId next = begin; next <= record.head;) {
    if (next == last_served_update_.id) {
      updates.push_back(last_served_update_);
      ++next;
      continue;
    }
    const UpdateId end = std::min<UpdateId>(record.head + 1, next + key_count);
    std::vector<std::string> keys;
    for (UpdateId id = next; id < end; ++id) keys.push_back(update_key(id));
    auto items = memcached_.get(keys);
    if (!items) {
      updates.clear();
      return HeadVerdict::unusable;
    }
    for (std::optional<Memcached::CachedItem>& item : *items) {
      if (!item) {  // one process fetches it for all
        updates.clear();
        return try_take_fill_lease(next) ? HeadVerdict::poll_log : HeadVerdict::unusable;
      }
      bytes += item->bytes.size();
      largest_bytes = std::max(largest_bytes, item->bytes.size());
      if ((item->flags & flag_too_large) != 0 || bytes > served_bytes_max)
        return HeadVerdict::poll_log;
      updates.push_back({next++, std::move(item->bytes)});
    }
    const UpdateId fitting = (served_bytes_max - bytes) / largest_bytes;
    key_count = std::clamp<UpdateId>(std::min(fitting, 4 * key_count), 1, keys_per_get_max);
  }
  return head_chain_of(updates.back().bytes) == record.head_chain ? HeadVerdict::usable
                                                                  : HeadVerdict::poll_log;
}

bool MemcachedTier::try_take_fill_lease(UpdateId id) {
  return memcached_.add(item_key("fill:" + std::to_string(id)), "", fill_lease_duration) ==
         Memcached::StoreResult::stored;
}

std::optional<MemcachedTier::CachedUpdate> MemcachedTier::fetch_update(UpdateId id) {
  if (id == last_served_update_.id) return last_served_update_;
  auto items = memcached_.get({update_key(id)});
  if (!items || !(*items)[0] || (*items)[0]->flags != 0) return std::nullopt;
  return CachedUpdate{id, std::move((*items)[0]->bytes)};
}

std::optional<MemcachedTier::FoundHeadRecord> MemcachedTier::fetch_head_record() {
  const auto items = memcached_.get({item_key("head")});
  if (!items || !(*items)[0]) return std::nullopt;
  const Memcached::CachedItem& item = *(*items)[0];
  return FoundHeadRecord{decode_head_record(item.bytes), item.cas_version};
}

// --- Publishing. ---

void MemcachedTier::publish_update(UpdateId id, std::string_view bytes) {
  const bool stored =
      bytes.size() <= cached_update_bytes_max &&
      memcached_.set(update_key(id), bytes, 0, item_lifetime) == Memcached::StoreResult::stored;
  if (!stored) memcached_.set(update_key(id), "", flag_too_large, item_lifetime);
}

void MemcachedTier::publish_head_record(std::optional<FoundHeadRecord> found, HeadRecord record,
                                        std::int64_t began_at_ns) {
  const UpdateId found_head = found ? found->record.head : 0;
  for (int attempt = 0; attempt < publish_attempts_max; ++attempt) {
    const std::int64_t now_ns = boot_time_ns();
    if ((attempt > 0 || !found) && now_ns - began_at_ns > publish_window_ns) return;
    record.record_id = std::max<std::uint64_t>(random_u64(), 1);
    record.publish_delay_ns = now_ns - began_at_ns;
    const std::string bytes = encode_head_record(record);
    const Memcached::StoreResult stored =
        found ? memcached_.compare_and_swap(item_key("head"), bytes, found->cas_version,
                                            item_lifetime)
              : memcached_.add(item_key("head"), bytes, item_lifetime);
    if (stored == Memcached::StoreResult::stored) {
      tracker_.record_seen(record, now_ns);
      last_publish_at_ns_ = now_ns;
    }
    if (stored != Memcached::StoreResult::not_stored) return;
    // Another process was first. Its record stays if its head is not lower, or if it is lower than
    // the one we found: the log has lost updates since.
    found = fetch_head_record();
    if (found && found->record.record_id != 0 &&
        (found->record.head >= record.head || found->record.head < found_head))
      return;
  }
}

}  // namespace whycache
