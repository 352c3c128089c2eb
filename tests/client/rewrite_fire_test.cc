// Rewriting while rewriters are killed. In every round two rewriters run at once, and each is
// killed at a step of its own; a step is a system call. A random generator chooses which of the two
// makes the next step. Followers at several lags, and new machines, must then equal a full replay.
// WHYCACHE_REWRITES sets the number of rounds on all logs together.
#include <gtest/gtest.h>

#include <signal.h>
#include <sys/ptrace.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include <whycache/cache.h>

#include "base/hash.h"
#include "log/forwarding_log.h"
#include "log/stores.h"
#include "support/child_process.h"
#include "support/seed.h"
#include "support/temporary_directory.h"

namespace whycache::testing {
namespace {

constexpr std::uint64_t never_killed = ~std::uint64_t{0};

// The log, its writer, and the digest of a full replay at each id.
class ReferenceModel {
 public:
  ReferenceModel(LogStore& store, const std::string& directory, std::mt19937_64& random)
      : store_(store), directory_(directory), random_(random), writer_(open("writer")) {
    digests_.push_back(Digest{});
  }

  Cache open(const std::string& machine) const {
    Options options;
    options.state_path = directory_ + '/' + machine + ".state";
    options.any_file_system = true;
    return Cache(store_.open(), options);
  }

  void write_random_updates() {
    for (std::uint64_t left = 1 + random_() % 4; left > 0; --left) {
      std::map<std::string, std::optional<std::string>> batch;
      for (std::uint64_t changes = 1 + random_() % 3; changes > 0; --changes) {
        const std::string key = "key " + std::to_string(random_() % 60);
        if (random_() % 4 == 0) {
          batch[key] = std::nullopt;
        } else {
          batch[key] = std::to_string(head()) + std::string(random_() % 3000, 'v');
        }
      }
      std::vector<Change> changes;
      for (const auto& [key, value] : batch) {
        changes.push_back(value ? Change::set(key, *value) : Change::erase(key));
        if (const auto before = items_.find(key); before != items_.end()) {
          subtract(digest_, item_digest(key, before->second));
          items_.erase(before);
        }
        if (!value) continue;
        add(digest_, item_digest(key, *value));
        items_[key] = *value;
      }
      ASSERT_EQ(writer_.write(changes), head() + 1);
      digests_.push_back(digest_);
    }
  }

  UpdateId head() const { return digests_.size() - 1; }
  void expect_consistent(const Cache& machine, const std::string& name) const {
    const View view = machine.view();
    ASSERT_LE(view.id(), head()) << name;
    EXPECT_EQ(view.digest(), digests_[view.id()]) << name << " at " << view.id();
  }
  void expect_caught_up(Cache& machine, const std::string& name) const {
    EXPECT_EQ(machine.update(), head()) << name;
    expect_consistent(machine, name);
  }
  LogStore& store() const { return store_; }

 private:
  LogStore& store_;
  std::string directory_;
  std::mt19937_64& random_;
  Cache writer_;
  std::map<std::string, std::string> items_;
  Digest digest_;
  std::vector<Digest> digests_;  // by id
};

// --- Rewriters. ---

void rewrite_despite_failures(Cache& cache, UpdateId limit) {
  try {
    cache.rewrite_history({.limit = limit, .keep = {}});
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::unavailable && error.kind() != ErrorKind::uncertain) throw;
  }
}

// A traced process that rewrites, one step() at a time.
class SteppedRewriter {
 public:
  SteppedRewriter(const ReferenceModel& truth, const std::string& machine, UpdateId limit,
                  std::uint64_t kill_step)
      : kill_step_(kill_step), pid_(::fork()) {
    if (pid_ < 0) throw std::runtime_error("cannot fork");
    if (pid_ == 0) {
      ::alarm(100);
      try {
        Cache cache = truth.open(machine);
        ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
        ::raise(SIGSTOP);
        rewrite_despite_failures(cache, limit);
        ::_exit(0);
      } catch (const std::exception& error) {
        std::fprintf(stderr, "rewriter: %s\n", error.what());
        ::_exit(1);
      }
    }
    int status = 0;
    ::waitpid(pid_, &status, 0);
    if (WIFSTOPPED(status)) {
      ::ptrace(PTRACE_SETOPTIONS, pid_, nullptr, PTRACE_O_TRACESYSGOOD | PTRACE_O_EXITKILL);
    } else {
      expect_exited(status);
    }
  }
  SteppedRewriter(const SteppedRewriter&) = delete;
  SteppedRewriter& operator=(const SteppedRewriter&) = delete;
  ~SteppedRewriter() {
    if (pid_ == 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }

  bool has_finished() const { return pid_ == 0; }
  bool was_killed() const { return killed_; }
  std::uint64_t steps() const { return steps_; }

  // Runs one system call. The call may still be in progress on return if it waits for the other
  // rewriter.
  void step() {
    if (!in_system_call_) {
      if (steps_ == kill_step_) {
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
        pid_ = 0;
        killed_ = true;
        return;
      }
      ++steps_;
      ::ptrace(PTRACE_SYSCALL, pid_, nullptr, nullptr);
      in_system_call_ = true;
    }
    for (int attempt = 0; attempt < 20; ++attempt) {
      int status = 0;
      if (::waitpid(pid_, &status, WNOHANG) == pid_) {
        in_system_call_ = false;
        if (!WIFSTOPPED(status)) expect_exited(status);
        return;
      }
      std::this_thread::sleep_for(std::chrono::microseconds(attempt));
    }
  }

 private:
  void expect_exited(int status) {
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "status=" << status;
    pid_ = 0;
  }

  std::uint64_t kill_step_;
  pid_t pid_;
  std::uint64_t steps_ = 0;
  bool in_system_call_ = false;
  bool killed_ = false;
};

// Returns a limit for the rewrite; 0 means the head.
UpdateId limit_of(const ReferenceModel& truth, std::mt19937_64& random) {
  return random() % 2 == 0 ? 0 : truth.head() - random() % std::min<UpdateId>(truth.head(), 4);
}

// Results of the rounds on one log.
struct RewriteCounts {
  std::uint64_t rounds = 0;
  std::uint64_t killed = 0;
  std::uint64_t finished = 0;
  std::set<std::uint64_t> kill_steps{};
  std::uint64_t step_count_max = 0;  // of a rewriter that runs alone
};

class ProcessRewriters {
 public:
  explicit ProcessRewriters(std::mt19937_64& random) : random_(random) {}

  void rewrite(const ReferenceModel& truth, std::uint64_t round) {
    if (round <= rounds_alone) return rewrite_alone(truth);
    // Kill the first rewriter at each step in turn.
    SteppedRewriter first(truth, "first", limit_of(truth, random_),
                          round % (counts_.step_count_max + 1));
    SteppedRewriter second(
        truth, "second", limit_of(truth, random_),
        random_() % 2 == 0 ? never_killed : random_() % (counts_.step_count_max + 1));
    while (!first.has_finished() || !second.has_finished()) {
      SteppedRewriter& next =
          second.has_finished() || (!first.has_finished() && random_() % 2 == 0) ? first : second;
      next.step();
    }
    count(first);
    count(second);
  }
  const RewriteCounts& counts() const { return counts_; }

 private:
  static constexpr std::uint64_t rounds_alone = 3;

  // Measures the number of steps.
  void rewrite_alone(const ReferenceModel& truth) {
    SteppedRewriter alone(truth, "first", 0, never_killed);
    while (!alone.has_finished()) alone.step();
    counts_.step_count_max = std::max(counts_.step_count_max, alone.steps());
    count(alone);
  }
  void count(const SteppedRewriter& rewriter) {
    if (!rewriter.was_killed()) {
      ++counts_.finished;
      return;
    }
    ++counts_.killed;
    counts_.kill_steps.insert(rewriter.steps());
  }

  std::mt19937_64& random_;
  RewriteCounts counts_;
};

// --- The memory log belongs to one process, so its rewriters are threads that crash at a call. ---

// From the crash on it does nothing, and throws what no caller retries.
class CrashingLog final : public ForwardingLog {
 public:
  CrashingLog(std::unique_ptr<Log> log, std::uint64_t kill_step, bool& has_crashed)
      : ForwardingLog(std::move(log)), steps_left_(kill_step), has_crashed_(has_crashed) {}

  Extent extent() override {
    step();
    return target().extent();
  }
  Appended append(UpdateId id, std::string_view bytes) override {
    step();
    return target().append(id, bytes);
  }
  Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) override {
    step();
    return target().read(first, last, [&](UpdateId id, std::string_view bytes) {
      step();
      return visit(id, bytes);
    });
  }
  void read_base(const VisitPart& visit) override {
    step();
    target().read_base([&](std::string_view part) {
      step();
      return visit(part);
    });
  }
  bool rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) override {
    step();
    const bool switched = target().rewrite(base, base_chain, [&] {
      step();
      return next_part();
    });
    step();
    return switched;
  }

 private:
  void step() {
    if (steps_left_ == 0) {
      has_crashed_ = true;
      throw LogError(ErrorKind::invalid, "the rewriter has crashed");
    }
    --steps_left_;
    std::this_thread::yield();
  }

  std::uint64_t steps_left_;
  bool& has_crashed_;
};

class ThreadRewriters {
 public:
  ThreadRewriters(std::mt19937_64& random, std::string directory)
      : random_(random), directory_(std::move(directory)) {}

  void rewrite(const ReferenceModel& truth, std::uint64_t round) {
    constexpr std::uint64_t steps = 25;
    counts_.step_count_max = steps;
    const std::uint64_t kill_steps[] = {round % steps, random_() % (2 * steps)};
    const UpdateId limits[] = {limit_of(truth, random_), limit_of(truth, random_)};
    std::vector<std::thread> threads;
    bool crashed[2] = {};
    for (std::size_t i = 0; i < 2; ++i) {
      threads.emplace_back([&, i] {
        try {
          Options options;
          options.state_path = directory_ + "/rewriter " + std::to_string(i);
          options.any_file_system = true;
          Cache cache(
              std::make_unique<CrashingLog>(truth.store().open(), kill_steps[i], crashed[i]),
              options);
          rewrite_despite_failures(cache, limits[i]);
        } catch (const Error&) {
          if (!crashed[i]) throw;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (std::size_t i = 0; i < 2; ++i) {
      ++(crashed[i] ? counts_.killed : counts_.finished);
      if (crashed[i]) counts_.kill_steps.insert(kill_steps[i]);
    }
  }
  const RewriteCounts& counts() const { return counts_; }

 private:
  std::mt19937_64& random_;
  std::string directory_;
  RewriteCounts counts_;
};

// --- The rounds. ---

std::uint64_t round_count(std::uint64_t thousandths) {
  return number_from_environment("WHYCACHE_REWRITES", 1000) * thousandths / 1000;
}

template <typename Pair>
void run_rounds(const char* log, std::uint64_t rounds, ReferenceModel& truth, Pair& pair) {
  std::map<std::uint64_t, Cache> followers;  // by the number of rounds between updates
  for (const std::uint64_t lag : {1, 2, 3, 5, 8, 13, 21, 55}) {
    followers.emplace(lag, truth.open("follower " + std::to_string(lag)));
  }
  std::uint64_t rebuilds = 0;
  for (std::uint64_t round = 1; round <= rounds; ++round) {
    truth.write_random_updates();
    pair.rewrite(truth, round);
    for (auto& [lag, follower] : followers) {
      const std::string name =
          "follower " + std::to_string(lag) + " in round " + std::to_string(round);
      if (round % lag == 0) {
        truth.expect_caught_up(follower, name);
      } else {
        truth.expect_consistent(follower, name);
      }
    }
    if (round % 10 == 0) {
      Cache fresh = truth.open("new in round " + std::to_string(round));
      truth.expect_caught_up(fresh, "a new machine");
      fresh.delete_shared_state();
    }
    ASSERT_FALSE(::testing::Test::HasFailure()) << "round " << round;
  }
  for (auto& [lag, follower] : followers) {
    truth.expect_caught_up(follower, "follower " + std::to_string(lag));
    rebuilds += follower.counters().rebuilds_behind_base;
    EXPECT_EQ(follower.counters().rebuilds_diverged, 0U);
  }
  // The next rewrite deletes everything that killed rewriters have left.
  truth.write_random_updates();
  followers.at(1).rewrite_history();
  EXPECT_EQ(truth.store().stored_updates().value_or(0), 0U);
  const RewriteCounts& counts = pair.counts();
  std::printf(
      "%s: rounds=%llu killed=%llu finished=%llu kill_steps=%zu steps_of_a_rewrite=%llu "
      "rebuilds=%llu\n",
      log, static_cast<unsigned long long>(rounds), static_cast<unsigned long long>(counts.killed),
      static_cast<unsigned long long>(counts.finished), counts.kill_steps.size(),
      static_cast<unsigned long long>(counts.step_count_max),
      static_cast<unsigned long long>(rebuilds));
  EXPECT_GT(counts.killed, 0U);
  EXPECT_GT(counts.finished, 0U);
  EXPECT_GT(rebuilds, 0U);
}

template <typename Store>
void run_process_rounds(const char* log, std::uint64_t rounds) {
  SCOPED_TRACE(seed_note());
  std::mt19937_64 random(test_seed());
  const TemporaryDirectory directory("/dev/shm");
  Store store;
  ReferenceModel truth(store, directory.path(), random);
  ProcessRewriters pair(random);
  run_rounds(log, rounds, truth, pair);
}

TEST(RewriteFireLong, killed_rewriters_on_memory_leave_consistent_history) {
  SCOPED_TRACE(seed_note());
  std::mt19937_64 random(test_seed());
  const TemporaryDirectory directory("/dev/shm");
  MemoryStore store;
  ReferenceModel truth(store, directory.path(), random);
  ThreadRewriters pair(random, directory.path());
  run_rounds("memory", round_count(200), truth, pair);
}

TEST(RewriteFireLong, killed_rewriters_on_file_leave_consistent_history) {
  run_process_rounds<FileStore>("file", round_count(350));
}

#if WHYCACHE_WITH_SQLITE
TEST(RewriteFireLong, killed_rewriters_on_sqlite_leave_consistent_history) {
  run_process_rounds<SqliteStore>("sqlite", round_count(350));
}
#endif

#if WHYCACHE_WITH_MYSQL
TEST(RewriteFireLong, killed_rewriters_on_mysql_leave_consistent_history) {
  if (!MariadbServer::is_installed()) GTEST_SKIP() << "NOT TESTED: mariadbd is not installed";
  run_process_rounds<MysqlStore>("mysql", round_count(100));
}
#endif

}  // namespace
}  // namespace whycache::testing
