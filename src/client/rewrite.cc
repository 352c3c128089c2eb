#include "client/rewrite.h"

#include <whycache/view.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/clock.h"
#include "base/hash.h"
#include "client/follow.h"
#include "client/guards.h"
#include "client/log_page.h"
#include "client/rebuild.h"
#include "client/write_outcome.h"
#include "state/read/pin.h"
#include "state/write/builder.h"

namespace whycache {
namespace {

constexpr std::size_t part_bytes = std::size_t{1} << 20;
// Notes of updates and bases for which the caller has none.
constexpr char note_of_rewrite[] = "rewrite_history";
constexpr char note_of_clear[] = "delete_all_history";

using SharedPin = std::shared_ptr<const detail::Pin>;

BaseInfo base_info(const detail::Pin& pin) {
  const PublishedBlock& block = pin.block();
  return {block.id, block.chain, block.item_count, {block.digest_low, block.digest_high}};
}

// Encodes the items of a pin as the parts of a base, one after the other.
class BasePartSource {
 public:
  BasePartSource(const SharedPin& pin, const BaseInfo& info, const BaseAuthorship& authorship)
      : info_(info),
        encoder_(info.base, authorship),
        items_(View(pin).items()),
        item_(items_.begin()) {}

  std::optional<std::string_view> next() {
    if (ended_) return std::nullopt;
    for (; item_ != std::default_sentinel; ++item_) {
      const Item item = *item_;
      if (!encoder_.add(item, part_bytes)) return encoder_.finish(std::nullopt);
      add(digest_, item_digest(item.key, item.value));
      ++item_count_;
    }
    if (item_count_ != info_.item_count || digest_ != info_.digest) {
      throw Error(ErrorKind::corrupt, "state is damaged, history is not rewritten from it: items=" +
                                          std::to_string(item_count_) +
                                          " expected=" + std::to_string(info_.item_count) +
                                          " digest=" + to_string(digest_) +
                                          " expected=" + to_string(info_.digest) +
                                          " (delete the state: it is then rebuilt)");
    }
    ended_ = true;
    return encoder_.finish(info_);
  }

 private:
  BaseInfo info_;
  BasePartEncoder encoder_;
  Items items_;
  Items::Iterator item_;
  std::uint64_t item_count_ = 0;
  Digest digest_;
  bool ended_ = false;
};

// The single part of a base that has at most one small item.
class SmallBasePartSource {
 public:
  SmallBasePartSource(const BaseInfo& info, const BaseAuthorship& authorship,
                      const std::optional<Item>& item)
      : info_(info), encoder_(info.base, authorship) {
    if (item) encoder_.add(*item, part_bytes);
  }

  std::optional<std::string_view> next() {
    if (std::exchange(ended_, true)) return std::nullopt;
    return encoder_.finish(info_);
  }

 private:
  BaseInfo info_;
  BasePartEncoder encoder_;
  bool ended_ = false;
};

BaseAuthorship base_authorship(const Session& session, const std::string& note,
                               const char* otherwise) {
  return {.time_us = wall_time_us(),
          .writer_name = session.writer_name(),
          .note = note.empty() ? otherwise : note};
}

// Throws Error(invalid) if the note cannot be stored, before anything is written.
void check_note(const std::string& note) {
  if (!note.empty()) BasePartEncoder(1, {.time_us = 0, .writer_name = {}, .note = note});
}

// Throws what the log throws if this process may not rewrite it.
void check_may_rewrite(Session& session, Backoff& backoff) {
  before_write(
      [&] { session.call_log_with_retries(backoff, [](Log& log) { log.check_may_rewrite(); }); });
}

// The base has to end with an update that the log has. The log may have been restored, or may have
// lost its tail in a failover, since this machine read it. Rewriting from a history that the log
// has lost would overwrite updates written since.
void check_log_contains(Log& log, const LogPosition& position) {
  const LogPage page = read_page(log, position.id, position.id);
  std::string why;
  const HistoryMatch match = compare_history(page, position, why);
  if (match == HistoryMatch::matches || match == HistoryMatch::behind_base) return;
  throw LogError(
      ErrorKind::unavailable,
      "log is no longer the one that this state was built from, history is not rewritten: log=" +
          log.name() + ' ' + why + " (update, then retry)",
      0, /*gave_up=*/true);
}

// A rewrite takes as long as it has parts to write and updates to delete. It therefore has no
// deadline as a whole: each of its statements has the log's own.
bool rewrite_without_deadline(Log& log, const Backoff& backoff, UpdateId base,
                              std::uint64_t base_chain, const Log::NextPart& next_part) {
  const Deadline only_stops(std::chrono::milliseconds::max(), backoff.deadline().stop());
  const CallLimit limit(only_stops);
  return log.rewrite(base, base_chain, next_part);
}

// Makes `position` the log's base. Calls `begin_parts` for each attempt. Returns the base that the
// log then has: this one, or a later one of another writer.
template <typename BeginParts>
UpdateId write_base(Session& session, const LogPosition& position, Backoff& backoff,
                    const BeginParts& begin_parts) {
  bool in_doubt = false;
  std::uint64_t part_count_max = 0;  // that the log took in one attempt
  const auto attempt = [&](Log& log) {
    check_log_contains(log, position);
    auto parts = begin_parts();
    std::uint64_t part_count = 0;
    const auto next_part = [&] {
      if (part_count > part_count_max) {
        part_count_max = part_count;
        backoff.reset();
      }
      ++part_count;
      return parts.next();
    };
    try {
      return rewrite_without_deadline(log, backoff, position.id, position.chain, next_part);
    } catch (const Error& error) {
      in_doubt = in_doubt || error.kind() == ErrorKind::uncertain;
      throw;
    } catch (...) {
      in_doubt = true;
      throw;
    }
  };
  try {
    if (session.call_log_with_retries(backoff, attempt)) return position.id;
    return session.call_log_with_retries(backoff, [](Log& log) { return log.extent(); }).base;
  } catch (const Error& error) {
    if (!in_doubt || error.kind() == ErrorKind::uncertain) throw;
    throw Error(ErrorKind::uncertain,
                "history may or may not have been rewritten: base=" + std::to_string(position.id) +
                    ": " + to_string(error.kind()) + ": " + error.what(),
                error.system_error());
  }
}

UpdateId write_entries(Session& session, const SharedPin& pin, const std::string& note,
                       Backoff& backoff) {
  const BaseInfo info = base_info(*pin);
  const LogPosition position{pin->mapping().header().fixed.log_uuid, info.base, info.chain};
  const BaseAuthorship authorship = base_authorship(session, note, note_of_rewrite);
  return write_base(session, position, backoff,
                    [&] { return BasePartSource(pin, info, authorship); });
}

// The error of a rewrite whose keys are erased in the log already.
Error error_after_erasing(const Error& error, UpdateId id) {
  const bool is_in_doubt = error.kind() == ErrorKind::uncertain;
  return Error(
      ErrorKind::uncertain,
      std::string(is_in_doubt
                      ? "keys are erased, and the history may or may not have been rewritten"
                      : "keys are erased, but the history was not rewritten") +
          ": last_id=" + std::to_string(id) + ": " + to_string(error.kind()) + ": " +
          message_of_later_update(error),
      error.system_error());
}

// Deletes what interrupted rewrites left behind. `limit` is at or below the base, so the log does
// nothing else. If it no longer is, the log was just replaced; then throws and changes nothing.
UpdateId remove_rewrite_leftovers(Session& session, UpdateId limit, Backoff& backoff) {
  session.call_log_with_retries(backoff, [&](Log& log) {
    return rewrite_without_deadline(
        log, backoff, limit, 0, []() -> std::optional<std::string_view> {
          throw Error(ErrorKind::invalid,
                      "log was replaced while its history was rewritten, nothing was changed "
                      "(update, then retry)");
        });
  });
  return session.call_log_with_retries(backoff, [](Log& log) { return log.extent(); }).base;
}

using Keep = std::function<bool(std::string_view, std::string_view)>;

bool keeps(const Session& session, const Keep& keep, std::string_view key, std::string_view value) {
  if (key == log_guards_key) return true;
  const CallbackScope scope(session, "`keep`");
  return keep(key, value);
}

// Returns keys that `keep` refuses, from `begin` on, as many as surely fit into one update.
// Advances `begin` to the next key to visit, or clears it at the end.
std::vector<std::string> collect_refused_keys(const Session& session, const Keep& keep,
                                              std::string& begin) {
  std::vector<std::string> refused;
  std::size_t bytes = 0;
  const View view(session.state.pin());
  for (const auto& [key, value] : view.items(KeyRange::from(begin))) {
    begin = key;
    if (keeps(session, keep, key, value)) continue;
    if (bytes + key.size() > session.options.update_bytes_max / 4) return refused;
    bytes += key.size() + 16;
    refused.emplace_back(key);
  }
  begin.clear();
  return refused;
}

// Checks the guards against the number of keys that `keep` would erase, before any is erased.
void check_keep_guards(const Session& session, const Keep& keep) {
  if (!has_guards(session.options.guards) && !has_log_guards(session.state)) return;
  const View view(session.state.pin());
  std::uint64_t erased = 0;
  for (const auto& [key, value] : view) erased += keeps(session, keep, key, value) ? 0 : 1;
  check_may_erase(session.options.guards, view, erased);
}

// Erases the keys that `keep` refuses, by ordinary updates. Asks `keep` again about a key that
// another writer has set meanwhile. Sets `erased_by` to the last of these updates.
void erase_refused_keys(Session& session, Appender& appender, const RewriteOptions& options,
                        Backoff& backoff, UpdateId& erased_by) {
  const Keep& keep = options.keep;
  std::string begin;
  std::uint64_t erased_before = 0;
  do {
    std::vector<std::string> keys = collect_refused_keys(session, keep, begin);
    session.throw_if_stopped(backoff);
    backoff.reset();
    const std::optional<LogPosition> erased = appender.append_prepared(
        [&](const SharedPin& pin) -> std::optional<Draft> {
          const View view(pin);
          std::erase_if(keys, [&](const std::string& key) {
            const std::optional<std::string_view> value = view.get(key);
            return !value || keeps(session, keep, key, *value);
          });
          if (keys.empty()) return std::nullopt;
          check_log_guards(view, keys.size(), erased_before);
          Draft draft(session.authorship(options.note.empty() ? note_of_rewrite : options.note));
          for (const std::string& key : keys)
            draft.add(Change::erase(key), session.options.update_bytes_max);
          return draft;
        },
        backoff);
    if (erased) {
      erased_by = erased->id;
      erased_before += keys.size();
    }
  } while (!begin.empty());
}

UpdateId rewrite(Session& session, Appender& appender, const RewriteOptions& options,
                 UpdateId& erased_by) {
  Backoff backoff(session.options.deadline, options.stop);
  const UpdateId head = before_write([&] {
    session.throw_if_stopped(backoff);
    return follow(session, backoff);
  });
  if (options.limit > head) {
    throw Error(ErrorKind::invalid, "cannot rewrite history beyond the head of the log: limit=" +
                                        std::to_string(options.limit) +
                                        " head=" + std::to_string(head));
  }
  if (options.keep) {
    check_keep_guards(session, options.keep);
    check_may_rewrite(session, backoff);
    erase_refused_keys(session, appender, options, backoff, erased_by);
  }
  backoff.reset();
  before_write([&] { session.throw_if_stopped(backoff); });

  const SharedPin pin = session.state.pin();
  const UpdateId limit = options.limit == 0 ? pin->id() : options.limit;
  const Extent extent = before_write([&] {
    return session.call_log_with_retries(backoff, [](Log& log) { return log.extent(); });
  });
  const UpdateId base = extent.base;
  if (limit <= base) return base == 0 ? base : remove_rewrite_leftovers(session, limit, backoff);
  if (limit == pin->id()) return write_entries(session, pin, options.note, backoff);

  const std::unique_ptr<StateBuilder> builder = build_as_of(session, limit, backoff);
  if (builder) return write_entries(session, builder->pin(), options.note, backoff);
  return session.call_log_with_retries(backoff, [](Log& log) { return log.extent(); }).base;
}

}  // namespace

UpdateId rewrite_history(Session& session, Appender& appender, const RewriteOptions& options) {
  check_note(options.note);
  UpdateId erased_by = 0;
  try {
    return rewrite(session, appender, options, erased_by);
  } catch (const Error& error) {
    if (erased_by == 0) throw;
    throw error_after_erasing(error, erased_by);
  }
}

UpdateId delete_all_history(Session& session, Appender& appender, const WriteOptions& options) {
  Backoff backoff = session.backoff_for(options);
  check_may_rewrite(session, backoff);
  std::optional<std::string> guards;
  const std::optional<LogPosition> position = appender.append_prepared(
      [&](const SharedPin& pin) {
        const View view(pin);
        check_may_erase_all(session.options.guards, view);
        Draft draft(session.authorship(options.note.empty() ? note_of_clear : options.note),
                    /*erases_all=*/true);
        guards.reset();
        if (view.contains(log_guards_key)) {
          guards = encode_log_guards(log_guards_of(view));
          draft.add(Change::set(log_guards_key, *guards), session.options.update_bytes_max);
        }
        return std::optional(std::move(draft));
      },
      backoff);
  BaseInfo info{.base = position->id, .chain = position->chain, .item_count = 0, .digest = {}};
  std::optional<Item> kept;
  if (guards) {
    kept = Item{log_guards_key, *guards};
    info.item_count = 1;
    add(info.digest, item_digest(kept->key, kept->value));
  }
  const BaseAuthorship authorship = base_authorship(session, options.note, note_of_clear);
  backoff.reset();
  try {
    return write_base(session, *position, backoff,
                      [&] { return SmallBasePartSource(info, authorship, kept); });
  } catch (const Error& error) {
    throw error_after_erasing(error, position->id);
  }
}

}  // namespace whycache
