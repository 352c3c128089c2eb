#include "histories/checker.h"

#include <algorithm>
#include <iterator>
#include <unordered_map>

#include "base/hash.h"

namespace whycache::testing {
namespace {

using Value = std::optional<std::string>;

std::string display(const Value& value) { return value ? *value : "(absent)"; }

// The updates of the log, applied in order: every key at every id.
class Replay {
 public:
  explicit Replay(const std::vector<ArchivedUpdate>& archive) {
    Digest digest;
    digests_.push_back(digest);
    for (const ArchivedUpdate& update : archive) {
      for (const auto& [key, value] : update.changes) {
        std::vector<Version>& versions = versions_[key];
        if (!versions.empty() && versions.back().value)
          subtract(digest, item_digest(key, *versions.back().value));
        if (value) add(digest, item_digest(key, *value));
        versions.push_back({update.id, value});
      }
      digests_.push_back(digest);
    }
  }

  UpdateId head() const { return digests_.size() - 1; }
  const Digest& digest_at(UpdateId id) const { return digests_[id]; }
  bool had_within(const std::string& key, const Value& value, UpdateId first, UpdateId last) const {
    const auto found = versions_.find(key);
    if (found == versions_.end()) return !value;
    const std::vector<Version>& versions = found->second;
    const auto beyond = [](UpdateId id, const Version& version) { return id < version.id; };
    auto version = std::upper_bound(versions.begin(), versions.end(), first, beyond);
    if (version == versions.begin()) {
      if (!value) return true;
    } else {
      --version;
    }
    for (; version != versions.end() && version->id <= last; ++version) {
      if (version->value == value && !is_overwritten_within_update(versions, version)) return true;
    }
    return false;
  }
  Value value_at(const std::string& key, UpdateId id) const {
    const auto found = versions_.find(key);
    if (found == versions_.end()) return std::nullopt;
    const auto beyond = [](UpdateId at, const Version& version) { return at < version.id; };
    const auto version = std::upper_bound(found->second.begin(), found->second.end(), id, beyond);
    return version == found->second.begin() ? std::nullopt : std::prev(version)->value;
  }

 private:
  struct Version {
    UpdateId id;
    Value value;
  };
  // Readers see only the last of several changes to a key in one update.
  static bool is_overwritten_within_update(const std::vector<Version>& versions,
                                           std::vector<Version>::const_iterator version) {
    return std::next(version) != versions.end() && std::next(version)->id == version->id;
  }

  std::unordered_map<std::string, std::vector<Version>> versions_;
  std::vector<Digest> digests_;
};

class Checker {
 public:
  Checker(const std::vector<ArchivedUpdate>& archive, const std::vector<History>& histories)
      : archive_(archive), histories_(histories) {}

  Verdict run() {
    verdict_.updates = archive_.size();
    for (std::size_t i = 0; i < archive_.size(); ++i) {
      if (archive_[i].id == i + 1) continue;
      report(Violation::log_gap,
             "id=" + std::to_string(archive_[i].id) + " expected=" + std::to_string(i + 1));
      return verdict_;  // no other check makes sense
    }
    collect_tokens();
    const Replay replay(archive_);
    for (const History& history : histories_) {
      for (const Write& write : history.writes) check_write(history, write, replay);
      for (const Observation& seen : history.observations) check_observation(history, seen, replay);
      for (const std::string& message : history.unexpected)
        report(Violation::unexpected, history.process + ": " + message);
      if (!std::is_sorted(history.ids.begin(), history.ids.end())) {
        const auto backwards = std::is_sorted_until(history.ids.begin(), history.ids.end());
        report(Violation::process_went_backwards,
               history.process + ": from=" + std::to_string(*std::prev(backwards)) +
                   " to=" + std::to_string(*backwards));
      }
    }
    for (const auto& [token, updates] : tokens_) {
      if (!known_tokens_.contains(token)) report(Violation::phantom_write, "token=" + token);
    }
    check_real_time_order();
    return verdict_;
  }

 private:
  void report(Violation violation, const std::string& where) {
    if (++verdict_.violations[violation] <= 5)
      verdict_.examples.push_back(to_string(violation) + (": " + where));
  }

  // --- Writes. ---

  void collect_tokens() {
    for (const ArchivedUpdate& update : archive_) {
      for (const auto& [key, value] : update.changes) {
        if (!value) continue;
        std::vector<UpdateId>& ids = tokens_[std::string(token_of(*value))];
        if (ids.empty() || ids.back() != update.id) ids.push_back(update.id);
      }
    }
  }

  // Returns the ids at which the attempt is in the log.
  const std::vector<UpdateId>& ids_of(const Attempt& attempt) {
    static const std::vector<UpdateId> no_ids;
    known_tokens_.emplace(attempt.token, true);
    const auto found = tokens_.find(attempt.token);
    return found == tokens_.end() ? no_ids : found->second;
  }

  void check_write(const History& history, const Write& write, const Replay& replay) {
    const std::string name = history.process + " write " + std::to_string(write.sequence);
    std::size_t times = 0;
    UpdateId id = 0;
    const Attempt* in_log = nullptr;
    for (const Attempt& attempt : write.attempts) {
      const std::vector<UpdateId>& ids = ids_of(attempt);
      times += ids.size();
      if (ids.empty()) continue;
      id = ids.front();
      in_log = &attempt;
    }
    ++verdict_.writes;
    if (write.attempts.size() > 1) ++verdict_.transactions_retried;
    if (times > 1) report(Violation::duplicated, name + ": last_id=" + std::to_string(id));
    switch (write.answer) {
      case Write::Answer::acknowledged:
        ++verdict_.acknowledged;
        if (in_log == nullptr || id != write.id || in_log != &write.attempts.back()) {
          report(Violation::lost, name + ": acknowledged_id=" + std::to_string(write.id) +
                                      " found_id=" + std::to_string(id));
        }
        if (!write.attempts.empty() && !write.attempts.back().reads.empty())
          ++verdict_.transactions;
        break;
      case Write::Answer::nothing_written:
        ++verdict_.nothing_written;
        if (in_log != nullptr)
          report(Violation::written_despite_failure, name + ": id=" + std::to_string(id));
        break;
      case Write::Answer::uncertain: ++verdict_.uncertain; break;
      case Write::Answer::none: ++verdict_.unanswered; break;
    }
    if (in_log == nullptr) return;
    if (write.answer == Write::Answer::uncertain || write.answer == Write::Answer::none) {
      ++verdict_.uncertain_or_unanswered_in_log;
    }
    check_atomicity(name, *in_log, id);
    for (const auto& [key, value] : in_log->reads) {
      const Value before = replay.value_at(key, id - 1);
      if (before == value) continue;
      report(Violation::not_serializable, name + ": id=" + std::to_string(id) + " key=" + key +
                                              " read=" + display(value) +
                                              " before_the_update=" + display(before));
    }
  }

  void check_atomicity(const std::string& name, const Attempt& attempt, UpdateId id) {
    const KeyValues& changes = archive_[id - 1].changes;
    for (const auto& change : attempt.changes) {
      if (std::find(changes.begin(), changes.end(), change) == changes.end()) {
        report(Violation::torn, name + ": id=" + std::to_string(id) + " misses=" + change.first);
      }
    }
  }

  // --- Reads. ---

  void check_observation(const History& history, const Observation& seen, const Replay& replay) {
    const std::string name = history.process + " read at " + std::to_string(seen.last);
    ++verdict_.reads;
    if (seen.at_least > 0) {
      ++verdict_.tokens;
      if (seen.first < seen.at_least)
        report(Violation::token_not_seen, name + ": token=" + std::to_string(seen.at_least));
    }
    if (seen.last > replay.head()) {
      report(Violation::wrong_value, name + ": head=" + std::to_string(replay.head()));
      return;
    }
    if (seen.digest) {
      ++verdict_.digests;
      if (*seen.digest != replay.digest_at(seen.last)) {
        report(Violation::wrong_digest, name + ": digest=" + to_string(*seen.digest) +
                                            " expected=" + to_string(replay.digest_at(seen.last)));
      }
    }
    for (const auto& [key, value] : seen.key_values) {
      ++verdict_.values;
      if (replay.had_within(key, value, seen.first, seen.last)) continue;
      report(Violation::wrong_value, name + ": first=" + std::to_string(seen.first) +
                                         " key=" + key + " value=" + display(value) +
                                         " expected=" + display(replay.value_at(key, seen.last)));
    }
  }

  // --- Order between processes, by their common clock. ---

  struct IdInterval {
    std::int64_t began_ns;
    std::int64_t ended_ns;
    UpdateId least;     // the first reported id
    UpdateId greatest;  // the last reported id
    bool is_write;
    const History* history;
  };

  void check_real_time_order() {
    std::vector<IdInterval> all;
    std::map<std::string, std::vector<IdInterval>> of_machines;
    for (const History& history : histories_) {
      for (const Write& write : history.writes) {
        if (write.answer != Write::Answer::acknowledged) continue;
        all.push_back({write.began_ns, write.ended_ns, write.id, write.id, true, &history});
        of_machines[history.machine].push_back(all.back());
      }
      for (const Observation& seen : history.observations) {
        all.push_back({seen.began_ns, seen.ended_ns, seen.first, seen.last, false, &history});
        of_machines[history.machine].push_back(all.back());
      }
    }
    const auto check_order = [this](std::vector<IdInterval> by_begin, const auto& is_violated,
                                    Violation violation) {
      std::vector<IdInterval> by_end = by_begin;
      std::sort(by_begin.begin(), by_begin.end(),
                [](const IdInterval& a, const IdInterval& b) { return a.began_ns < b.began_ns; });
      std::sort(by_end.begin(), by_end.end(),
                [](const IdInterval& a, const IdInterval& b) { return a.ended_ns < b.ended_ns; });
      auto ended = by_end.begin();
      UpdateId seen = 0;
      for (const IdInterval& each : by_begin) {
        for (; ended != by_end.end() && ended->ended_ns < each.began_ns; ++ended)
          seen = std::max(seen, ended->greatest);
        if (is_violated(each, seen)) {
          report(violation, each.history->process + ": id=" + std::to_string(each.least) +
                                " seen_before=" + std::to_string(seen));
        }
      }
    };
    check_order(
        all,
        [](const IdInterval& each, UpdateId seen) { return each.is_write && each.least <= seen; },
        Violation::out_of_order);
    for (const auto& [machine, intervals] : of_machines) {
      check_order(
          intervals,
          [](const IdInterval& each, UpdateId seen) { return !each.is_write && each.least < seen; },
          Violation::machine_went_backwards);
    }
  }

  const std::vector<ArchivedUpdate>& archive_;
  const std::vector<History>& histories_;
  std::unordered_map<std::string, std::vector<UpdateId>> tokens_;
  std::unordered_map<std::string, bool> known_tokens_;
  Verdict verdict_;
};

}  // namespace

const char* to_string(Violation violation) {
  switch (violation) {
    case Violation::log_gap: return "log_gap";
    case Violation::phantom_write: return "phantom_write";
    case Violation::lost: return "lost";
    case Violation::duplicated: return "duplicated";
    case Violation::written_despite_failure: return "written_despite_failure";
    case Violation::torn: return "torn";
    case Violation::not_serializable: return "not_serializable";
    case Violation::out_of_order: return "out_of_order";
    case Violation::process_went_backwards: return "process_went_backwards";
    case Violation::machine_went_backwards: return "machine_went_backwards";
    case Violation::token_not_seen: return "token_not_seen";
    case Violation::wrong_value: return "wrong_value";
    case Violation::wrong_digest: return "wrong_digest";
    case Violation::unexpected: return "unexpected";
  }
  return "";
}

std::uint64_t Verdict::violation_count() const {
  std::uint64_t count = 0;
  for (const auto& [violation, times] : violations) count += times;
  return count;
}

Verdict check(const std::vector<ArchivedUpdate>& archive, const std::vector<History>& histories) {
  return Checker(archive, histories).run();
}

}  // namespace whycache::testing
