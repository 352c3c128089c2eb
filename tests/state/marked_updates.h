// Updates whose values describe themselves. A reader can check without further knowledge that a
// value is whole, belongs to its key, and is not older than the value it read before.
#pragma once

#include <atomic>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <cstring>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "base/bytes.h"
#include "base/hash.h"
#include "state/test_state.h"

namespace whycache::testing {

// The byte that fills the value of update `id`.
inline char marked_filling(UpdateId id, std::size_t filling_bytes) {
  return static_cast<char>('a' + (id + filling_bytes) % 26);
}

// Hash of the key, update id, hash of the id and of the filling's size: 8 bytes each. Then the
// filling.
inline std::string marked_value(std::string_view key, UpdateId id, std::size_t filling_bytes) {
  std::string value(24 + filling_bytes, marked_filling(id, filling_bytes));
  store_little_endian(value.data(), hash64(key));
  store_little_endian(value.data() + 8, id);
  store_little_endian(value.data() + 16,
                      hash64(std::string_view(value).substr(8, 8), filling_bytes));
  return value;
}

// Returns the id in a value of `key`, or nullopt if no update ever wrote that value.
inline std::optional<UpdateId> marked_id(std::string_view key, std::string_view value) {
  if (value.size() < 24 || load_little_endian<std::uint64_t>(value.data()) != hash64(key))
    return std::nullopt;
  const auto id = load_little_endian<std::uint64_t>(value.data() + 8);
  const std::string_view filling = value.substr(24);
  if (load_little_endian<std::uint64_t>(value.data() + 16) !=
      hash64(value.substr(8, 8), filling.size()))
    return std::nullopt;
  if (filling.empty()) return id;
  // All bytes of the filling equal the first. To compare takes a fraction of the time of a hash.
  if (filling.front() != marked_filling(id, filling.size()) ||
      std::memcmp(filling.data(), filling.data() + 1, filling.size() - 1) != 0)
    return std::nullopt;
  return id;
}

// The updates of a log, as a function of a seed. Update `id` is always the same, so a writer that
// takes over can continue. Each update sets the two keys of one pair. The rest is churn, an
// occasional large value or erasure of everything, and phases of growth.
class MarkedUpdates {
 public:
  static constexpr unsigned pair_count = 16;
  static constexpr unsigned large_count = 4;
  static constexpr unsigned growth_factor = 7919;

  MarkedUpdates(std::uint64_t seed, unsigned churn_count, unsigned growth_count)
      : seed_(seed), churn_count_(churn_count), growth_count_(growth_count) {}

  static std::string pair_key(unsigned pair, bool second) {
    return (second ? "zz/pair/" : "aa/pair/") + std::to_string(pair);
  }
  static std::string churn_key(unsigned number) { return "churn/" + std::to_string(number); }
  static std::string growth_key(unsigned number) {
    return "grown/" + std::to_string(number * growth_factor);
  }
  static std::string large_key(unsigned number) { return "large/" + std::to_string(number); }

  // Returns a number of its own for each key, less than key_count().
  std::size_t index_of(std::string_view key) const {
    std::size_t number = 0;
    std::from_chars(key.data() + key.rfind('/') + 1, key.data() + key.size(), number);
    switch (key.front()) {
      case 'a': return number;
      case 'z': return pair_count + number;
      case 'l': return 2 * pair_count + number;
      case 'c': return 2 * pair_count + large_count + number;
      default: return 2 * pair_count + large_count + churn_count_ + number / growth_factor;
    }
  }
  std::size_t key_count() const {
    return 2 * pair_count + large_count + churn_count_ + growth_count_;
  }

  // Returns one of the keys that updates may set.
  std::string random_key(std::mt19937_64& random) const {
    const auto number = static_cast<unsigned>(random() >> 32);
    switch (random() % 8) {
      case 0: return pair_key(number % pair_count, number & 1024);
      case 1: return large_key(number % large_count);
      case 2:
      case 3: return growth_key(number % growth_count_);
      default: return churn_key(number % churn_count_);
    }
  }

  struct Changes {
    bool erases_all = false;
    std::vector<TestChange> changes;
  };

  Changes changes_at(UpdateId id) const {
    std::mt19937_64 random(hash64({reinterpret_cast<const char*>(&id), sizeof id}, seed_));
    Changes made;
    const auto set = [&](std::string key, std::size_t bytes) {
      std::string value = marked_value(key, id, bytes);
      made.changes.push_back({std::move(key), std::move(value)});
    };
    made.erases_all = random() % 500 == 0;
    const auto pair = static_cast<unsigned>(id % pair_count);
    const std::size_t pair_bytes = random() % 100;
    set(pair_key(pair, false), pair_bytes);
    for (std::uint64_t i = 0, count = random() % 30; i < count; ++i) {
      std::string key = churn_key(static_cast<unsigned>(random() % churn_count_));
      if (random() % 4 == 0) {
        made.changes.push_back({std::move(key), std::nullopt});
      } else {
        set(std::move(key), random() % 4 == 0 ? random() % 1500 : random() % 100);
      }
    }
    if (random() % 40 == 0) {
      std::string key = large_key(static_cast<unsigned>(random() % large_count));
      if (random() % 3 == 0) {
        made.changes.push_back({std::move(key), std::nullopt});
      } else {
        set(std::move(key), random() % 600'000);
      }
    }
    // Many keys are added in one phase, and most are erased in a later one.
    const UpdateId phase = id % 200;
    if (phase < 40) {
      for (unsigned i = 0; i < growth_count_ / 40; ++i)
        set(growth_key(static_cast<unsigned>(phase) * (growth_count_ / 40) + i), random() % 16);
    } else if (phase >= 120 && phase < 160) {
      for (unsigned i = 0; i < growth_count_ / 40; ++i) {
        if (random() % 8 != 0)
          made.changes.push_back(
              {growth_key(static_cast<unsigned>(phase - 120) * (growth_count_ / 40) + i),
               std::nullopt});
      }
    }
    set(pair_key(pair, true), pair_bytes);
    return made;
  }

  UpdateId apply_next(StateWriter& writer) const {
    const Changes made = changes_at(writer.info().applied_id + 1);
    return TestState::apply(writer, made.changes, made.erases_all);
  }

 private:
  std::uint64_t seed_;
  unsigned churn_count_;
  unsigned growth_count_;
};

// Reads by every kind of call and reports faults. Each reader has one of its own.
class MarkedReader {
 public:
  MarkedReader(const State& state, const MarkedUpdates& updates, std::uint64_t seed)
      : state_(state), updates_(updates), random_(seed), newest_ids_(updates.key_count()) {}

  // Does one read of a random kind. Returns its fault, or "".
  std::string check_once() {
    const std::uint64_t kind = random_() % 1000;
    if (kind < 900) return check_get();
    if (kind < 940) return check_contains();
    if (kind < 970) return check_pair();
    if (kind < 998) return check_get_multi();
    return check_scan();
  }

  std::uint64_t checked_count() const { return checked_count_; }
  // To be called when the state was rebuilt from update 0.
  void reset() {
    newest_ids_.assign(updates_.key_count(), 0);
    applied_id_ = 0;
  }

 private:
  std::string check_get() {
    std::string key = updates_.random_key(random_);
    const UpdateId applied = state_.applied_id();
    const bool found = state_.get(key, value_);
    if (applied < applied_id_)
      return "applied id went back from " + std::to_string(applied_id_) + " to " +
             std::to_string(applied);
    applied_id_ = applied;
    return found ? check_value(key, value_, UINT64_MAX) : "";
  }

  std::string check_contains() {
    const auto pair = static_cast<unsigned>(random_() % MarkedUpdates::pair_count);
    static_cast<void>(state_.contains(MarkedUpdates::pair_key(pair, random_() % 2)));
    if (state_.contains("never set")) return "found a key that was never set";
    ++checked_count_;
    return "";
  }

  std::string check_pair() {
    const View view(state_.pin());
    for (int i = 0; i < 4; ++i) {
      const auto pair = static_cast<unsigned>(random_() % MarkedUpdates::pair_count);
      const std::string first = MarkedUpdates::pair_key(pair, false);
      const std::string second = MarkedUpdates::pair_key(pair, true);
      const auto first_value = view.get(first);
      const auto second_value = view.get(second);
      if (first_value.has_value() != second_value.has_value())
        return "half of a pair in view of " + std::to_string(view.id());
      if (!first_value) continue;
      if (std::string fault = check_value(first, *first_value, view.id()); !fault.empty())
        return fault;
      if (std::string fault = check_value(second, *second_value, view.id()); !fault.empty())
        return fault;
      if (marked_id(first, *first_value) != marked_id(second, *second_value))
        return "pair of two updates in view of " + std::to_string(view.id());
    }
    return "";
  }

  std::string check_get_multi() {
    std::vector<std::string> keys;
    for (int i = 0; i < 20; ++i) keys.push_back(updates_.random_key(random_));
    const auto pair = static_cast<unsigned>(random_() % MarkedUpdates::pair_count);
    keys.push_back(MarkedUpdates::pair_key(pair, false));
    keys.push_back(MarkedUpdates::pair_key(pair, true));
    std::string fault;
    std::optional<UpdateId> marks[22];
    const auto pin = state_.pin();
    pin->get_many(std::vector<std::string_view>(keys.begin(), keys.end()),
                  [&](std::size_t i, const LookupResult& result) {
                    marks[i] = marked_id(keys[i], result.value);
                    if (fault.empty()) fault = check_value(keys[i], result.value, UINT64_MAX);
                  });
    if (!fault.empty()) return fault;
    if (marks[20] != marks[21])
      return "pair of two updates in get_multi of " + std::to_string(pin->id());
    return "";
  }

  std::string check_scan() {
    const View view(state_.pin());
    std::string last;
    std::size_t count = 0;
    Digest digest;
    const bool all = random_() % 4 == 0;
    const KeyRange range = all ? KeyRange::all() : KeyRange::from(updates_.random_key(random_));
    for (const auto& [key, value] : view.items(range)) {
      if (count > 0 && key <= last)
        return "keys out of order in view of " + std::to_string(view.id());
      last = key;
      ++count;
      if (std::string fault = check_value(key, value, view.id()); !fault.empty()) return fault;
      if (all) add(digest, item_digest(key, value));
      if (!all && count == 200) return "";
    }
    if (all && count != view.size())
      return "scan found " + std::to_string(count) + " of " + std::to_string(view.size());
    if (all && digest != view.digest())
      return "scan does not match the digest in view of " + std::to_string(view.id());
    return "";
  }

  std::string check_value(std::string_view key, std::string_view value, UpdateId id_max) {
    ++checked_count_;
    const std::optional<UpdateId> id = marked_id(key, value);
    if (!id)
      return "torn or foreign value of " + std::string(key) +
             " bytes=" + std::to_string(value.size());
    if (*id > id_max)
      return "value of update " + std::to_string(*id) + " in view of " + std::to_string(id_max);
    UpdateId& seen = newest_ids_.at(updates_.index_of(key));
    if (*id < seen)
      return "value of " + std::string(key) + " went back from " + std::to_string(seen) + " to " +
             std::to_string(*id);
    seen = *id;
    return "";
  }

  const State& state_;
  const MarkedUpdates& updates_;
  std::mt19937_64 random_;
  std::string value_;
  std::vector<UpdateId> newest_ids_;  // by index_of() of the key
  UpdateId applied_id_ = 0;
  std::uint64_t checked_count_ = 0;
};

// Shared by a writer and its readers, which are threads or processes.
struct MarkedRun {
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> reads{0};
  // Readers that have done so many wait for the writer.
  std::atomic<std::uint64_t> reads_max{UINT64_MAX};
  std::atomic<std::uint64_t> updates{0};
};

// Reads until `run.stop` is set, and pauses after each 400 reads. Sets `run.stop` if there is a
// fault, and returns it; otherwise "".
inline std::string read_until_stopped(const State& state, const MarkedUpdates& updates,
                                      std::uint64_t seed, MarkedRun& run,
                                      std::chrono::microseconds pause = {}) {
  struct StopsOthers {
    MarkedRun& run;
    ~StopsOthers() { run.stop = true; }
  };
  const StopsOthers at_the_end{run};
  MarkedReader reader(state, updates, seed);
  std::uint64_t counted = 0;
  while (!run.stop.load(std::memory_order_relaxed)) {
    for (int i = 0; i < 400; ++i) {
      if (std::string fault = reader.check_once(); !fault.empty()) return fault;
    }
    run.reads += reader.checked_count() - counted;
    counted = reader.checked_count();
    if (pause.count() > 0) std::this_thread::sleep_for(pause);
    while (run.reads >= run.reads_max && !run.stop)
      std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
  return "";
}

}  // namespace whycache::testing
