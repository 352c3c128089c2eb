#include "log/memcached_tier.h"

#include <algorithm>
#include <deque>
#include <limits>
#include <utility>

#include "base/bytes.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/random.h"
#include "update/update.h"

namespace whycache {
namespace {

// What stands in memcached goes when nobody put it there again for so long.
constexpr std::chrono::seconds item_lifetime{std::chrono::hours(24)};
constexpr std::chrono::seconds fill_lease_duration{2};
// memcached takes items of 1 MiB, unless it is told otherwise.
constexpr std::size_t cached_update_bytes_max = 1'000'000;
constexpr std::uint32_t flag_too_large = 1;
// Who is farther behind asks the log.
constexpr std::uint64_t served_updates_max = 4'096;
constexpr std::size_t served_bytes_max = std::size_t{4} << 20;
constexpr UpdateId keys_per_get_initial =
    8;  // asked for at once, until it is known how large the updates are
constexpr UpdateId keys_per_get_max = 256;
// Of what was read from the log, the last so many updates are put into memcached.
constexpr std::size_t fill_updates_max = 1'000;
constexpr std::size_t fill_bytes_max = std::size_t{8} << 20;
// A head that was asked for longer ago is not put any more.
constexpr std::int64_t publish_window_ns = std::int64_t{5} * 1'000'000'000;
constexpr int publish_attempts_max = 3;
constexpr std::int64_t prompt_publish_delay_ns_max = 1'000'000'000;
constexpr std::int64_t publish_delay_ns_max = std::int64_t{3600} * 1'000'000'000;
// Who strictly asks the log again and again tells the others this often.
constexpr std::int64_t publish_interval_ns = 100'000'000;
// Who wrote lately keeps the connections to the log's store.
constexpr std::int64_t connection_release_delay_ns = std::int64_t{60} * 1'000'000'000;

constexpr UpdateId no_end = std::numeric_limits<UpdateId>::max();

constexpr std::size_t head_record_bytes = 48;
constexpr std::size_t lease_value_bytes = 12;
constexpr std::uint32_t lease_seconds_max = 3'600;

std::int64_t to_ns(std::chrono::nanoseconds duration) { return duration.count(); }

}  // namespace

// --- The head record: number, head, mark, lease, took, and a hash of these, little-endian. ---

std::string MemcachedTier::encode(const HeadRecord& head) {
  std::string bytes;
  append_little_endian(bytes, head.record_id);
  append_little_endian(bytes, head.head);
  append_little_endian(bytes, head.head_chain);
  append_little_endian(bytes, head.lease_id);
  append_little_endian(bytes, head.publish_delay_ns);
  append_little_endian(bytes, hash64(bytes));
  return bytes;
}

// What is no head record has number 0: whoever meets it asks the log, and replaces it.
MemcachedTier::HeadRecord MemcachedTier::decode(const Memcached::CachedItem& item) {
  HeadRecord head;
  head.cas_version = item.cas_version;
  const std::string_view bytes = item.bytes;
  if (bytes.size() != head_record_bytes) return head;
  if (load_little_endian<std::uint64_t>(bytes.data() + 40) != hash64(bytes.substr(0, 40)))
    return head;
  head.record_id = load_little_endian<std::uint64_t>(bytes.data());
  head.head = load_little_endian<std::uint64_t>(bytes.data() + 8);
  head.head_chain = load_little_endian<std::uint64_t>(bytes.data() + 16);
  head.lease_id = load_little_endian<std::uint64_t>(bytes.data() + 24);
  head.publish_delay_ns = std::clamp<std::int64_t>(
      load_little_endian<std::int64_t>(bytes.data() + 32), 0, publish_delay_ns_max);
  return head;
}

// --- The lease to ask: its number, and for how many seconds it was put. ---

std::string MemcachedTier::encode_lease(std::uint64_t number) const {
  std::string bytes;
  append_little_endian(bytes, number);
  append_little_endian(bytes, static_cast<std::uint32_t>(options_.confirm_interval.count()));
  return bytes;
}

// When the log was asked at the earliest, by a head record and the lease that is there at `now_ns`:
// the record's question came after its lease was put, and memcached counts expiry in whole seconds.
std::int64_t MemcachedTier::earliest_poll_at_ns(const HeadRecord& head,
                                                const std::optional<Memcached::CachedItem>& lease,
                                                std::int64_t now_ns) const {
  std::int64_t asked_ns = 0;
  if (head.record_id != last_record_id_ && last_record_at_ns_ != 0)
    asked_ns = last_record_at_ns_ - head.publish_delay_ns;
  if (!lease || lease->bytes.size() != lease_value_bytes || head.lease_id == 0) return asked_ns;
  if (load_little_endian<std::uint64_t>(lease->bytes.data()) != head.lease_id) return asked_ns;
  const std::uint32_t seconds = load_little_endian<std::uint32_t>(lease->bytes.data() + 8);
  if (seconds > lease_seconds_max) return asked_ns;
  return std::max(asked_ns, now_ns - to_ns(std::chrono::seconds(seconds + 1)));
}

// Whether a record, by which the log was asked at `asked_ns` at the earliest, was made after this
// process asked the log.
bool MemcachedTier::postdates_own_poll(const HeadRecord& head, std::int64_t asked_ns) const {
  if (asked_ns > own_poll_at_ns_) return true;
  if (own_poll_lease_id_ != 0 && head.lease_id == own_poll_lease_id_) return true;
  // It was not there yet when we were about to ask; a writer's append may well have begun before
  // that.
  return head.record_id != last_record_id_ && last_record_at_ns_ >= own_poll_prepared_at_ns_ &&
         head.publish_delay_ns <= prompt_publish_delay_ns_max;
}

MemcachedTier::MemcachedTier(std::shared_ptr<Log> log, MemcachedTierOptions options)
    : log_(std::move(log)),
      options_(std::move(options)),
      staleness_jitter_(random_u64() %
                        static_cast<std::uint64_t>(to_ns(served_staleness_max()) / 6)),
      memcached_(options_.servers, options_.timeout),
      known_extent_(log_->extent()) {}

std::unique_ptr<Log> MemcachedTier::reopen() {
  std::shared_ptr<Log> log = log_->reopen();
  return std::make_unique<MemcachedTier>(log ? log : log_, options_);
}

std::string MemcachedTier::item_key(const std::string& what) const {
  return "whycache1:" + to_string(known_extent_.uuid) + ':' + what;
}

// The chain, where the bytes are an update's; a log holds opaque bytes, and of others their hash
// has to do.
std::uint64_t MemcachedTier::head_chain_of(std::string_view bytes) {
  const std::optional<UpdateHeader> place = peek_header(bytes);
  return place ? place->chain : hash64(bytes);
}

// --- What the log says. ---

void MemcachedTier::record_extent(const Extent& extent) {
  if (known_extent_.uuid != extent.uuid) {
    // What is no head record: all who still follow the log that was replaced ask, and find out.
    const std::optional<HeadRecord> before = fetch_head_record();
    if (before && before->record_id != 0)
      memcached_.compare_and_swap(item_key("head"), "", before->cas_version, item_lifetime);
    invalidated_id_ = 0;
    last_record_id_ = 0;
    last_record_at_ns_ = 0;
    own_poll_at_ns_ = 0;
    last_served_update_ = {};
  }
  known_extent_ = extent;
  has_released_connections_ = false;
  if (invalidated_id_ <= extent.head) invalidated_id_ = 0;
}

Extent MemcachedTier::extent() {
  const Extent extent = log_->extent();
  const std::lock_guard guard(mutex_);
  record_extent(extent);
  return extent;
}

Extent MemcachedTier::read(UpdateId first, UpdateId last, const VisitUpdate& visit) {
  const Extent extent = log_->read(first, last, visit);
  const std::lock_guard guard(mutex_);
  record_extent(extent);
  return extent;
}

PollResult MemcachedTier::poll_log(UpdateId first, bool again, const VisitUpdate& visit) {
  Uuid uuid;
  std::optional<HeadRecord> before;
  std::uint64_t lease = 0;
  bool is_own_lease = true;
  const std::int64_t asking_at_ns = boot_time_ns();
  {
    const std::lock_guard guard(mutex_);
    uuid = known_extent_.uuid;
    before = fetch_head_record();
    lease = std::exchange(pending_lease_id_, 0);
    if (lease == 0 && again && before &&
        boot_time_ns() - last_publish_at_ns_ < publish_interval_ns) {
      lease = before->lease_id;
      is_own_lease = false;
    }
    if (lease == 0) {
      is_own_lease = true;
      lease = random_u64();
      const Memcached::StoreResult stored =
          memcached_.set(item_key("ask"), encode_lease(lease), 0, options_.confirm_interval);
      if (stored != Memcached::StoreResult::stored) lease = 0;
    }
  }
  const std::int64_t began_ns = boot_time_ns();
  std::deque<CachedUpdate> rows;
  std::size_t bytes_kept = 0;
  bool stopped = false;
  const Extent extent = log_->read(first, no_end, [&](UpdateId id, std::string_view bytes) {
    rows.push_back({id, std::string(bytes)});
    bytes_kept += bytes.size();
    while (rows.size() > 1 && (rows.size() > fill_updates_max || bytes_kept > fill_bytes_max)) {
      bytes_kept -= rows.front().bytes.size();
      rows.pop_front();
    }
    stopped = !visit(id, bytes);
    return !stopped;
  });

  // A head is not lowered on the word of a replica that lags: extent() is asked where the log is
  // written.
  if (before && before->head > extent.head && log_->extent().head > extent.head) return {extent};

  const bool reached_head = rows.empty() ? !stopped : rows.back().id == extent.head;
  std::optional<std::uint64_t> mark;
  if (extent.head == extent.base) {
    mark = extent.base_chain;
  } else if (reached_head && !rows.empty()) {
    mark = head_chain_of(rows.back().bytes);
  } else if (reached_head) {  // the log ends before `first`: it was restored, or the caller wanted
                              // only what is new
    log_->read(extent.head, extent.head, [&](UpdateId, std::string_view bytes) {
      mark = head_chain_of(bytes);
      return true;
    });
  }

  const std::lock_guard guard(mutex_);
  record_extent(extent);
  if (reached_head && began_ns > own_poll_at_ns_) {
    own_poll_at_ns_ = confirmed_at_ns_ = began_ns;
    own_poll_head_ = confirmed_head_ = extent.head;
    own_poll_prepared_at_ns_ = asking_at_ns;
    own_poll_lease_id_ = is_own_lease ? lease : 0;
    if (before && uuid == extent.uuid && last_record_at_ns_ < asking_at_ns) {
      last_record_id_ = before->record_id;
      last_record_at_ns_ = asking_at_ns;
    }
    // Who were started together do not all ask together.
    const std::int64_t ask_ns = to_ns(options_.own_poll_interval);
    const auto sooner_ns =
        static_cast<std::int64_t>(random_u64() % static_cast<std::uint64_t>(ask_ns / 4));
    next_own_poll_at_ns_ = began_ns + ask_ns - sooner_ns;
    last_served_update_ = rows.empty() ? CachedUpdate{} : rows.back();
  }
  if (!mark) return {extent};  // the caller has not read to the end
  if (uuid != extent.uuid) before.reset();
  const bool is_told = before && before->record_id != 0 && before->head == extent.head &&
                       before->head_chain == *mark;
  if (!again || !is_told || began_ns - last_publish_at_ns_ >= publish_interval_ns) {
    publish(before, extent, {rows.begin(), rows.end()}, *mark, lease, began_ns);
  }
  return {extent};
}

// --- What memcached says. ---

PollResult MemcachedTier::poll(UpdateId first, std::optional<std::chrono::nanoseconds> age_max,
                               const VisitUpdate& visit) {
  first = std::max<UpdateId>(first, 1);
  std::optional<CachedAnswer> found;
  {
    const std::lock_guard guard(mutex_);
    found = poll_memcached(first, age_max.value_or(served_staleness_max()));
    if (found && !has_released_connections_ &&
        boot_time_ns() - last_append_at_ns_ > connection_release_delay_ns) {
      log_->release_idle_connections();
      has_released_connections_ = true;
    }
  }
  if (!found) return poll_log(first, age_max.has_value(), visit);
  for (const CachedUpdate& row : found->updates) {
    if (!visit(row.id, row.bytes)) break;
  }
  return found->result;
}

std::optional<MemcachedTier::HeadRecord> MemcachedTier::fetch_head_record() {
  const auto items = memcached_.get({item_key("head")});
  if (!items || !(*items)[0]) return std::nullopt;
  return decode(*(*items)[0]);
}

// nullopt: the log has to be asked.
std::optional<MemcachedTier::CachedAnswer> MemcachedTier::poll_memcached(
    UpdateId first, std::chrono::nanoseconds age_max) {
  const std::int64_t now_ns = boot_time_ns();
  if (to_ns(age_max) <= 0 || own_poll_at_ns_ == 0 || now_ns >= next_own_poll_at_ns_)
    return std::nullopt;
  if (invalidated_id_ != 0 && now_ns < invalidated_until_ns_) return std::nullopt;
  if (first < known_extent_.base) return std::nullopt;

  const auto items = memcached_.get({item_key("head"), item_key("ask")});
  // Nobody has asked the log for a while: it is our turn, unless somebody is faster.
  if (items && !(*items)[1]) {
    const std::uint64_t lease = random_u64();
    if (memcached_.add(item_key("ask"), encode_lease(lease), options_.confirm_interval) ==
        Memcached::StoreResult::stored) {
      pending_lease_id_ = lease;
      return std::nullopt;
    }
  }

  CachedAnswer found;
  HeadVerdict told = HeadVerdict::unusable;
  if (items && (*items)[0]) {
    const HeadRecord head = decode(*(*items)[0]);
    if (head.record_id == 0) return std::nullopt;
    const std::int64_t asked_ns = earliest_poll_at_ns(head, (*items)[1], now_ns);
    if (head.head > own_poll_head_ && !postdates_own_poll(head, asked_ns)) {
      // What lies beyond our own answer may be what the log has lost. The next new record tells, or
      // who asks now.
      told =
          try_take_fill_lease(own_poll_head_ + 1) ? HeadVerdict::poll_log : HeadVerdict::unusable;
      last_record_id_ = head.record_id;
      last_record_at_ns_ = now_ns;
    } else {
      told = fetch_updates_to_head(head, first, found.updates);
    }
    if (told == HeadVerdict::usable) {
      if (asked_ns > confirmed_at_ns_) {
        confirmed_at_ns_ = asked_ns;
        confirmed_head_ = head.head;
      }
      last_record_id_ = head.record_id;
      last_record_at_ns_ = now_ns;
      known_extent_.head = head.head;
      last_served_update_ = found.updates.empty() ? CachedUpdate{} : found.updates.back();
    }
  }
  if (told == HeadVerdict::poll_log) return std::nullopt;
  // Nothing new, as far as it is known. That gets older until somebody asks the log. If memcached
  // does not answer it is each for himself, but not at each poll: what memcached kept from the log
  // must not all come upon it at once.
  if (told == HeadVerdict::unusable) {
    // Where nothing was confirmed, the first update is one that nobody vouches for.
    if (first == 1 && confirmed_head_ == 0) return std::nullopt;
    std::optional<CachedUpdate> row = fetch_update(first);
    if (!row || confirmed_head_ > first) return std::nullopt;
    found.updates = {std::move(*row)};
  }

  const std::chrono::nanoseconds age(std::max<std::int64_t>(now_ns - confirmed_at_ns_, 1));
  if (age > std::min(age_max, served_staleness_max() - staleness_jitter_)) return std::nullopt;
  found.result = {known_extent_, age};
  found.result.extent.head =
      found.updates.empty() ? std::max(known_extent_.base, first - 1) : found.updates.back().id;
  return found;
}

// The updates from `first` to the head, if all of them are there, and end in the update that the
// record means.
MemcachedTier::HeadVerdict MemcachedTier::fetch_updates_to_head(const HeadRecord& head,
                                                                UpdateId first,
                                                                std::vector<CachedUpdate>& rows) {
  const bool is_empty_log = head.head == 0 && first == 1;
  if (head.head < known_extent_.head) return HeadVerdict::poll_log;
  if (head.head < first && !is_empty_log) {
    // The log has lost updates, or nobody could put the head that the caller knows. That has to be
    // found out once.
    return head.record_id == last_record_id_ ? HeadVerdict::unusable : HeadVerdict::poll_log;
  }
  if (head.head == known_extent_.base)
    return head.head_chain == known_extent_.base_chain ? HeadVerdict::usable
                                                       : HeadVerdict::poll_log;

  const UpdateId begin = std::max(first, known_extent_.base + 1);
  if (head.head - begin >= served_updates_max) return HeadVerdict::poll_log;
  std::size_t bytes = 0;
  std::size_t largest_bytes = 1;
  UpdateId keys_next = keys_per_get_initial;
  for (UpdateId next = begin; next <= head.head;) {
    if (next == last_served_update_.id) {
      rows.push_back(last_served_update_);
      ++next;
      continue;
    }
    const UpdateId end = std::min<UpdateId>(head.head + 1, next + keys_next);
    std::vector<std::string> keys;
    for (UpdateId id = next; id < end; ++id) keys.push_back(update_key(id));
    auto items = memcached_.get(keys);
    if (!items) {
      rows.clear();
      return HeadVerdict::unusable;
    }
    for (std::optional<Memcached::CachedItem>& item : *items) {
      if (!item) {  // one of all fetches it for all
        rows.clear();
        return try_take_fill_lease(next) ? HeadVerdict::poll_log : HeadVerdict::unusable;
      }
      bytes += item->bytes.size();
      largest_bytes = std::max(largest_bytes, item->bytes.size());
      if ((item->flags & flag_too_large) != 0 || bytes > served_bytes_max)
        return HeadVerdict::poll_log;
      rows.push_back({next++, std::move(item->bytes)});
    }
    const UpdateId fitting = (served_bytes_max - bytes) / largest_bytes;
    keys_next = std::clamp<UpdateId>(std::min(fitting, 4 * keys_next), 1, keys_per_get_max);
  }
  return head_chain_of(rows.back().bytes) == head.head_chain ? HeadVerdict::usable
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

// --- What the others are told. ---

// What the log answered to a question asked at `asked_at_ns`, when `before` was the head record.
void MemcachedTier::publish(std::optional<HeadRecord> before, const Extent& extent,
                            const std::vector<CachedUpdate>& rows, std::uint64_t mark,
                            std::uint64_t lease, std::int64_t asked_at_ns) {
  if (!memcached_.is_available()) return;
  for (const CachedUpdate& row : rows) {
    if (row.id > extent.base) publish_update(row.id, row.bytes);
  }
  publish_head_record(before, {0, extent.head, mark, lease, 0, 0}, asked_at_ns);
}

void MemcachedTier::publish_update(UpdateId id, std::string_view bytes) {
  const auto put_mark = [&] { memcached_.set(update_key(id), "", flag_too_large, item_lifetime); };
  if (bytes.size() > cached_update_bytes_max) return put_mark();
  if (memcached_.set(update_key(id), bytes, 0, item_lifetime) != Memcached::StoreResult::stored)
    put_mark();
}

void MemcachedTier::publish_head_record(std::optional<HeadRecord> before, HeadRecord head,
                                        std::int64_t asked_at_ns) {
  const UpdateId head_before = before ? before->head : 0;
  for (int attempt = 0; attempt < publish_attempts_max; ++attempt) {
    const std::int64_t now_ns = boot_time_ns();
    if ((attempt > 0 || !before) && now_ns - asked_at_ns > publish_window_ns) return;
    head.record_id = std::max<std::uint64_t>(random_u64(), 1);
    head.publish_delay_ns = now_ns - asked_at_ns;
    const Memcached::StoreResult stored =
        before ? memcached_.compare_and_swap(item_key("head"), encode(head), before->cas_version,
                                             item_lifetime)
               : memcached_.add(item_key("head"), encode(head), item_lifetime);
    if (stored == Memcached::StoreResult::stored) {
      last_record_id_ = head.record_id;
      last_record_at_ns_ = last_publish_at_ns_ = now_ns;
    }
    if (stored != Memcached::StoreResult::not_stored) return;
    // Somebody else put one: it stays if it says as much, or that the log has lost updates since we
    // asked.
    before = fetch_head_record();
    if (before && before->record_id != 0 &&
        (before->head >= head.head || before->head < head_before))
      return;
  }
}

Log::Appended MemcachedTier::append(UpdateId id, std::string_view bytes) {
  std::optional<HeadRecord> before;
  {
    const std::lock_guard guard(mutex_);
    before = fetch_head_record();
  }
  const std::int64_t began_ns = boot_time_ns();
  Appended appended;
  try {
    appended = log_->append(id, bytes);
  } catch (...) {
    const std::lock_guard guard(mutex_);
    invalidate_from(id);
    throw;
  }
  const std::lock_guard guard(mutex_);
  last_append_at_ns_ = boot_time_ns();
  has_released_connections_ = false;
  if (appended != Appended::yes) {
    invalidate_from(id);
    return appended;
  }
  known_extent_.head = std::max(known_extent_.head, id);
  own_poll_head_ = std::max(own_poll_head_, id);
  if (invalidated_id_ <= id) invalidated_id_ = 0;
  publish_update(id, bytes);
  // An append asks the log, too: later than whoever put the record before it.
  publish_head_record(before, {0, id, head_chain_of(bytes), before ? before->lease_id : 0, 0, 0},
                      began_ns);
  return appended;
}

void MemcachedTier::invalidate_from(UpdateId id) {
  invalidated_id_ = std::max(invalidated_id_, id);
  invalidated_until_ns_ = boot_time_ns() + to_ns(served_staleness_max());
}

bool MemcachedTier::rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) {
  const bool switched = log_->rewrite(base, base_chain, next_part);
  const std::lock_guard guard(mutex_);
  own_poll_at_ns_ = 0;  // the base moved: the next look asks for it
  has_released_connections_ = false;
  return switched;
}

}  // namespace whycache
