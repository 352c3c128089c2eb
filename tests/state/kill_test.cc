// Writers are killed repeatedly while others read. WHYCACHE_KILLS=10000 for a long run.
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <thread>

#include "state/marked_updates.h"
#include "support/child_process.h"
#include "support/seed.h"

namespace whycache {
namespace {

using testing::ChildProcess;
using testing::MarkedReader;
using testing::MarkedRun;
using testing::MarkedUpdates;
using testing::SharedWithChildren;
using testing::TemporaryDirectory;
using testing::TestState;
using Clock = std::chrono::steady_clock;

double milliseconds_since(Clock::time_point then) {
  return std::chrono::duration<double, std::milli>(Clock::now() - then).count();
}

// The items and the digest as of an update id, computed without a state.
class Replay {
 public:
  explicit Replay(const MarkedUpdates& updates) : updates_(updates) {}

  void advance_to(UpdateId id) {
    while (id_ < id) {
      const MarkedUpdates::Changes made = updates_.changes_at(++id_);
      if (made.erases_all) {
        items_.clear();
        digest_ = Digest{};
      }
      for (const testing::TestChange& change : made.changes) {
        const auto found = items_.find(change.key);
        if (found != items_.end()) {
          subtract(digest_, item_digest(found->first, found->second));
          items_.erase(found);
        }
        if (change.value) {
          add(digest_, item_digest(change.key, *change.value));
          items_.emplace(change.key, *change.value);
        }
      }
    }
  }
  const Digest& digest() const { return digest_; }
  std::size_t count() const { return items_.size(); }

 private:
  const MarkedUpdates& updates_;
  UpdateId id_ = 0;
  std::unordered_map<std::string, std::string> items_;
  Digest digest_;
};

std::string read_in_child(const std::string& path, const MarkedUpdates& updates, std::uint64_t seed,
                          MarkedRun& run) {
  const TestState state(path);
  // Readers that never pause would take the time of the writers that are to be killed.
  return read_until_stopped(*state, updates, seed, run, std::chrono::microseconds(500));
}

std::string write_until_killed(const std::string& path, const MarkedUpdates& updates,
                               MarkedRun& run) {
  const TestState state(path);
  for (;;) {
    const std::unique_ptr<StateWriter> writer = state->begin_write(TestState::deadline());
    for (int i = 0; i < 20; ++i) {
      updates.apply_next(*writer);
      ++run.updates;
    }
  }
}

double percentile(std::vector<double>& all, double share) {
  if (all.empty()) return 0;
  std::sort(all.begin(), all.end());
  return all[std::min(all.size() - 1,
                      static_cast<std::size_t>(static_cast<double>(all.size()) * share))];
}

// Each round starts with an empty state, so that the state grows while its writers die.
TEST(KillLong, next_writer_recovers_after_each_killed_writer) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  const std::uint64_t kills = testing::number_from_environment("WHYCACHE_KILLS", 500);
  constexpr std::uint64_t kills_per_round = 100;
  std::vector<double> take_over_ms;
  std::uint64_t reads = 0;
  std::uint64_t updates_applied = 0;
  std::uint64_t recovered = 0;
  std::uint64_t killed = 0;
  while (killed < kills) {
    const TemporaryDirectory directory(random() % 2 == 0 ? "/dev/shm"
                                                         : std::filesystem::temp_directory_path());
    const std::string path = directory.file("killed.state");
    const MarkedUpdates updates(random(), 2000, 40'000);
    const TestState state(path);
    const SharedWithChildren<MarkedRun> run;
    const std::uint64_t reader_seeds[] = {random(), random()};
    std::vector<std::unique_ptr<ChildProcess>> readers;
    for (const std::uint64_t seed : reader_seeds) {
      readers.push_back(std::make_unique<ChildProcess>(
          [&] { return read_in_child(path, updates, seed, *run); }, 890));
    }
    Replay replay(updates);
    UpdateId before = 0;
    for (std::uint64_t round = 0; round < kills_per_round && killed < kills; ++round, ++killed) {
      {
        ChildProcess writer([&] { return write_until_killed(path, updates, *run); }, 890);
        std::this_thread::sleep_for(
            std::chrono::microseconds(random() % 4 == 0 ? random() % 2000 : random() % 40'000));
        writer.kill(SIGKILL);
        ASSERT_EQ(writer.wait(), "died of signal 9");
      }
      const auto died = Clock::now();
      {
        const std::unique_ptr<StateWriter> writer = state->begin_write(TestState::deadline());
        take_over_ms.push_back(milliseconds_since(died));
        recovered += writer->recovered();
        const StateInfo info = writer->info();
        ASSERT_GE(info.applied_id, before);
        before = info.applied_id;
        replay.advance_to(info.applied_id);
        ASSERT_EQ(info.digest, replay.digest()) << "at update " << info.applied_id;
        ASSERT_EQ(info.item_count, replay.count());
        if (killed % 2 == 0) before = updates.apply_next(*writer);
      }
      ASSERT_EQ(state.check(), std::vector<std::string>{}) << "after " << killed << " kills";
    }
    run->stop = true;
    for (const auto& reader : readers) EXPECT_EQ(reader->wait(), "");
    reads += run->reads;
    updates_applied += run->updates;
  }
  std::printf(
      "kills=%lu recovered=%lu updates=%lu checked_reads=%lu bad=0 take_over_ms p50=%.2f "
      "p99=%.2f max=%.2f\n",
      killed, recovered, updates_applied, reads, percentile(take_over_ms, 0.5),
      percentile(take_over_ms, 0.99), percentile(take_over_ms, 1));
  EXPECT_GT(recovered, kills / 4);
}

// Readers are killed while they hold views. The writer must neither wait for them nor keep their
// space.
TEST(KillLong, killed_readers_keep_no_space) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  const TemporaryDirectory directory("/dev/shm");
  const std::string path = directory.file("killed.state");
  const MarkedUpdates updates(random(), 500, 400);
  const TestState state(path);
  const SharedWithChildren<MarkedRun> run;
  UpdateId id = 0;
  for (int kill = 0; kill < 100; ++kill) {
    ChildProcess reader([&]() -> std::string {
      const TestState child_state(path);
      std::vector<View> held;
      MarkedReader checked(*child_state, updates, 1);
      for (;;) {
        if (held.size() < 50) held.push_back(child_state.view());
        if (std::string fault = checked.check_once(); !fault.empty()) return fault;
      }
    });
    for (int i = 0; i < 20; ++i) {
      const std::unique_ptr<StateWriter> writer = state->begin_write(TestState::deadline());
      for (int more = 0; more < 5; ++more) id = updates.apply_next(*writer);
    }
    std::this_thread::sleep_for(std::chrono::microseconds(random() % 5000));
    reader.kill(SIGKILL);
    ASSERT_EQ(reader.wait(), "died of signal 9");
  }
  for (int i = 0; i < 100; ++i) id = updates.apply_next(*state->begin_write(TestState::deadline()));
  const StateInspection inspection = state->inspect();
  EXPECT_EQ(inspection.processes.size(), 1U);
  std::printf("readers killed=100 updates=%lu file_bytes=%lu live_bytes=%lu\n", id,
              inspection.file_bytes, inspection.info.item_bytes);
  EXPECT_EQ(state.check(), std::vector<std::string>{});
}

}  // namespace
}  // namespace whycache
