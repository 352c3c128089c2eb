#include "histories/worker.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <new>
#include <optional>
#include <random>
#include <stdexcept>
#include <thread>

#include <whycache/cache.h>

#include "client/cache_internal.h"
#include "histories/history.h"
#include "log/flaky_log.h"

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;

constexpr std::uint64_t key_count = 40;

bool is_expected_error(const Error& error) {
  return error.kind() == ErrorKind::unavailable || error.kind() == ErrorKind::uncertain;
}

class Worker {
 public:
  explicit Worker(const WorkerSettings& settings)
      : settings_(settings),
        progress_(SharedProgress::open(settings.directory)),
        history_(history_path(settings.directory, settings.process_name)),
        random_(settings.seed) {}

  void run(const std::string& role) {
    is_hurried_ = role == "hurried";
    const std::map<std::string, std::function<void()>> steps{
        {"writer", [this] { write_or_observe(); }}, {"hurried", [this] { write_hurriedly(); }},
        {"transactor", [this] { transact(); }},     {"reader", [this] { read(); }},
        {"sleeper", [this] { sleep_and_read(); }},  {"rewriter", [this] { rewrite(); }},
    };
    const std::function<void()>& step = steps.at(role);
    while (!cache_ && !progress_.stop) open();
    while (!progress_.stop) {
      try {
        step();
      } catch (const Error& error) {
        if (!is_expected_error(error)) throw;
      }
      pause(milliseconds(3));
    }
  }

  HistoryWriter& history() { return history_; }

 private:
  std::uint64_t random_below(std::uint64_t below) { return random_() % below; }
  bool chance(unsigned percent) { return random_below(100) < percent; }
  void pause(milliseconds pause_max) {
    std::this_thread::sleep_for(std::chrono::microseconds(
        random_below(static_cast<std::uint64_t>(pause_max.count()) * 1000)));
  }
  std::string random_key() { return 'k' + std::to_string(random_below(key_count)); }
  std::string new_token() { return settings_.process_name + '-' + std::to_string(++token_); }
  std::string value_of(const std::string& token) {
    return token + std::string(random_below(200), '.');
  }
  // Some deadlines are so short that writes fail before their turn comes on this machine, with
  // nothing written or an uncertain outcome. Every order of magnitude is equally likely. Those of
  // the hurried writer pass before the log is asked, while it answers, or just after, as often.
  milliseconds deadline() {
    if (is_hurried_) return milliseconds(random_below(100));
    return chance(20) ? milliseconds(random_below(1ULL << random_below(11))) : milliseconds(5000);
  }

  void open() {
    Options options;
    options.state_path = settings_.directory + '/' + settings_.machine + ".state";
    options.any_file_system = true;
    try {
      if (settings_.flaky) {
        cache_.emplace(std::make_unique<FlakyLog>(open_log(settings_.url), random_()), options);
      } else {
        cache_.emplace(settings_.url, options);
      }
    } catch (const Error& error) {
      if (!is_expected_error(error)) throw;
      pause(milliseconds(20));
    }
  }

  // --- Writing. ---

  Attempt new_attempt(std::size_t keys) {
    Attempt attempt{.token = new_token()};
    while (attempt.changes.size() < keys) {
      std::string key = random_key();
      const auto same = [&](const auto& change) { return change.first == key; };
      if (std::any_of(attempt.changes.begin(), attempt.changes.end(), same)) continue;
      const bool erases = !attempt.changes.empty() && chance(30);
      attempt.changes.emplace_back(std::move(key),
                                   erases ? std::nullopt : std::optional(value_of(attempt.token)));
    }
    return attempt;
  }
  static std::vector<Change> changes_of(const Attempt& attempt) {
    std::vector<Change> changes;
    for (const auto& [key, value] : attempt.changes)
      changes.push_back(value ? Change::set(key, *value) : Change::erase(key));
    return changes;
  }

  // Calls `write` and records its result.
  void record_write(std::uint64_t sequence, const std::function<UpdateId()>& write) {
    try {
      const UpdateId id = write();
      history_.record_acknowledged(sequence, id);
      UpdateId token = progress_.token;
      while (token < id && !progress_.token.compare_exchange_weak(token, id)) {
      }
    } catch (const Error& error) {
      history_.record_failure(sequence, error);
      if (!is_expected_error(error) && error.kind() != ErrorKind::conflict) throw;
    }
  }

  void write_or_observe() {
    const std::uint64_t kind = random_below(100);
    if (kind < 60) {
      write();
    } else if (kind < 75) {
      write_concurrently();
    } else if (kind < 85) {
      set_if();
    } else {
      observe();
    }
  }

  void write() {
    const std::uint64_t sequence = history_.begin_write();
    const Attempt attempt = new_attempt(1 + random_below(3));
    history_.record_attempt(sequence, attempt);
    record_write(sequence, [&] {
      return cache_->write(changes_of(attempt), {.note = {}, .deadline = deadline()});
    });
  }

  void write_hurriedly() {
    pause(milliseconds(40));  // without it, the processes of other machines are hardly ever first
    write();
  }

  void write_concurrently() {
    std::vector<std::pair<std::uint64_t, std::future<UpdateId>>> in_flight;
    for (std::uint64_t left = 2 + random_below(6); left > 0; --left) {
      const std::uint64_t sequence = history_.begin_write();
      const Attempt attempt = new_attempt(1 + random_below(2));
      history_.record_attempt(sequence, attempt);
      in_flight.emplace_back(
          sequence, cache_->write_async(changes_of(attempt), {.note = {}, .deadline = deadline()}));
    }
    for (auto& each : in_flight) record_write(each.first, [&] { return each.second.get(); });
  }

  void set_if() {
    const std::uint64_t sequence = history_.begin_write();
    Attempt attempt = new_attempt(1);
    const std::string& key = attempt.changes[0].first;
    const std::optional<std::string> expected = cache_->get(key);
    attempt.reads.emplace_back(key, expected);
    history_.record_attempt(sequence, attempt);
    record_write(sequence, [&] {
      const std::optional<std::string_view> before =
          expected ? std::optional<std::string_view>(*expected) : std::nullopt;
      const std::optional<UpdateId> id = cache_->set_if(key, before, *attempt.changes[0].second,
                                                        {.note = {}, .deadline = deadline()});
      if (!id) throw Error(ErrorKind::conflict, "the key has another value");
      return *id;
    });
  }

  void transact() {
    const std::uint64_t sequence = history_.begin_write();
    record_write(sequence, [&] {
      return cache_->transact(
          [&](Transaction& t) {
            Attempt attempt = new_attempt(1 + random_below(2));
            const auto record_value = [&](const std::string& key,
                                          std::optional<std::string_view> value) {
              attempt.reads.emplace_back(key,
                                         value ? std::optional<std::string>(*value) : std::nullopt);
            };
            for (std::uint64_t left = 1 + random_below(3); left > 0; --left) {
              const std::string key = random_key();
              record_value(key, t.get(key));
            }
            if (chance(20)) {  // the keys k2, k20 ... k29, absent ones as well
              std::map<std::string, std::string> present;
              for (const Item& item : t.items(KeyRange::prefix("k2")))
                present.emplace(item.key, item.value);
              for (const char* digit : {"", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}) {
                const std::string key = std::string("k2") + digit;
                const auto found = present.find(key);
                record_value(key, found == present.end()
                                      ? std::nullopt
                                      : std::optional<std::string_view>(found->second));
              }
            }
            history_.record_attempt(sequence, attempt);
            for (const auto& [key, value] : attempt.changes)
              value ? t.set(key, *value) : t.erase(key);
          },
          {.note = {}, .deadline = deadline(), .attempts_max = 100});
    });
    if (chance(20)) observe();
  }

  // --- Reading. ---

  // Reads some keys and the digest of a view.
  void observe(UpdateId at_least = 0) {
    Observation seen{.began_ns = now_ns(), .at_least = at_least};
    const View view = cache_->view();
    seen.first = seen.last = view.id();
    seen.digest = view.digest();
    for (int i = 0; i < 4; ++i) {
      const std::string key = random_key();
      const std::optional<std::string_view> value = view.get(key);
      seen.key_values.emplace_back(key, value ? std::optional<std::string>(*value) : std::nullopt);
    }
    seen.ended_ns = now_ns();
    history_.record_read(seen);
  }

  // Calls get(), whose value may be as of any id between the two applied ids.
  void get() {
    Observation seen{.began_ns = now_ns()};
    seen.first = cache_->applied_id();
    const std::string key = random_key();
    seen.key_values.emplace_back(key, cache_->get(key));
    seen.last = cache_->applied_id();
    seen.ended_ns = now_ns();
    history_.record_read(seen);
  }

  void read() {
    const std::uint64_t kind = random_below(100);
    if (kind < 30) {
      cache_->update();
      observe();
    } else if (kind < 45) {
      const UpdateId token = progress_.token;
      cache_->update({.staleness_max = {}, .at_least = token, .deadline = {}});
      observe(token);
    } else if (kind < 60) {  // zero staleness covers all writes acknowledged before
      const UpdateId token = progress_.token;
      cache_->update({.staleness_max = std::chrono::nanoseconds(0), .at_least = 0, .deadline = {}});
      observe(token);
    } else if (kind < 75) {
      observe();
    } else {
      for (int i = 0; i < 5; ++i) get();
    }
  }

  void sleep_and_read() {
    for (int i = 0; i < 60 && !progress_.stop; ++i) {
      if (chance(5)) observe();
      std::this_thread::sleep_for(milliseconds(10));
    }
    read();
    const std::uint64_t rebuilds = cache_->counters().rebuilds_behind_base;
    progress_.rebuilds += rebuilds - rebuilds_;
    rebuilds_ = rebuilds;
  }

  // --- Rewriting. ---

  void rewrite() {
    pause(milliseconds(150));
    cache_->update();
    const UpdateId limit_max = std::min(progress_.archived.load(), cache_->applied_id());
    if (limit_max == 0) return;
    const UpdateId base = CacheInternal::log(*cache_).extent().base;
    const UpdateId limit =
        chance(50) ? limit_max : limit_max - random_below(std::min<UpdateId>(limit_max, 50));
    if (limit == 0 || limit <= base) return;
    if (cache_->rewrite_history({.limit = limit, .keep = {}}) == limit) ++progress_.rewrites;
    if (chance(30)) observe();
  }

  const WorkerSettings& settings_;
  SharedProgress& progress_;
  HistoryWriter history_;
  std::mt19937_64 random_;
  std::optional<Cache> cache_;
  bool is_hurried_ = false;
  std::uint64_t token_ = 0;
  std::uint64_t rebuilds_ = 0;
};

}  // namespace

std::vector<std::string> worker_roles() {
  return {"writer", "hurried", "transactor", "reader", "sleeper", "rewriter"};
}

std::string history_path(const std::string& directory, const std::string& process) {
  return directory + '/' + process + ".history";
}

SharedProgress& SharedProgress::open(const std::string& directory) {
  const int file = ::open((directory + "/progress").c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
  if (file < 0 || ::ftruncate(file, sizeof(SharedProgress)) != 0)
    throw std::runtime_error("cannot create the progress file");
  void* const memory =
      ::mmap(nullptr, sizeof(SharedProgress), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  ::close(file);
  if (memory == MAP_FAILED) throw std::runtime_error("cannot map the progress file");
  return *static_cast<SharedProgress*>(memory);  // its initial value is all zeroes
}

void run_worker(const WorkerSettings& settings) {
  const std::vector<std::string> known = worker_roles();
  if (std::find(known.begin(), known.end(), settings.role) == known.end()) {
    throw std::runtime_error("no such role: " + settings.role);
  }
  Worker worker(settings);
  try {
    worker.run(settings.role);
  } catch (const std::exception& error) {
    worker.history().record_unexpected(error.what());
  }
}

}  // namespace whycache::testing
