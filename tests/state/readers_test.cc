// Readers beside a writer at full speed. They see no torn value, no half of an update, and never an
// older update id than before. WHYCACHE_READER_ROUNDS=10 for ten times as many updates and reads.
#include <gtest/gtest.h>

#include <array>
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
using testing::MarkedRun;
using testing::MarkedUpdates;
using testing::SharedWithChildren;
using testing::TemporaryDirectory;
using testing::TestState;
using Clock = std::chrono::steady_clock;

UpdateId write_for(const TestState& state, const MarkedUpdates& updates,
                   std::chrono::milliseconds time) {
  const auto end = Clock::now() + time;
  UpdateId id = 0;
  while (Clock::now() < end) {
    const std::unique_ptr<StateWriter> writer = state->begin_write(TestState::deadline());
    for (int i = 0; i < 20 && Clock::now() < end; ++i) id = updates.apply_next(*writer);
  }
  return id;
}

// How much is to be done at least, and with how many keys.
struct ReadersPlan {
  unsigned churn_count;
  unsigned growth_count;
  std::uint64_t updates;
  std::uint64_t reads;
};

// Writes until the updates and the reads of the plan are done, or a reader has found a fault, but
// for no longer than `at_most`. The readers do not run ahead: as many reads as there should be fall
// on each update.
UpdateId write_beside_readers(const TestState& state, const MarkedUpdates& updates,
                              const ReadersPlan& plan, std::chrono::minutes at_most,
                              MarkedRun& run) {
  const auto end = Clock::now() + at_most;
  UpdateId id = 0;
  while ((id < plan.updates || run.reads < plan.reads) && !run.stop && Clock::now() < end) {
    const std::unique_ptr<StateWriter> writer = state->begin_write(TestState::deadline());
    for (int i = 0; i < 20; ++i) {
      id = updates.apply_next(*writer);
      run.reads_max = plan.reads * id / plan.updates + 1;
    }
  }
  if (!run.stop) {
    EXPECT_TRUE(id >= plan.updates && run.reads >= plan.reads)
        << "not done in minutes=" << at_most.count() << " updates=" << id << " of " << plan.updates
        << " reads=" << run.reads << " of " << plan.reads;
  }
  return id;
}

TEST(ReadersLong, processes_read_only_whole_updates_beside_a_writer) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  const auto rounds = testing::number_from_environment("WHYCACHE_READER_ROUNDS", 1);
  const std::chrono::minutes at_most(5 * rounds);
  // First few keys, so that space is reused all the time. Then many, so that the index grows and
  // shrinks.
  for (const ReadersPlan& plan :
       {ReadersPlan{60, 400, 160'000 * rounds, 17'000'000 * rounds},
        ReadersPlan{3'000, 40'000, 10'000 * rounds, 28'000'000 * rounds}}) {
    const TemporaryDirectory directory("/dev/shm");
    const std::string path = directory.file("read.state");
    const MarkedUpdates updates(random(), plan.churn_count, plan.growth_count);
    const TestState state(path);
    const SharedWithChildren<MarkedRun> run;
    std::vector<std::unique_ptr<ChildProcess>> readers;
    for (int i = 0; i < 4; ++i) {
      const std::uint64_t seed = random();
      readers.push_back(std::make_unique<ChildProcess>(
          [&]() -> std::string {
            const TestState child_state(path);
            return read_until_stopped(*child_state, updates, seed, *run);
          },
          60 * static_cast<int>(at_most.count()) + 60));
    }
    const UpdateId id = write_beside_readers(state, updates, plan, at_most, *run);
    run->stop = true;
    std::uint64_t bad = 0;
    for (const auto& reader : readers) {
      const std::string fault = reader->wait();
      EXPECT_EQ(fault, "");
      bad += !fault.empty();
    }
    const StateInspection inspection = state->inspect();
    std::printf(
        "readers=4 growth_keys=%u updates=%lu checked_reads=%lu bad=%lu reclaim_generation=%lu "
        "file_bytes=%lu index_pages=%lu\n",
        plan.growth_count, id, run->reads.load(), bad, inspection.reclaim_generation,
        inspection.file_bytes, inspection.index_pages);
    EXPECT_EQ(state.check(), std::vector<std::string>{});
  }
}

// Three threads that read until they are stopped.
class MarkedReaderThreads {
 public:
  MarkedReaderThreads(const State& state, const MarkedUpdates& updates, std::mt19937_64& random) {
    for (std::string& fault : faults_) {
      threads_.emplace_back([this, &state, &updates, &fault, seed = random()] {
        try {
          fault = read_until_stopped(state, updates, seed, run_);
        } catch (const std::exception& error) {
          fault = error.what();
        }
      });
    }
  }
  ~MarkedReaderThreads() { join(); }
  MarkedReaderThreads(const MarkedReaderThreads&) = delete;
  MarkedReaderThreads& operator=(const MarkedReaderThreads&) = delete;

  // Expects that no thread found a fault. Returns the number of checked reads.
  std::uint64_t stop() {
    join();
    for (const std::string& fault : faults_) EXPECT_EQ(fault, "");
    return run_.reads;
  }

 private:
  void join() {
    run_.stop = true;
    for (std::thread& thread : threads_) thread.join();
    threads_.clear();
  }

  MarkedRun run_;
  std::array<std::string, 3> faults_;
  std::vector<std::thread> threads_;
};

TEST(Readers, threads_read_only_whole_updates_beside_a_writer) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  const TemporaryDirectory directory("/dev/shm");
  const MarkedUpdates updates(random(), 100, 400);
  const TestState state(directory.file("read.state"));
  MarkedReaderThreads readers(*state, updates, random);
  const UpdateId id = write_for(state, updates, std::chrono::milliseconds(2000));
  const std::uint64_t reads = readers.stop();
  EXPECT_GT(reads, 100U);
  std::printf("reader threads=3 updates=%lu checked_reads=%lu\n", id, reads);
  EXPECT_EQ(state.check(), std::vector<std::string>{});
}

// The file is replaced repeatedly while threads read it.
TEST(Readers, threads_follow_repeated_file_replacement) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  const TemporaryDirectory directory("/dev/shm");
  const MarkedUpdates updates(random(), 100, 400);
  const TestState state(directory.file("read.state"));
  MarkedReaderThreads readers(*state, updates, random);
  int installs = 0;
  const auto end = Clock::now() + std::chrono::milliseconds(2000);
  UpdateId id = 0;
  while (Clock::now() < end) {
    id = write_for(state, updates, std::chrono::milliseconds(5));
    const std::unique_ptr<StateBuilder> builder = state->begin_build(testing::test_uuid, "test:");
    {
      const View all = state.view();
      std::vector<Item> items;
      for (const auto& item : all) items.push_back(item);
      builder->load(items, all.id());
      builder->finish_load(all.id(), state->info().chain);
      EXPECT_EQ(builder->info().digest, all.digest());
    }
    state->install(*builder);
    ++installs;
  }
  const std::uint64_t reads = readers.stop();
  std::printf("reader threads=3 installs=%d updates=%lu checked_reads=%lu\n", installs, id, reads);
  EXPECT_EQ(state.check(), std::vector<std::string>{});
}

// A get that begins after a write has returned sees that write, whichever file is current.
TEST(Readers, gets_see_completed_writes_across_file_replacement) {
  const TemporaryDirectory directory("/dev/shm");
  const TestState write_state(directory.file("read.state"));
  const TestState read_state(directory.file("read.state"));
  std::atomic<std::uint64_t> written{0};
  std::atomic<bool> stop{false};
  std::string faults[4];
  std::vector<std::thread> readers;
  for (std::string& fault : faults) {
    readers.emplace_back([&] {
      std::string value;
      std::uint64_t last = 0;
      while (!stop && fault.empty()) {
        const std::uint64_t before = written;
        if (before == 0) continue;
        try {
          const std::uint64_t read = read_state->get("counter", value) ? std::stoull(value) : 0;
          if (read < before)
            fault = "wrote " + std::to_string(before) + ", then read " + std::to_string(read);
          if (read < last)
            fault = "went back from " + std::to_string(last) + " to " + std::to_string(read);
          last = read;
        } catch (const std::exception& error) {
          fault = error.what();
        }
      }
    });
  }
  int installs = 0;
  const auto end = Clock::now() + std::chrono::milliseconds(2000);
  for (UpdateId id = 0; Clock::now() < end || installs < 3; ++installs) {
    {
      const HeldLock following = write_state->lock(StateLock::follow, TestState::deadline());
      const std::unique_ptr<StateBuilder> builder =
          write_state->begin_build(testing::test_uuid, "test:");
      const std::string value = std::to_string(written);
      const std::vector<Item> items{{"counter", value}};
      builder->load(items, id + 1);
      builder->finish_load(id + 1, 1);
      write_state->install(*builder);
    }
    // Some of these let the new file grow immediately.
    for (int i = 0; i < 5; ++i) {
      const std::unique_ptr<StateWriter> writer = write_state->begin_write(TestState::deadline());
      id = TestState::apply(*writer, {{"counter", std::to_string(written + 1)},
                                      {"large", std::string(300'000, 'x')}});
      ++written;
    }
  }
  stop = true;
  for (std::thread& reader : readers) reader.join();
  for (const std::string& fault : faults) EXPECT_EQ(fault, "");
  std::printf("installs=%d writes=%lu\n", installs, written.load());
}

}  // namespace
}  // namespace whycache
