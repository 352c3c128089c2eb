#include "client/rewrite.h"

#include <whycache/view.h>

#include <algorithm>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/hash.h"
#include "client/follow.h"
#include "client/guards.h"
#include "client/rebuild.h"
#include "state/pin.h"

namespace whycache {
namespace {

constexpr std::size_t part_bytes = std::size_t{1} << 20;

using SharedPin = std::shared_ptr<const detail::Pin>;

BaseInfo base_info(const detail::Pin& pin) {
  const PublishedBlock& block = pin.block();
  return {block.id, block.chain, block.item_count, {block.digest_low, block.digest_high}};
}

// Turns the entries that a pin holds into the parts of a base, one after the other.
class Parts {
 public:
  Parts(const SharedPin& pin, const BaseInfo& info)
      : info_(info), encoder_(info.base), item_(View(pin).items().begin()) {}

  std::optional<std::string_view> next() {
    if (ended_) return std::nullopt;
    for (; item_ != std::default_sentinel; ++item_) {
      const Item item = *item_;
      if (!encoder_.add(item, part_bytes)) return encoder_.finish(std::nullopt);
      add(digest_, item_digest(item.key, item.value));
      ++item_count_;
    }
    if (item_count_ != info_.item_count || digest_ != info_.digest) {
      throw Error(ErrorKind::corrupt,
                  "state is damaged, history is not rewritten from it: items=" + std::to_string(item_count_) +
                      " expected=" + std::to_string(info_.item_count) + " digest=" + to_string(digest_) +
                      " expected=" + to_string(info_.digest) + " (delete the state: it is then built anew)");
    }
    ended_ = true;
    return encoder_.finish(info_);
  }

 private:
  BaseInfo info_;
  BasePartEncoder encoder_;
  Items::Iterator item_;
  std::uint64_t item_count_ = 0;
  Digest digest_;
  bool ended_ = false;
};

// The one part of a base without entries.
class NoParts {
 public:
  explicit NoParts(const BaseInfo& info) : info_(info), encoder_(info.base) {}

  std::optional<std::string_view> next() {
    if (std::exchange(ended_, true)) return std::nullopt;
    return encoder_.finish(info_);
  }

 private:
  BaseInfo info_;
  BasePartEncoder encoder_;
  bool ended_ = false;
};

// Makes it the log's base. `begin_parts` is called for each attempt. Returns the base the log has then: this one, or
// one beyond it that somebody else made.
template <typename BeginParts>
UpdateId write_base(Link& link, const BaseInfo& info, Patience& patience, const BeginParts& begin_parts) {
  const bool switched = link.ask_patiently(patience, [&](Log& log) {
    auto parts = begin_parts();
    return log.rewrite(info.base, info.chain, [&] { return parts.next(); });
  });
  if (switched) return info.base;
  return link.ask_patiently(patience, [](Log& log) { return log.extent(); }).base;
}

UpdateId write_entries(Link& link, const SharedPin& pin, Patience& patience) {
  const BaseInfo info = base_info(*pin);
  return write_base(link, info, patience, [&] { return Parts(pin, info); });
}

// Deletes what rewrites that did not come to their end left behind. `limit` is at or below the base, so that nothing
// else is done; if it no longer is, the log was replaced just now, and nothing at all.
UpdateId clean_up(Link& link, UpdateId limit, Patience& patience) {
  link.ask_patiently(patience, [&](Log& log) {
    return log.rewrite(limit, 0, []() -> std::optional<std::string_view> {
      throw Error(ErrorKind::invalid,
                  "log was replaced while its history was rewritten, nothing was changed (update, then retry)");
    });
  });
  return link.ask_patiently(patience, [](Log& log) { return log.extent(); }).base;
}

using Keep = std::function<bool(std::string_view, std::string_view)>;

// Keys that `keep` refuses, as many as surely fit into one update, from `begin` on. `begin` moves to where to go on.
std::vector<std::string> refused_keys(const Link& link, const Keep& keep, std::string& begin) {
  std::vector<std::string> refused;
  std::size_t bytes = 0;
  const View view(link.state.pin());
  for (const auto& [key, value] : view.items(KeyRange::from(begin))) {
    begin = key;
    if (keep(key, value)) continue;
    if (bytes + key.size() > link.options.update_bytes_max / 4) return refused;
    bytes += key.size() + 16;
    refused.emplace_back(key);
  }
  begin.clear();
  return refused;
}

// Counts what `keep` would erase, before any of it is.
void check_keep(const Link& link, const Keep& keep) {
  if (!limit_erasing(link.options.guards)) return;
  const View view(link.state.pin());
  std::uint64_t erased = 0;
  for (const auto& [key, value] : view) erased += keep(key, value) ? 0 : 1;
  check_erasing(link.options.guards, erased, view.size());
}

// Erases what `keep` refuses by updates like any others. What somebody set meanwhile is looked at again.
void erase_refused(Link& link, Commit& commit, const Keep& keep, Patience& patience) {
  std::string begin;
  do {
    std::vector<std::string> keys = refused_keys(link, keep, begin);
    patience.renew();
    commit.write_prepared(
        [&](const SharedPin& pin) -> std::optional<Draft> {
          const View view(pin);
          std::erase_if(keys, [&](const std::string& key) {
            const std::optional<std::string_view> value = view.get(key);
            return !value || keep(key, *value);
          });
          if (keys.empty()) return std::nullopt;
          Draft draft(link.authorship("rewrite_history"));
          for (const std::string& key : keys) draft.add(Change::erase(key), link.options.update_bytes_max);
          return draft;
        },
        patience);
  } while (!begin.empty());
}

}  // namespace

UpdateId rewrite_history(Link& link, Commit& commit, const RewriteOptions& options) {
  Patience patience(link.options.deadline);
  const UpdateId head = follow(link, patience);
  if (options.limit > head) {
    throw Error(ErrorKind::invalid, "cannot rewrite history beyond the head of the log: limit=" +
                                        std::to_string(options.limit) + " head=" + std::to_string(head));
  }
  if (options.keep) check_keep(link, options.keep);
  if (options.keep) erase_refused(link, commit, options.keep, patience);
  patience.renew();

  const SharedPin pin = link.state.pin();
  const UpdateId limit = options.limit == 0 ? pin->id() : options.limit;
  const UpdateId base = link.ask_patiently(patience, [](Log& log) { return log.extent(); }).base;
  if (limit <= base) return base == 0 ? base : clean_up(link, limit, patience);
  if (limit == pin->id()) return write_entries(link, pin, patience);

  const std::unique_ptr<StateBuilder> builder = build_as_of(link, limit, patience);
  if (builder) return write_entries(link, builder->pin(), patience);
  return link.ask_patiently(patience, [](Log& log) { return log.extent(); }).base;
}

UpdateId delete_all_history(Link& link, Commit& commit) {
  Patience patience(link.options.deadline);
  const std::optional<Place> place = commit.write_prepared(
      [&](const SharedPin& pin) {
        check_erasing(link.options.guards, pin->block().item_count, pin->block().item_count);
        return std::optional(Draft(link.authorship("delete_all_history"), /*erases_all=*/true));
      },
      patience);
  const BaseInfo nothing{.base = place->id, .chain = place->chain, .item_count = 0, .digest = {}};
  patience.renew();
  return write_base(link, nothing, patience, [&] { return NoParts(nothing); });
}

}  // namespace whycache
