// The model test: random operations on a fleet, compared with a std::map that holds the value of
// every key at every id, and with a replay of the whole log. Every read on every machine must
// return the value as of the machine's applied id, and a view must keep showing its id. At every
// comparison all machines have the same contents and the same digest.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cinttypes>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "base/hash.h"
#include "client/cache_internal.h"
#include "client/fleet.h"
#include "support/seed.h"
#include "update/update.h"

namespace whycache::testing {
namespace {

Digest digest_of(const Contents& items) {
  Digest digest;
  for (const auto& [key, value] : items) add(digest, item_digest(key, value));
  return digest;
}

void apply_change(Contents& items, const Change& change) {
  if (change.kind == Change::Kind::set) {
    items.insert_or_assign(std::string(change.key), std::string(change.value));
  } else {
    items.erase(std::string(change.key));
  }
}

// Returns the contents that the log yields, from its base on.
Contents replay(Log& log) {
  Contents items;
  UpdateId at = 0;
  BasePart part;
  log.read_base([&](std::string_view bytes) {
    decode_base_part(bytes, part);
    for (const Item& item : part.items) items.emplace_hint(items.end(), item.key, item.value);
    at = part.base;
    return true;
  });
  Update update;
  log.read(at + 1, ~UpdateId{0}, [&](UpdateId id, std::string_view bytes) {
    EXPECT_EQ(id, ++at);
    decode_update(bytes, update);
    if (update.erases_all) items.clear();
    for (const Change& change : update.changes) apply_change(items, change);
    return true;
  });
  return items;
}

// The value of every key at every id.
class KeyVersions {
 public:
  void change(UpdateId id, const std::string& key, std::optional<std::string> value) {
    auto& versions = keys_[key];
    if (!versions.empty() && versions.back().id == id) versions.pop_back();
    versions.push_back({id, std::move(value)});
  }
  void erase_all(UpdateId id) {
    for (auto& [key, versions] : keys_) versions.push_back({id, std::nullopt});
  }
  std::optional<std::string> get(const std::string& key, UpdateId id) const {
    const auto found = keys_.find(key);
    if (found == keys_.end()) return std::nullopt;
    const auto& versions = found->second;
    const auto after =
        std::upper_bound(versions.begin(), versions.end(), id,
                         [](UpdateId at, const Version& version) { return at < version.id; });
    return after == versions.begin() ? std::nullopt : std::prev(after)->value;
  }
  Contents at(UpdateId id) const {
    Contents items;
    for (const auto& [key, versions] : keys_) {
      if (auto value = get(key, id)) items.emplace_hint(items.end(), key, *value);
    }
    return items;
  }
  // Forgets ids before `id`; no later call may ask for them.
  void forget_before(UpdateId id) {
    for (auto& [key, versions] : keys_) {
      std::size_t first = 0;
      while (first + 1 < versions.size() && versions[first + 1].id <= id) ++first;
      versions.erase(versions.begin(), versions.begin() + static_cast<std::ptrdiff_t>(first));
    }
  }

 private:
  struct Version {
    UpdateId id;
    std::optional<std::string> value;
  };
  std::map<std::string, std::vector<Version>> keys_;
};

class Model {
 public:
  explicit Model(std::uint64_t seed) : random_(seed) {
    // Now and then an append fails before it acts, or acts and loses the answer. Sometimes another
    // machine then rewrites the history before the writer can check whether its update is there.
    script_->before_append = [this](UpdateId) {
      if (chance(1000)) throw chance(2) ? unavailable_error() : uncertain_error();
    };
    script_->after_append = [this](UpdateId) {
      if (in_concurrent_rewrite_ || !chance(1000)) return;
      ++lost_answer_count_;
      if (chance(4)) {
        in_concurrent_rewrite_ = true;
        machines_[(active_machine_ + 1 + random_() % 2) % machines_.size()]->rewrite_history();
        in_concurrent_rewrite_ = false;
        ++rewrites_;
      }
      throw uncertain_error();
    };
    script_->before_read = [this] {
      if (log_fails_ && chance(2000)) throw unavailable_error();
    };
    for (std::size_t i = 0; i < machines_.size(); ++i) open(i);
  }

  void run(std::uint64_t operations) {
    for (; operations_ < operations && !::testing::Test::HasFailure(); ++operations_) {
      step(operations_);
      if (operations_ % 4096 == 4095) compare_all();
      if (operations_ % 16384 == 16383) forget_old_versions();
    }
    compare_all();
    std::printf("operations=%" PRIu64 " head=%" PRIu64 " compared=%" PRIu64 " rewrites=%" PRIu64
                " reopened=%" PRIu64 " bootstrapped=%" PRIu64 " rebuilt=%" PRIu64
                " answers_lost=%" PRIu64 " uncertain=%" PRIu64 " of_these_written=%" PRIu64 "\n",
                operations_, head_, compared_, rewrites_, reopened_, bootstrapped_, rebuilt_,
                lost_answer_count_, uncertain_, uncertain_and_written_);
  }
  std::uint64_t uncertain_and_written() const { return uncertain_and_written_; }
  std::uint64_t uncertain_and_not_written() const { return uncertain_ - uncertain_and_written_; }

 private:
  struct HeldView {
    View view;
    UpdateId id;
  };

  bool chance(std::uint64_t one_in) { return random_() % one_in == 0; }
  std::string random_key() { return "key" + std::to_string(random_() % 300); }
  std::string random_value() {
    if (chance(500)) return incompressible_bytes(random_() % 20000, random_());
    if (chance(10)) return std::string();
    return std::string(random_() % 40, static_cast<char>('a' + random_() % 26)) +
           std::to_string(random_() % 1000);
  }
  std::size_t random_machine() { return random_() % machines_.size(); }
  static std::string name(std::size_t machine) { return "machine" + std::to_string(machine); }

  void open(std::size_t machine) {
    // Small updates, so that batches are split now and then.
    Options options;
    options.update_bytes_max = machine == 0 ? 32U << 10 : 1U << 20;
    machines_[machine] = std::make_unique<Cache>(fleet_.open(name(machine), script_, options));
  }
  void reopen(std::size_t machine) {
    const Counters counters = machines_[machine]->counters();
    rebuilt_ += counters.rebuilds_behind_base;
    ASSERT_EQ(counters.rebuilds_damaged, 0U);
    ASSERT_EQ(counters.rebuilds_diverged, 0U);
    ASSERT_EQ(counters.rebuilds_replaced, 0U);
    machines_[machine].reset();
    open(machine);
    ++reopened_;
  }

  // Calls `write` and returns true if its outcome is certain. Otherwise reads the log and returns
  // false. The log then has all changes that lead to after(contents), or none of them; a write that
  // was split into several updates may have some.
  template <typename Write>
  bool write_and_resolve(Cache& cache, const Write& write,
                         const std::function<Contents(Contents)>& after) {
    try {
      write();
      return true;
    } catch (const Error& error) {
      if (error.kind() != ErrorKind::uncertain) throw;
    }
    ++uncertain_;
    const Contents before = history_.at(head_);
    const Contents wanted = after(before);
    const std::unique_ptr<Log> log = fleet_.log();
    const Contents found = replay(*log);
    const UpdateId head = log->extent().head;
    EXPECT_GE(head, head_);
    if (head == head_) {
      EXPECT_EQ(found, before) << "operation " << operations_;
    } else {
      ++uncertain_and_written_;
    }
    const bool splits = &cache == machines_[0].get();
    if (head > head_ && !splits) {
      EXPECT_EQ(found, wanted) << "operation " << operations_;
      EXPECT_EQ(head, head_ + 1) << "operation " << operations_;
    }
    head_ = head;
    const auto value_in = [](const Contents& items, const std::string& key) {
      const auto item = items.find(key);
      return item == items.end() ? std::nullopt : std::optional(item->second);
    };
    Contents keys = before;
    keys.insert(wanted.begin(), wanted.end());
    keys.insert(found.begin(), found.end());
    for (const auto& [key, ignored] : keys) {
      const auto value = value_in(found, key);
      const auto value_before = value_in(before, key);
      EXPECT_TRUE(value == value_before || value == value_in(wanted, key))
          << "operation " << operations_ << " " << key;
      if (value != value_before) history_.change(head_, key, value);
    }
    EXPECT_EQ(cache.update(), head_) << "operation " << operations_;
    EXPECT_EQ(contents(cache), found) << "operation " << operations_;
    return false;
  }

  void write(Cache& cache, const std::vector<Change>& changes) {
    const UpdateId before = head_;
    UpdateId id = 0;
    const auto after = [&](Contents items) {
      for (const Change& change : changes) apply_change(items, change);
      return items;
    };
    if (!write_and_resolve(
            cache, [&] { id = cache.write(changes); }, after))
      return;
    ASSERT_EQ(cache.applied_id(), id) << "read your writes";
    if (changes.empty()) return;
    ASSERT_GT(id, before);
    head_ = id;
    // A split write has several updates. The comparison is at the last one, so it does not matter
    // which update has which change.
    for (const Change& change : changes) {
      history_.change(id, std::string(change.key),
                      change.kind == Change::Kind::set ? std::optional<std::string>(change.value)
                                                       : std::nullopt);
    }
  }

  void step(std::uint64_t number) {
    const std::size_t machine = random_machine();
    active_machine_ = machine;
    Cache& cache = *machines_[machine];
    const std::uint64_t draw = random_() % 1000;
    if (draw < 400) {
      const std::string key = random_key();
      const UpdateId id = cache.applied_id();
      ASSERT_EQ(cache.get(key), history_.get(key, id))
          << "operation " << number << " key " << key << " id " << id;
    } else if (draw < 450) {
      const std::string key = random_key();
      ASSERT_EQ(cache.contains(key), history_.get(key, cache.applied_id()).has_value())
          << "operation " << number;
    } else if (draw < 480) {
      std::vector<std::string> keys(random_() % 10);
      for (std::string& key : keys) key = random_key();
      const auto values = cache.get_multi(keys);
      for (std::size_t i = 0; i < keys.size(); ++i)
        ASSERT_EQ(values[i], history_.get(keys[i], cache.applied_id())) << "operation " << number;
    } else if (draw < 700) {
      const std::string key = random_key();
      const std::string value = random_value();
      write(cache, {Change::set(key, value)});
    } else if (draw < 800) {
      const std::string key = random_key();
      write(cache, {Change::erase(key)});
    } else if (draw < 850) {
      write_many(cache);
    } else if (draw < 970) {
      const UpdateId id = cache.update();
      ASSERT_EQ(id, head_) << "operation " << number;
    } else if (draw < 990) {
      hold_or_check_view(cache, number);
    } else {
      rare_step(machine, number);
    }
  }

  void write_many(Cache& cache) {
    std::vector<std::string> texts;
    const std::size_t count = chance(20) ? random_() % 300 : random_() % 8;
    texts.reserve(2 * count);
    std::vector<Change> changes;
    for (std::size_t i = 0; i < count; ++i) {
      texts.push_back(random_key());
      const std::string_view key = texts.back();
      if (chance(3)) {
        changes.push_back(Change::erase(key));
      } else {
        texts.push_back(random_value());
        changes.push_back(Change::set(key, texts.back()));
      }
    }
    write(cache, changes);
  }

  void hold_or_check_view(const Cache& cache, std::uint64_t number) {
    if (views_.size() < 4 && chance(2)) {
      View view = cache.view();
      const UpdateId id = view.id();
      views_.push_back({std::move(view), id});
      return;
    }
    if (views_.empty()) return;
    const std::size_t i = random_() % views_.size();
    const HeldView& held = views_[i];
    const std::string key = random_key();
    const auto value = held.view.get(key);
    ASSERT_EQ(value ? std::optional<std::string>(*value) : std::nullopt, history_.get(key, held.id))
        << "operation " << number;
    if (chance(8)) {
      ASSERT_EQ(contents(held.view), history_.at(held.id)) << "operation " << number;
      views_.erase(views_.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }

  void rare_step(std::size_t machine, std::uint64_t number) {
    Cache& cache = *machines_[machine];
    switch (random_() % 40) {
      case 0:
      case 1: return rewrite_up_to_random_limit(cache, number);
      case 2: return rewrite_without_sevens(cache);
      case 3:
        if (chance(5)) delete_all(cache);
        return;
      case 4:
      case 5:
      case 6: return reopen(machine);
      case 7: cache.delete_shared_state(); return reopen(machine);
      case 8: return bootstrap(machine);
      case 9: return compare_contents(cache, number);
      default: return compare_range(cache, number);
    }
  }

  void rewrite_up_to_random_limit(Cache& cache, std::uint64_t number) {
    const UpdateId limit = chance(2) || head_ == 0 ? 0 : 1 + random_() % head_;
    const UpdateId base = cache.rewrite_history({.limit = limit, .keep = {}});
    ASSERT_GE(base, limit) << "operation " << number;
    ++rewrites_;
  }

  // Erases the keys that end in 7.
  void rewrite_without_sevens(Cache& cache) {
    const auto keep = [](std::string_view key, std::string_view) { return key.back() != '7'; };
    cache.update();
    const Contents before = history_.at(head_);
    const auto after = [](Contents items) {
      std::erase_if(items, [](const auto& item) { return item.first.back() == '7'; });
      return items;
    };
    UpdateId base = 0;
    if (!write_and_resolve(
            cache, [&] { base = cache.rewrite_history({.limit = 0, .keep = keep}); }, after))
      return;
    head_ = std::max(head_, base);
    for (const auto& [key, value] : before) {
      if (key.back() == '7') history_.change(head_, key, std::nullopt);
    }
    ++rewrites_;
  }

  void delete_all(Cache& cache) {
    UpdateId base = 0;
    if (!write_and_resolve(
            cache, [&] { base = cache.delete_all_history(); },
            [](const Contents&) { return Contents(); }))
      return;
    head_ = base;
    history_.erase_all(head_);
  }

  void compare_contents(const Cache& cache, std::uint64_t number) {
    const UpdateId id = cache.applied_id();
    ASSERT_EQ(contents(cache), history_.at(id)) << "operation " << number;
    ASSERT_EQ(cache.digest(), digest_of(history_.at(id))) << "operation " << number;
  }

  void compare_range(const Cache& cache, std::uint64_t number) {
    const UpdateId id = cache.applied_id();
    const std::string begin = random_key();
    const std::string end = random_key();
    const Contents all = history_.at(id);
    const View view = cache.view();
    auto expected = all.lower_bound(begin);
    for (const auto [key, value] : view.items(KeyRange::between(begin, end))) {
      ASSERT_TRUE(expected != all.end() && expected->first == key && expected->second == value)
          << "operation " << number;
      ++expected;
    }
    ASSERT_TRUE(begin >= end || expected == all.lower_bound(end)) << "operation " << number;
  }

  // Replaces the state of machine `to` by a copy of the closed state of another machine.
  void bootstrap(std::size_t to) {
    const std::size_t from = (to + 1) % machines_.size();
    machines_[from]->close_shared_state();
    machines_[to]->delete_shared_state();
    machines_[to].reset();
    std::filesystem::copy_file(fleet_.state_path(name(from)), fleet_.state_path(name(to)),
                               std::filesystem::copy_options::overwrite_existing);
    open(to);
    reopen(from);
    ASSERT_EQ(machines_[to]->counters().rebuilds_damaged, 0U)
        << "a copy of a closed state is complete";
    ++bootstrapped_;
  }

  void compare_all() {
    const Contents expected = history_.at(head_);
    const Digest digest = digest_of(expected);
    log_fails_ = false;  // the test reads the log here, without retries
    ASSERT_EQ(replay(CacheInternal::log(*machines_[0])), expected)
        << "the log itself, operation " << operations_;
    log_fails_ = true;
    for (const auto& machine : machines_) {
      ASSERT_EQ(machine->update(), head_);
      ASSERT_EQ(contents(*machine), expected) << "operation " << operations_;
      ASSERT_EQ(machine->digest(), digest) << "operation " << operations_;
      ASSERT_EQ(machine->size(), expected.size());
    }
    ++compared_;
  }

  void forget_old_versions() {
    UpdateId oldest = head_;
    for (const auto& machine : machines_) oldest = std::min(oldest, machine->applied_id());
    for (const HeldView& held : views_) oldest = std::min(oldest, held.id);
    history_.forget_before(oldest);
  }

  std::mt19937_64 random_;
  std::shared_ptr<Script> script_ = std::make_shared<Script>();
  bool log_fails_ = true;  // now and then
  // A machine rewrites the history while another one writes.
  bool in_concurrent_rewrite_ = false;
  std::size_t active_machine_ = 0;  // the machine that runs the current step
  Fleet fleet_;
  std::array<std::unique_ptr<Cache>, 3> machines_;
  KeyVersions history_;
  std::vector<HeldView> views_;
  UpdateId head_ = 0;
  std::uint64_t operations_ = 0;
  std::uint64_t compared_ = 0;
  std::uint64_t rewrites_ = 0;
  std::uint64_t reopened_ = 0;
  std::uint64_t bootstrapped_ = 0;
  std::uint64_t rebuilt_ = 0;
  std::uint64_t lost_answer_count_ = 0;
  std::uint64_t uncertain_ = 0;  // writes with an uncertain outcome
  std::uint64_t uncertain_and_written_ = 0;
};

TEST(Model, random_operations_match_model_and_log_replay) {
  SCOPED_TRACE(seed_note());
  std::printf("%s\n", seed_note().c_str());
  Model(test_seed()).run(20'000);
}

TEST(ModelLong, million_random_operations_match_model_and_log_replay) {
  SCOPED_TRACE(seed_note());
  std::printf("%s\n", seed_note().c_str());
  std::uint64_t uncertain_and_written = 0;
  std::uint64_t uncertain_and_not_written = 0;
  for (std::uint64_t run = 0; run < 4 && !HasFailure(); ++run) {
    Model model(test_seed() + run);
    model.run(250'000);
    uncertain_and_written += model.uncertain_and_written();
    uncertain_and_not_written += model.uncertain_and_not_written();
  }
  EXPECT_GT(uncertain_and_written, 0U) << "both outcomes must occur";
  EXPECT_GT(uncertain_and_not_written, 0U);
}

}  // namespace
}  // namespace whycache::testing
