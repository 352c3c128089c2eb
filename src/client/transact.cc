#include "client/transact.h"

#include <algorithm>
#include <charconv>
#include <system_error>
#include <utility>

#include "client/follow.h"
#include "client/guards.h"
#include "client/lease_record.h"
#include "state/read/pin.h"
#include "update/update.h"

namespace whycache {

UpdateId Transaction::id() const noexcept { return record_->view().id(); }
std::optional<std::string_view> Transaction::get(std::string_view key) { return record_->get(key); }
std::vector<Item> Transaction::items(const KeyRange& range) { return record_->items(range); }
void Transaction::set(std::string_view key, std::string_view value) {
  record_->write(Change::set(key, value));
}
void Transaction::erase(std::string_view key) { record_->write(Change::erase(key)); }
void Transaction::erase(const KeyRange& range) { record_->erase(range); }

std::vector<std::optional<std::string_view>> Transaction::get_multi(
    std::span<const std::string_view> keys) {
  std::vector<std::optional<std::string_view>> values;
  values.reserve(keys.size());
  for (const std::string_view key : keys) values.push_back(record_->get(key));
  return values;
}

std::int64_t Transaction::add(std::string_view key, std::int64_t delta) {
  const std::int64_t sum = sum_of(record_->get(key), delta);
  record_->write(Change::set(key, std::to_string(sum)));
  return sum;
}

bool Transaction::holds(const Lease& lease) {
  const std::optional<std::string_view> value = record_->get(lease.key);
  const std::optional<LeaseRecord> record = value ? decode_lease(*value) : std::nullopt;
  return record && record->is_of(lease);
}

std::optional<std::string_view> Transaction::Record::get(std::string_view key) {
  if (const auto own = written_.find(key); own != written_.end()) {
    if (!own->second) return std::nullopt;
    return *own->second;
  }
  if (keys_read_.find(key) == keys_read_.end()) keys_read_.emplace(key);
  return view_.get(key);
}

std::vector<Item> Transaction::Record::items(const KeyRange& range) {
  ranges_read_.push_back(range);
  std::vector<Item> items;
  auto own = written_.lower_bound(range.begin);
  const auto own_end = range.end ? written_.lower_bound(*range.end) : written_.end();
  const auto add_own = [&] {
    if (own->second) items.push_back({own->first, *own->second});
    ++own;
  };
  for (const Item& item : view_.items(range)) {
    while (own != own_end && own->first < item.key) add_own();
    if (own != own_end && own->first == item.key) {
      add_own();
    } else {
      items.push_back(item);
    }
  }
  while (own != own_end) add_own();
  return items;
}

void Transaction::Record::write(const Change& change) {
  check_key(change.key);
  if (change.value.size() > value_bytes_max) {
    throw Error(ErrorKind::limit, "value too large: bytes=" + std::to_string(change.value.size()) +
                                      " bytes_max=" + std::to_string(value_bytes_max));
  }
  std::optional<std::string>& written = written_.try_emplace(std::string(change.key)).first->second;
  if (change.kind == Change::Kind::erase) {
    written.reset();
  } else {
    written =
        std::string(change.value);  // copied first: it may point into the old value of this key
  }
}

void Transaction::Record::erase(const KeyRange& range) {
  // The items point into the entries, or into written values that are erased only by their own
  // change.
  for (const Item& item : items(range)) {
    if (item.key != log_guards_key) write(Change::erase(item.key));
  }
}

bool Transaction::Record::reads_are_valid_at(const View& now) const {
  for (const std::string& key : keys_read_) {
    if (view_.get(key) != now.get(key)) return false;
  }
  for (const KeyRange& range : ranges_read_) {
    const Items then_items = view_.items(range);
    const Items now_items = now.items(range);
    auto then_item = then_items.begin();
    auto now_item = now_items.begin();
    for (; then_item != std::default_sentinel && now_item != std::default_sentinel;
         ++then_item, ++now_item) {
      if (*then_item != *now_item) return false;
    }
    if (then_item != std::default_sentinel || now_item != std::default_sentinel) return false;
  }
  return true;
}

std::vector<Change> Transaction::Record::changes() const {
  std::vector<Change> changes;
  changes.reserve(written_.size());
  for (const auto& [key, value] : written_)
    changes.push_back(value ? Change::set(key, *value) : Change::erase(key));
  return changes;
}

namespace {

[[noreturn]] void throw_too_large(const Session& session, std::size_t change_count) {
  throw Error(ErrorKind::limit,
              "transaction too large for one update: changes=" + std::to_string(change_count) +
                  " update_bytes_max=" + std::to_string(session.options.update_bytes_max) +
                  " (raise update_bytes_max)");
}

Draft draft_of(Session& session, const std::vector<Change>& changes, const std::string& note) {
  Draft draft(session.authorship(note));
  for (const Change& change : changes) {
    if (!draft.add(change, session.options.update_bytes_max))
      throw_too_large(session, changes.size());
  }
  return draft;
}

}  // namespace

void check_key(std::string_view key) {
  if (!key.empty() && key.size() <= key_bytes_max) return;
  throw Error(ErrorKind::invalid, "key must have 1 to " + std::to_string(key_bytes_max) +
                                      " bytes: bytes=" + std::to_string(key.size()));
}

std::int64_t sum_of(std::optional<std::string_view> number, std::int64_t delta) {
  std::int64_t parsed = 0;
  if (number) {
    const char* const end = number->data() + number->size();
    const auto [parsed_end, failure] = std::from_chars(number->data(), end, parsed);
    if (failure != std::errc() || parsed_end != end) {
      throw Error(ErrorKind::invalid,
                  "value is not an integer of 64 bits in decimal digits, nothing was "
                  "written: value_bytes=" +
                      std::to_string(number->size()));
    }
  }
  std::int64_t sum = 0;
  if (__builtin_add_overflow(parsed, delta, &sum)) {
    throw Error(ErrorKind::limit, "sum has more than 64 bits, nothing was written: number=" +
                                      std::to_string(parsed) + " delta=" + std::to_string(delta));
  }
  return sum;
}

UpdateId transact(Session& session, Appender& appender,
                  const std::function<void(Transaction&)>& function,
                  const TransactOptions& options) {
  if (!function) throw Error(ErrorKind::invalid, "no function given");
  if (options.attempts_max < 1) throw Error(ErrorKind::invalid, "attempts_max must be at least 1");
  Backoff backoff = session.backoff_for(options);
  build_missing_state(session, backoff);
  for (int attempt = 1;; ++attempt) {
    session.throw_if_stopped(backoff);
    const std::shared_ptr<const detail::Pin> pin = session.state.pin();
    Transaction::Record record{View(pin)};
    Transaction transaction(record);
    function(transaction);
    const std::vector<Change> changes = record.changes();
    if (changes.empty()) return pin->id();

    const std::optional<LogPosition> position = appender.append_prepared(
        [&](const std::shared_ptr<const detail::Pin>& now) -> std::optional<Draft> {
          const View view(now);
          const bool unmoved = now->id() == pin->id() && now->block().chain == pin->block().chain;
          if (!unmoved && !record.reads_are_valid_at(view)) return std::nullopt;
          check_guards(session, changes, view);
          return draft_of(session, changes, options.note);
        },
        backoff);
    if (position) return position->id;
    if (attempt == options.attempts_max || backoff.deadline().passed()) {
      throw Error(ErrorKind::conflict,
                  "what the transaction read was changed by others each time it ran, nothing was "
                  "written: attempts=" +
                      std::to_string(attempt) +
                      " deadline_ms=" + std::to_string(backoff.timeout().count()));
    }
  }
}

std::optional<UpdateId> write_decided(Session& session, Appender& appender,
                                      const DecideOnView& decide, const WriteOptions& options) {
  return write_unguarded(
      session, appender,
      [&](const View& view) {
        std::vector<Change> changes = decide(view);
        check_guards(session, changes, view);
        return changes;
      },
      options);
}

std::optional<UpdateId> write_unguarded(Session& session, Appender& appender,
                                        const DecideOnView& decide, const WriteOptions& options) {
  Backoff backoff = session.backoff_for(options);
  const std::int64_t began_ns = boot_time_ns();
  for (;;) {
    session.throw_if_stopped(backoff);
    // Checked before the state is pinned. A process that follows at the same time may apply an
    // update, and record the poll, immediately after.
    bool is_of_this_call = false;
    const std::optional<LogPosition> position = appender.append_prepared(
        [&](const std::shared_ptr<const detail::Pin>& now) -> std::optional<Draft> {
          const View view(now);
          const std::vector<Change> changes = decide(view);
          if (changes.empty()) return std::nullopt;
          return draft_of(session, changes, options.note);
        },
        backoff, [&] { is_of_this_call = store_asked_since(session.state, began_ns); });
    if (position) return position->id;
    // The answer "no" must not come from a state older than this call.
    if (is_of_this_call) return std::nullopt;
    follow(session, backoff);
  }
}

UpdateId erase_range(Session& session, Appender& appender, const KeyRange& range,
                     const WriteOptions& options) {
  UpdateId seen = 0;
  const std::optional<UpdateId> erased = write_decided(
      session, appender,
      [&](const View& view) {
        seen = view.id();
        const std::size_t count = view.count(range);
        // Each takes two bytes at least. Not worth reading if they cannot fit.
        if (count > session.options.update_bytes_max / 2) throw_too_large(session, count);
        std::vector<Change> changes;
        changes.reserve(count);
        for (const std::string_view key : view.keys(range)) {
          if (key != log_guards_key) changes.push_back(Change::erase(key));
        }
        return changes;
      },
      options);
  return erased.value_or(seen);
}

std::optional<UpdateId> read_modify_write(Session& session, Appender& appender,
                                          std::string_view key, const Decide& decide,
                                          const WriteOptions& options) {
  check_key(key);
  return write_decided(
      session, appender,
      [&](const View& view) {
        const std::optional<Change> change = decide(view.get(key));
        return change ? std::vector<Change>{*change} : std::vector<Change>{};
      },
      options);
}

}  // namespace whycache
