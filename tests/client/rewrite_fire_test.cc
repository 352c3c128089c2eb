// Rewriting under fire: in every round two rewriters at once, each killed at a step of its own, a step being a system
// call; which of the two makes the next step is drawn. Machines that follow at every lag, and new ones, are then what a
// full replay is. WHYCACHE_REWRITES says how many rounds there are on all logs together.
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
#include "log/stores.h"
#include "support/child_process.h"
#include "support/seed.h"
#include "support/temporary_folder.h"

namespace whycache::testing {
namespace {

constexpr std::uint64_t never = ~std::uint64_t{0};

// The log, who writes it, and what a full replay of it makes.
class Truth {
 public:
  Truth(LogStore& store, const std::string& folder, std::mt19937_64& random)
      : store_(store), folder_(folder), random_(random), writer_(open("writer")) {
    digests_.push_back(Digest{});
  }

  Cache open(const std::string& machine) const {
    Options options;
    options.state_path = folder_ + '/' + machine + ".state";
    options.any_file_system = true;
    return Cache(store_.open(), options);
  }

  void write_some() {
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
  void expect_right(const Cache& machine, const std::string& name) const {
    const View view = machine.view();
    ASSERT_LE(view.id(), head()) << name;
    EXPECT_EQ(view.digest(), digests_[view.id()]) << name << " at " << view.id();
  }
  void expect_all_of_it(Cache& machine, const std::string& name) const {
    EXPECT_EQ(machine.update(), head()) << name;
    expect_right(machine, name);
  }
  LogStore& store() const { return store_; }

 private:
  LogStore& store_;
  std::string folder_;
  std::mt19937_64& random_;
  Cache writer_;
  std::map<std::string, std::string> items_;
  Digest digest_;
  std::vector<Digest> digests_;  // as of each id
};

// --- Rewriters. ---

void rewrite(Cache& cache, UpdateId limit) {
  try {
    cache.rewrite_history({.limit = limit, .keep = {}});
  } catch (const Error& error) {
    if (error.kind() != ErrorKind::unavailable && error.kind() != ErrorKind::uncertain) throw;
  }
}

// A process that rewrites, and makes a step when it is told to.
class SteppedRewriter {
 public:
  SteppedRewriter(const Truth& truth, const std::string& machine, UpdateId limit, std::uint64_t deadly_step)
      : deadly_step_(deadly_step), pid_(::fork()) {
    if (pid_ < 0) throw std::runtime_error("cannot fork");
    if (pid_ == 0) {
      ::alarm(100);
      try {
        Cache cache = truth.open(machine);
        ::ptrace(PTRACE_TRACEME, 0, nullptr, nullptr);
        ::raise(SIGSTOP);
        rewrite(cache, limit);
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
      end(status);
    }
  }
  SteppedRewriter(const SteppedRewriter&) = delete;
  SteppedRewriter& operator=(const SteppedRewriter&) = delete;
  ~SteppedRewriter() {
    if (pid_ == 0) return;
    ::kill(pid_, SIGKILL);
    ::waitpid(pid_, nullptr, 0);
  }

  bool is_over() const { return pid_ == 0; }
  bool was_killed() const { return killed_; }
  std::uint64_t steps() const { return steps_; }

  // One system call; it may go on with it when this returns, if it has to wait for the other one.
  void step() {
    if (!moving_) {
      if (steps_ == deadly_step_) {
        ::kill(pid_, SIGKILL);
        ::waitpid(pid_, nullptr, 0);
        pid_ = 0;
        killed_ = true;
        return;
      }
      ++steps_;
      ::ptrace(PTRACE_SYSCALL, pid_, nullptr, nullptr);
      moving_ = true;
    }
    for (int patience = 0; patience < 20; ++patience) {
      int status = 0;
      if (::waitpid(pid_, &status, WNOHANG) == pid_) {
        moving_ = false;
        if (!WIFSTOPPED(status)) end(status);
        return;
      }
      std::this_thread::sleep_for(std::chrono::microseconds(patience));
    }
  }

 private:
  void end(int status) {
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "status=" << status;
    pid_ = 0;
  }

  std::uint64_t deadly_step_;
  pid_t pid_;
  std::uint64_t steps_ = 0;
  bool moving_ = false;
  bool killed_ = false;
};

// 0: the head.
UpdateId limit_of(const Truth& truth, std::mt19937_64& random) {
  return random() % 2 == 0 ? 0 : truth.head() - random() % std::min<UpdateId>(truth.head(), 4);
}

// Tells how it went with a log.
struct Tally {
  std::uint64_t rounds = 0;
  std::uint64_t kills = 0;
  std::uint64_t finished = 0;
  std::set<std::uint64_t> deadly_steps{};
  std::uint64_t longest = 0;  // steps of one that was alone
};

class SteppedPair {
 public:
  explicit SteppedPair(std::mt19937_64& random) : random_(random) {}

  void rewrite(const Truth& truth, std::uint64_t round) {
    if (round <= rounds_alone) return rewrite_alone(truth);
    // The first is killed at each step in turn.
    SteppedRewriter first(truth, "first", limit_of(truth, random_), round % (tally_.longest + 1));
    SteppedRewriter second(truth, "second", limit_of(truth, random_),
                           random_() % 2 == 0 ? never : random_() % (tally_.longest + 1));
    while (!first.is_over() || !second.is_over()) {
      SteppedRewriter& one = second.is_over() || (!first.is_over() && random_() % 2 == 0) ? first : second;
      one.step();
    }
    count(first);
    count(second);
  }
  const Tally& tally() const { return tally_; }

 private:
  static constexpr std::uint64_t rounds_alone = 3;

  // To learn how many steps there are.
  void rewrite_alone(const Truth& truth) {
    SteppedRewriter alone(truth, "first", 0, never);
    while (!alone.is_over()) alone.step();
    tally_.longest = std::max(tally_.longest, alone.steps());
    count(alone);
  }
  void count(const SteppedRewriter& rewriter) {
    if (!rewriter.was_killed()) {
      ++tally_.finished;
      return;
    }
    ++tally_.kills;
    tally_.deadly_steps.insert(rewriter.steps());
  }

  std::mt19937_64& random_;
  Tally tally_;
};

// --- The log in memory has no other processes: its rewriters are threads, who die at a call of theirs. ---

struct Died {};

class DyingLog final : public Log {
 public:
  DyingLog(std::unique_ptr<Log> log, std::uint64_t deadly_step) : log_(std::move(log)), steps_left_(deadly_step) {}

  std::string name() const override { return log_->name(); }
  Extent extent() override {
    step();
    return log_->extent();
  }
  Appended append(UpdateId id, std::string_view bytes) override {
    step();
    return log_->append(id, bytes);
  }
  Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) override {
    step();
    return log_->read(first, last, [&](UpdateId id, std::string_view bytes) {
      step();
      return visit(id, bytes);
    });
  }
  void read_base(const VisitPart& visit) override {
    step();
    log_->read_base([&](std::string_view part) {
      step();
      return visit(part);
    });
  }
  bool rewrite(UpdateId base, std::uint64_t base_chain, const NextPart& next_part) override {
    step();
    const bool switched = log_->rewrite(base, base_chain, [&] {
      step();
      return next_part();
    });
    step();
    return switched;
  }

 private:
  void step() {
    if (steps_left_ == 0) throw Died();
    --steps_left_;
    std::this_thread::yield();
  }

  std::unique_ptr<Log> log_;
  std::uint64_t steps_left_;
};

class DyingPair {
 public:
  DyingPair(std::mt19937_64& random, std::string folder) : random_(random), folder_(std::move(folder)) {}

  void rewrite(const Truth& truth, std::uint64_t round) {
    constexpr std::uint64_t steps = 25;
    tally_.longest = steps;
    const std::uint64_t deadly_steps[] = {round % steps, random_() % (2 * steps)};
    const UpdateId limits[] = {limit_of(truth, random_), limit_of(truth, random_)};
    std::vector<std::thread> threads;
    bool died[2] = {};
    for (std::size_t i = 0; i < 2; ++i) {
      threads.emplace_back([&, i] {
        try {
          Options options;
          options.state_path = folder_ + "/rewriter " + std::to_string(i);
          options.any_file_system = true;
          Cache cache(std::make_unique<DyingLog>(truth.store().open(), deadly_steps[i]), options);
          testing::rewrite(cache, limits[i]);
        } catch (const Died&) {
          died[i] = true;
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (std::size_t i = 0; i < 2; ++i) {
      ++(died[i] ? tally_.kills : tally_.finished);
      if (died[i]) tally_.deadly_steps.insert(deadly_steps[i]);
    }
  }
  const Tally& tally() const { return tally_; }

 private:
  std::mt19937_64& random_;
  std::string folder_;
  Tally tally_;
};

// --- The story. ---

std::uint64_t rounds_of(std::uint64_t thousandths) {
  return number_from_environment("WHYCACHE_REWRITES", 1000) * thousandths / 1000;
}

template <typename Pair>
void play(const char* log, std::uint64_t rounds, Truth& truth, Pair& pair) {
  std::map<std::uint64_t, Cache> followers;  // by how many rounds they sleep
  for (const std::uint64_t lag : {1, 2, 3, 5, 8, 13, 21, 55}) {
    followers.emplace(lag, truth.open("follower " + std::to_string(lag)));
  }
  std::uint64_t rebuilds = 0;
  for (std::uint64_t round = 1; round <= rounds; ++round) {
    truth.write_some();
    pair.rewrite(truth, round);
    for (auto& [lag, follower] : followers) {
      const std::string name = "follower " + std::to_string(lag) + " in round " + std::to_string(round);
      if (round % lag == 0) {
        truth.expect_all_of_it(follower, name);
      } else {
        truth.expect_right(follower, name);
      }
    }
    if (round % 10 == 0) {
      Cache fresh = truth.open("new in round " + std::to_string(round));
      truth.expect_all_of_it(fresh, "a new machine");
      fresh.delete_shared_state();
    }
    ASSERT_FALSE(::testing::Test::HasFailure()) << "round " << round;
  }
  for (auto& [lag, follower] : followers) {
    truth.expect_all_of_it(follower, "follower " + std::to_string(lag));
    rebuilds += follower.counters().rebuilds_behind_base;
    EXPECT_EQ(follower.counters().rebuilds_diverged, 0U);
  }
  // And the dead have left nothing that the next rewrite does not take away.
  truth.write_some();
  followers.at(1).rewrite_history();
  EXPECT_EQ(truth.store().stored_updates().value_or(0), 0U);
  const Tally& tally = pair.tally();
  std::printf("%s: rounds=%llu killed=%llu finished=%llu deadly_steps=%zu steps_of_a_rewrite=%llu rebuilds=%llu\n", log,
              static_cast<unsigned long long>(rounds), static_cast<unsigned long long>(tally.kills),
              static_cast<unsigned long long>(tally.finished), tally.deadly_steps.size(),
              static_cast<unsigned long long>(tally.longest), static_cast<unsigned long long>(rebuilds));
  EXPECT_GT(tally.kills, 0U);
  EXPECT_GT(tally.finished, 0U);
  EXPECT_GT(rebuilds, 0U);
}

template <typename Store>
void play_with_processes(const char* log, std::uint64_t rounds) {
  SCOPED_TRACE(seed_note());
  std::mt19937_64 random(test_seed());
  const TemporaryFolder folder("/dev/shm");
  Store store;
  Truth truth(store, folder.path(), random);
  SteppedPair pair(random);
  play(log, rounds, truth, pair);
}

TEST(RewriteFireLongBeside, on_memory) {
  SCOPED_TRACE(seed_note());
  std::mt19937_64 random(test_seed());
  const TemporaryFolder folder("/dev/shm");
  MemoryStore store;
  Truth truth(store, folder.path(), random);
  DyingPair pair(random, folder.path());
  play("memory", rounds_of(200), truth, pair);
}

TEST(RewriteFireLongBeside, on_file) { play_with_processes<FileStore>("file", rounds_of(350)); }

#if WHYCACHE_WITH_SQLITE
TEST(RewriteFireLongBeside, on_sqlite) { play_with_processes<SqliteStore>("sqlite", rounds_of(350)); }
#endif

#if WHYCACHE_WITH_MYSQL
TEST(RewriteFireLongBeside, on_mysql) {
  if (!MariadbServer::is_installed()) GTEST_SKIP() << "NOT TESTED: mariadbd is not installed";
  play_with_processes<MysqlStore>("mysql", rounds_of(100));
}
#endif

}  // namespace
}  // namespace whycache::testing
