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
constexpr std::chrono::seconds kept{std::chrono::hours(24)};
constexpr std::chrono::seconds fill_lease{2};
// memcached takes items of 1 MiB, unless it is told otherwise.
constexpr std::size_t body_bytes_max = 1'000'000;
constexpr std::uint32_t flag_too_large = 1;
// Who is farther behind asks the log.
constexpr std::uint64_t rows_max = 4'096;
constexpr std::size_t rows_bytes_max = std::size_t{4} << 20;
constexpr UpdateId keys_at_first = 8;  // asked for at once, until it is known how large the updates are
constexpr UpdateId keys_at_once = 256;
// Of what was read from the log, the last so many updates are put into memcached.
constexpr std::size_t fill_rows_max = 1'000;
constexpr std::size_t fill_bytes_max = std::size_t{8} << 20;
// A head that was asked for longer ago is not put any more.
constexpr std::int64_t put_within_ns = std::int64_t{5} * 1'000'000'000;
constexpr int put_attempts = 3;
constexpr std::int64_t late_ns = 1'000'000'000;
constexpr std::int64_t took_ns_max = std::int64_t{3600} * 1'000'000'000;
// Who strictly asks the log again and again tells the others this often.
constexpr std::int64_t tell_every_ns = 100'000'000;
// Who wrote lately keeps the connections to the log's store.
constexpr std::int64_t writer_rests_after_ns = std::int64_t{60} * 1'000'000'000;

constexpr UpdateId no_end = std::numeric_limits<UpdateId>::max();

constexpr std::size_t head_bytes = 48;
constexpr std::size_t lease_bytes = 12;
constexpr std::uint32_t lease_seconds_max = 3'600;

std::int64_t to_ns(std::chrono::nanoseconds duration) { return duration.count(); }

}  // namespace

// --- The head record: number, head, mark, lease, took, and a hash of these, little-endian. ---

std::string MemcachedTier::encode(const Head& head) {
  std::string bytes;
  append_little_endian(bytes, head.number);
  append_little_endian(bytes, head.head);
  append_little_endian(bytes, head.mark);
  append_little_endian(bytes, head.lease);
  append_little_endian(bytes, head.took_ns);
  append_little_endian(bytes, hash64(bytes));
  return bytes;
}

// What is no head record has number 0: whoever meets it asks the log, and replaces it.
MemcachedTier::Head MemcachedTier::decode(const Memcached::Item& item) {
  Head head;
  head.version = item.version;
  const std::string_view bytes = item.bytes;
  if (bytes.size() != head_bytes) return head;
  if (load_little_endian<std::uint64_t>(bytes.data() + 40) != hash64(bytes.substr(0, 40))) return head;
  head.number = load_little_endian<std::uint64_t>(bytes.data());
  head.head = load_little_endian<std::uint64_t>(bytes.data() + 8);
  head.mark = load_little_endian<std::uint64_t>(bytes.data() + 16);
  head.lease = load_little_endian<std::uint64_t>(bytes.data() + 24);
  head.took_ns = std::clamp<std::int64_t>(load_little_endian<std::int64_t>(bytes.data() + 32), 0, took_ns_max);
  return head;
}

// --- The lease to ask: its number, and for how many seconds it was put. ---

std::string MemcachedTier::encode_lease(std::uint64_t number) const {
  std::string bytes;
  append_little_endian(bytes, number);
  append_little_endian(bytes, static_cast<std::uint32_t>(options_.confirm.count()));
  return bytes;
}

// When the log was asked at the earliest, by a head record and the lease that is there at `now_ns`: the record's
// question came after its lease was put, and memcached counts expiry in whole seconds.
std::int64_t MemcachedTier::asked_since_ns(const Head& head, const std::optional<Memcached::Item>& lease,
                                           std::int64_t now_ns) const {
  std::int64_t asked_ns = 0;
  if (head.number != head_number_ && head_read_at_ns_ != 0) asked_ns = head_read_at_ns_ - head.took_ns;
  if (!lease || lease->bytes.size() != lease_bytes || head.lease == 0) return asked_ns;
  if (load_little_endian<std::uint64_t>(lease->bytes.data()) != head.lease) return asked_ns;
  const std::uint32_t seconds = load_little_endian<std::uint32_t>(lease->bytes.data() + 8);
  if (seconds > lease_seconds_max) return asked_ns;
  return std::max(asked_ns, now_ns - to_ns(std::chrono::seconds(seconds + 1)));
}

// Whether a record, by which the log was asked at `asked_ns` at the earliest, was made after this process asked the
// log.
bool MemcachedTier::came_after_own_question(const Head& head, std::int64_t asked_ns) const {
  if (asked_ns > asked_at_ns_) return true;
  if (asked_lease_ != 0 && head.lease == asked_lease_) return true;
  // It was not there yet when we were about to ask; a writer's append may well have begun before that.
  return head.number != head_number_ && head_read_at_ns_ >= asking_at_ns_ && head.took_ns <= late_ns;
}

MemcachedTier::MemcachedTier(std::shared_ptr<Log> log, MemcachedTierOptions options)
    : log_(std::move(log)),
      options_(std::move(options)),
      sooner_(random_u64() % static_cast<std::uint64_t>(to_ns(oldest()) / 6)),
      memcached_(options_.servers, options_.patience),
      known_(log_->extent()) {}

std::unique_ptr<Log> MemcachedTier::reopen() {
  std::shared_ptr<Log> log = log_->reopen();
  return std::make_unique<MemcachedTier>(log ? log : log_, options_);
}

std::string MemcachedTier::key(const std::string& what) const {
  return "whycache1:" + to_string(known_.uuid) + ':' + what;
}

// The chain, where the bytes are an update's; a log holds opaque bytes, and of others their hash has to do.
std::uint64_t MemcachedTier::mark_of(std::string_view bytes) {
  const std::optional<UpdatePlace> place = peek_place(bytes);
  return place ? place->chain : hash64(bytes);
}

// --- What the log says. ---

void MemcachedTier::learn(const Extent& extent) {
  if (known_.uuid != extent.uuid) {
    // What is no head record: all who still follow the log that was replaced ask, and find out.
    const std::optional<Head> before = read_head();
    if (before && before->number != 0) memcached_.replace(key("head"), "", before->version, kept);
    doubt_ = 0;
    head_number_ = 0;
    head_read_at_ns_ = 0;
    asked_at_ns_ = 0;
    frontier_ = {};
  }
  known_ = extent;
  log_is_resting_ = false;
  if (doubt_ <= extent.head) doubt_ = 0;
}

Extent MemcachedTier::extent() {
  const Extent extent = log_->extent();
  const std::lock_guard guard(mutex_);
  learn(extent);
  return extent;
}

Extent MemcachedTier::read(UpdateId first, UpdateId last, const VisitUpdate& visit) {
  const Extent extent = log_->read(first, last, visit);
  const std::lock_guard guard(mutex_);
  learn(extent);
  return extent;
}

Looked MemcachedTier::ask(UpdateId first, bool again, const VisitUpdate& visit) {
  Uuid uuid;
  std::optional<Head> before;
  std::uint64_t lease = 0;
  bool is_own_lease = true;
  const std::int64_t asking_at_ns = boot_time_ns();
  {
    const std::lock_guard guard(mutex_);
    uuid = known_.uuid;
    before = read_head();
    lease = std::exchange(turn_, 0);
    if (lease == 0 && again && before && boot_time_ns() - told_at_ns_ < tell_every_ns) {
      lease = before->lease;
      is_own_lease = false;
    }
    if (lease == 0) {
      is_own_lease = true;
      lease = random_u64();
      const Memcached::Stored stored = memcached_.set(key("ask"), encode_lease(lease), 0, options_.confirm);
      if (stored != Memcached::Stored::yes) lease = 0;
    }
  }
  const std::int64_t began_ns = boot_time_ns();
  std::deque<Row> rows;
  std::size_t bytes_kept = 0;
  bool stopped = false;
  const Extent extent = log_->read(first, no_end, [&](UpdateId id, std::string_view bytes) {
    rows.push_back({id, std::string(bytes)});
    bytes_kept += bytes.size();
    while (rows.size() > 1 && (rows.size() > fill_rows_max || bytes_kept > fill_bytes_max)) {
      bytes_kept -= rows.front().bytes.size();
      rows.pop_front();
    }
    stopped = !visit(id, bytes);
    return !stopped;
  });

  // A head is not lowered on the word of a replica that lags: extent() is asked where the log is written.
  if (before && before->head > extent.head && log_->extent().head > extent.head) return {extent};

  const bool reached_head = rows.empty() ? !stopped : rows.back().id == extent.head;
  std::optional<std::uint64_t> mark;
  if (extent.head == extent.base) {
    mark = extent.base_chain;
  } else if (reached_head && !rows.empty()) {
    mark = mark_of(rows.back().bytes);
  } else if (reached_head) {  // the log ends before `first`: it was restored, or the caller wanted only what is new
    log_->read(extent.head, extent.head, [&](UpdateId, std::string_view bytes) {
      mark = mark_of(bytes);
      return true;
    });
  }

  const std::lock_guard guard(mutex_);
  learn(extent);
  if (reached_head && began_ns > asked_at_ns_) {
    asked_at_ns_ = confirmed_at_ns_ = began_ns;
    asked_head_ = confirmed_head_ = extent.head;
    asking_at_ns_ = asking_at_ns;
    asked_lease_ = is_own_lease ? lease : 0;
    if (before && uuid == extent.uuid && head_read_at_ns_ < asking_at_ns) {
      head_number_ = before->number;
      head_read_at_ns_ = asking_at_ns;
    }
    // Who were started together do not all ask together.
    const std::int64_t ask_ns = to_ns(options_.ask);
    const auto sooner_ns = static_cast<std::int64_t>(random_u64() % static_cast<std::uint64_t>(ask_ns / 4));
    ask_again_at_ns_ = began_ns + ask_ns - sooner_ns;
    frontier_ = rows.empty() ? Row{} : rows.back();
  }
  if (!mark) return {extent};  // the caller has not read to the end
  if (uuid != extent.uuid) before.reset();
  const bool is_told = before && before->number != 0 && before->head == extent.head && before->mark == *mark;
  if (!again || !is_told || began_ns - told_at_ns_ >= tell_every_ns) {
    tell(before, extent, {rows.begin(), rows.end()}, *mark, lease, began_ns);
  }
  return {extent};
}

// --- What memcached says. ---

Looked MemcachedTier::look(UpdateId first, std::optional<std::chrono::nanoseconds> age_max, const VisitUpdate& visit) {
  first = std::max<UpdateId>(first, 1);
  std::optional<Found> found;
  {
    const std::lock_guard guard(mutex_);
    found = find(first, age_max.value_or(oldest()));
    if (found && !log_is_resting_ && boot_time_ns() - wrote_at_ns_ > writer_rests_after_ns) {
      log_->rest();
      log_is_resting_ = true;
    }
  }
  if (!found) return ask(first, age_max.has_value(), visit);
  for (const Row& row : found->rows) {
    if (!visit(row.id, row.bytes)) break;
  }
  return found->looked;
}

std::optional<MemcachedTier::Head> MemcachedTier::read_head() {
  const auto items = memcached_.get({key("head")});
  if (!items || !(*items)[0]) return std::nullopt;
  return decode(*(*items)[0]);
}

// nullopt: the log has to be asked.
std::optional<MemcachedTier::Found> MemcachedTier::find(UpdateId first, std::chrono::nanoseconds age_max) {
  const std::int64_t now_ns = boot_time_ns();
  if (to_ns(age_max) <= 0 || asked_at_ns_ == 0 || now_ns >= ask_again_at_ns_) return std::nullopt;
  if (doubt_ != 0 && now_ns < doubt_until_ns_) return std::nullopt;
  if (first < known_.base) return std::nullopt;

  const auto items = memcached_.get({key("head"), key("ask")});
  // Nobody has asked the log for a while: it is our turn, unless somebody is faster.
  if (items && !(*items)[1]) {
    const std::uint64_t lease = random_u64();
    if (memcached_.add(key("ask"), encode_lease(lease), options_.confirm) == Memcached::Stored::yes) {
      turn_ = lease;
      return std::nullopt;
    }
  }

  Found found;
  Told told = Told::nothing;
  if (items && (*items)[0]) {
    const Head head = decode(*(*items)[0]);
    if (head.number == 0) return std::nullopt;
    const std::int64_t asked_ns = asked_since_ns(head, (*items)[1], now_ns);
    if (head.head > asked_head_ && !came_after_own_question(head, asked_ns)) {
      // What lies beyond our own answer may be what the log has lost. The next new record tells, or who asks now.
      told = take_fill_lease(asked_head_ + 1) ? Told::ask_log : Told::nothing;
      head_number_ = head.number;
      head_read_at_ns_ = now_ns;
    } else {
      told = follow_head(head, first, found.rows);
    }
    if (told == Told::all) {
      if (asked_ns > confirmed_at_ns_) {
        confirmed_at_ns_ = asked_ns;
        confirmed_head_ = head.head;
      }
      head_number_ = head.number;
      head_read_at_ns_ = now_ns;
      known_.head = head.head;
      frontier_ = found.rows.empty() ? Row{} : found.rows.back();
    }
  }
  if (told == Told::ask_log) return std::nullopt;
  // Nothing new, as far as it is known. That gets older until somebody asks the log. If memcached does not answer it is
  // each for himself, but not at each poll: what memcached kept from the log must not all come upon it at once.
  if (told == Told::nothing) {
    // Where nothing was confirmed, the first update is one that nobody vouches for.
    if (first == 1 && confirmed_head_ == 0) return std::nullopt;
    std::optional<Row> row = row_at(first);
    if (!row || confirmed_head_ > first) return std::nullopt;
    found.rows = {std::move(*row)};
  }

  const std::chrono::nanoseconds age(std::max<std::int64_t>(now_ns - confirmed_at_ns_, 1));
  if (age > std::min(age_max, oldest() - sooner_)) return std::nullopt;
  found.looked = {known_, age};
  found.looked.extent.head = found.rows.empty() ? std::max(known_.base, first - 1) : found.rows.back().id;
  return found;
}

// The updates from `first` to the head, if all of them are there, and end in the update that the record means.
MemcachedTier::Told MemcachedTier::follow_head(const Head& head, UpdateId first, std::vector<Row>& rows) {
  const bool is_empty_log = head.head == 0 && first == 1;
  if (head.head < known_.head) return Told::ask_log;
  if (head.head < first && !is_empty_log) {
    // The log has lost updates, or nobody could put the head that the caller knows. That has to be found out once.
    return head.number == head_number_ ? Told::nothing : Told::ask_log;
  }
  if (head.head == known_.base) return head.mark == known_.base_chain ? Told::all : Told::ask_log;

  const UpdateId begin = std::max(first, known_.base + 1);
  if (head.head - begin >= rows_max) return Told::ask_log;
  std::size_t bytes = 0;
  std::size_t largest_bytes = 1;
  UpdateId keys_next = keys_at_first;
  for (UpdateId next = begin; next <= head.head;) {
    if (next == frontier_.id) {
      rows.push_back(frontier_);
      ++next;
      continue;
    }
    const UpdateId end = std::min<UpdateId>(head.head + 1, next + keys_next);
    std::vector<std::string> keys;
    for (UpdateId id = next; id < end; ++id) keys.push_back(update_key(id));
    auto items = memcached_.get(keys);
    if (!items) {
      rows.clear();
      return Told::nothing;
    }
    for (std::optional<Memcached::Item>& item : *items) {
      if (!item) {  // one of all fetches it for all
        rows.clear();
        return take_fill_lease(next) ? Told::ask_log : Told::nothing;
      }
      bytes += item->bytes.size();
      largest_bytes = std::max(largest_bytes, item->bytes.size());
      if ((item->flags & flag_too_large) != 0 || bytes > rows_bytes_max) return Told::ask_log;
      rows.push_back({next++, std::move(item->bytes)});
    }
    const UpdateId fitting = (rows_bytes_max - bytes) / largest_bytes;
    keys_next = std::clamp<UpdateId>(std::min(fitting, 4 * keys_next), 1, keys_at_once);
  }
  return mark_of(rows.back().bytes) == head.mark ? Told::all : Told::ask_log;
}

bool MemcachedTier::take_fill_lease(UpdateId id) {
  return memcached_.add(key("fill:" + std::to_string(id)), "", fill_lease) == Memcached::Stored::yes;
}

std::optional<MemcachedTier::Row> MemcachedTier::row_at(UpdateId id) {
  if (id == frontier_.id) return frontier_;
  auto items = memcached_.get({update_key(id)});
  if (!items || !(*items)[0] || (*items)[0]->flags != 0) return std::nullopt;
  return Row{id, std::move((*items)[0]->bytes)};
}

// --- What the others are told. ---

// What the log answered to a question asked at `asked_at_ns`, when `before` was the head record.
void MemcachedTier::tell(std::optional<Head> before, const Extent& extent, const std::vector<Row>& rows,
                         std::uint64_t mark, std::uint64_t lease, std::int64_t asked_at_ns) {
  if (!memcached_.answers()) return;
  for (const Row& row : rows) {
    if (row.id > extent.base) put_update(row.id, row.bytes);
  }
  put_head(before, {0, extent.head, mark, lease, 0, 0}, asked_at_ns);
}

void MemcachedTier::put_update(UpdateId id, std::string_view bytes) {
  const auto put_mark = [&] { memcached_.set(update_key(id), "", flag_too_large, kept); };
  if (bytes.size() > body_bytes_max) return put_mark();
  if (memcached_.set(update_key(id), bytes, 0, kept) != Memcached::Stored::yes) put_mark();
}

void MemcachedTier::put_head(std::optional<Head> before, Head head, std::int64_t asked_at_ns) {
  const UpdateId head_before = before ? before->head : 0;
  for (int attempt = 0; attempt < put_attempts; ++attempt) {
    const std::int64_t now_ns = boot_time_ns();
    if ((attempt > 0 || !before) && now_ns - asked_at_ns > put_within_ns) return;
    head.number = std::max<std::uint64_t>(random_u64(), 1);
    head.took_ns = now_ns - asked_at_ns;
    const Memcached::Stored stored = before ? memcached_.replace(key("head"), encode(head), before->version, kept)
                                            : memcached_.add(key("head"), encode(head), kept);
    if (stored == Memcached::Stored::yes) {
      head_number_ = head.number;
      head_read_at_ns_ = told_at_ns_ = now_ns;
    }
    if (stored != Memcached::Stored::no) return;
    // Somebody else put one: it stays if it says as much, or that the log has lost updates since we asked.
    before = read_head();
    if (before && before->number != 0 && (before->head >= head.head || before->head < head_before)) return;
  }
}

Log::Appended MemcachedTier::append(UpdateId id, std::string_view bytes) {
  std::optional<Head> before;
  {
    const std::lock_guard guard(mutex_);
    before = read_head();
  }
  const std::int64_t began_ns = boot_time_ns();
  Appended appended;
  try {
    appended = log_->append(id, bytes);
  } catch (...) {
    const std::lock_guard guard(mutex_);
    doubt_from(id);
    throw;
  }
  const std::lock_guard guard(mutex_);
  wrote_at_ns_ = boot_time_ns();
  log_is_resting_ = false;
  if (appended != Appended::yes) {
    doubt_from(id);
    return appended;
  }
  known_.head = std::max(known_.head, id);
  asked_head_ = std::max(asked_head_, id);
  if (doubt_ <= id) doubt_ = 0;
  put_update(id, bytes);
  // An append asks the log, too: later than whoever put the record before it.
  put_head(before, {0, id, mark_of(bytes), before ? before->lease : 0, 0, 0}, began_ns);
  return appended;
}

void MemcachedTier::doubt_from(UpdateId id) {
  doubt_ = std::max(doubt_, id);
  doubt_until_ns_ = boot_time_ns() + to_ns(oldest());
}

bool MemcachedTier::rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) {
  const bool switched = log_->rewrite(base, base_chain, next_part);
  const std::lock_guard guard(mutex_);
  asked_at_ns_ = 0;  // the base moved: the next look asks for it
  log_is_resting_ = false;
  return switched;
}

}  // namespace whycache
