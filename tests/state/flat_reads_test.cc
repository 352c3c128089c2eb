// The latency of reads does not depend on the writer, even while it reclaims space, splits the
// index, grows the file, or installs another file. The test shows this in two ways. First, it
// measures single gets beside the writer and on the same machine at rest. Second, it stops the
// writer midway: every get returns meanwhile, so none waits for the writer.
#include <gtest/gtest.h>
#include <sys/wait.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>
#include <thread>

#include "state/test_state.h"
#include "support/child_process.h"
#include "support/seed.h"

namespace whycache {
namespace {

using testing::ChildProcess;
using testing::TemporaryDirectory;
using testing::TestState;
using Clock = std::chrono::steady_clock;

constexpr unsigned stable_key_count = 20'000;
constexpr unsigned stop_count = 150;
constexpr unsigned gets_while_stopped = 300;
constexpr std::chrono::milliseconds measured_time{1'500};

std::string stable_key(unsigned i) {
  char key[16];
  std::snprintf(key, sizeof key, "stable:%08u", i);
  return key;
}
std::string stable_value(unsigned i) { return std::string(100, static_cast<char>('a' + i % 26)); }

std::vector<testing::TestChange> all_stable() {
  std::vector<testing::TestChange> changes;
  for (unsigned i = 0; i < stable_key_count; ++i)
    changes.push_back({stable_key(i), stable_value(i)});
  return changes;
}

// The phases' work: a writer calls one of these in a loop.
void overwrite(TestState& state, unsigned round) {
  std::vector<testing::TestChange> changes;
  for (unsigned i = 0; i < 100; ++i) {
    changes.push_back({"changing:" + std::to_string((round * 7919 + i * 104'729) % 20'000),
                       std::string(1000, 'x')});
  }
  state.apply(changes);
}
void insert_small(TestState& state, unsigned round) {
  std::vector<testing::TestChange> changes;
  for (unsigned i = 0; i < 1000; ++i)
    changes.push_back({"new:" + std::to_string(round) + ':' + std::to_string(i), ""});
  state.apply(changes);
}
void insert_large(TestState& state, unsigned round) {
  state.apply({{"large:" + std::to_string(round % 4000), std::string(300'000, 'x')}});
}
void rebuild(TestState& state, unsigned) {
  static const std::vector<testing::TestChange> changes = all_stable();
  std::vector<Item> items;
  for (const testing::TestChange& change : changes) items.push_back({change.key, *change.value});
  const HeldLock following = state->lock(StateLock::follow, TestState::deadline());
  const std::unique_ptr<StateBuilder> builder = state->begin_build(testing::test_uuid, "test:");
  builder->load(items, 1);
  builder->finish_load(1, 1);
  state->install(*builder);
}

struct Percentiles {
  double p50, p99, p999, p100;  // nanoseconds

  explicit Percentiles(std::vector<double> all) {
    std::sort(all.begin(), all.end());
    const auto at = [&](double share) {
      return all[static_cast<std::size_t>(share * static_cast<double>(all.size() - 1))];
    };
    p50 = at(0.5);
    p99 = at(0.99);
    p999 = at(0.999);
    p100 = all.back();
  }
};

class TimedReader {
 public:
  TimedReader(const State& state, std::uint64_t seed) : state_(state), random_(seed) {}

  // Returns the nanoseconds that one get took.
  double get() {
    const auto i = static_cast<unsigned>(random_() % stable_key_count);
    const std::string key = stable_key(i);
    const Clock::time_point begin = Clock::now();
    const bool found = state_.get(key, value_);
    const double took = std::chrono::duration<double, std::nano>(Clock::now() - begin).count();
    if (!found || value_ != stable_value(i)) ++wrong_count_;
    return took;
  }
  Percentiles get_for(std::chrono::milliseconds time) {
    std::vector<double> took;
    for (const auto end = Clock::now() + time; Clock::now() < end;) took.push_back(get());
    return Percentiles(std::move(took));
  }
  unsigned wrong_count() const { return wrong_count_; }

 private:
  const State& state_;
  std::mt19937_64 random_;
  std::string value_;
  unsigned wrong_count_ = 0;
};

struct Phase {
  const char* name;
  void (*write)(TestState& state, unsigned round);
  // A number that changes when the phase does its work.
  std::uint64_t (*progress)(const StateInspection& inspection);
};

constexpr Phase phases[] = {
    {"segments reclaimed", overwrite,
     [](const StateInspection& inspection) { return inspection.reclaim_generation; }},
    {"index pages split", insert_small,
     [](const StateInspection& inspection) { return inspection.index_pages; }},
    {"file grows", insert_large,
     [](const StateInspection& inspection) { return inspection.file_bytes; }},
    {"files switched", rebuild,
     [](const StateInspection& inspection) { return inspection.info.state_id; }},
};

void print_percentiles(const char* phase, const Percentiles& percentiles) {
  std::printf("%-20s p50 %7.0f ns   p99 %7.0f   p99.9 %7.0f   longest %9.0f\n", phase,
              percentiles.p50, percentiles.p99, percentiles.p999, percentiles.p100);
}

// Stops the child wherever it is. Returns false if it has ended instead.
bool stop_process(const ChildProcess& child) {
  child.kill(SIGSTOP);
  int status = 0;
  return ::waitpid(child.id(), &status, WUNTRACED) == child.id() && WIFSTOPPED(status);
}

TEST(FlatReadsLongAlone, get_never_waits_for_the_writer) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  for (const Phase& phase : phases) {
    SCOPED_TRACE(phase.name);
    const TemporaryDirectory directory("/dev/shm");
    const std::string path = directory.file("flat.state");
    TestState state(path);
    state.apply(all_stable());
    overwrite(state, 0);
    TimedReader reader(*state, random());
    reader.get_for(std::chrono::milliseconds(100));
    const Percentiles rest = reader.get_for(measured_time);

    const std::uint64_t before = phase.progress(state->inspect());
    const ChildProcess writer(
        [&]() -> std::string {
          TestState child_state(path);
          for (unsigned round = 1;; ++round) phase.write(child_state, round);
        },
        300);
    const Percentiles beside = reader.get_for(measured_time);
    double longest_while_stopped = 0;
    for (unsigned i = 0; i < stop_count; ++i) {
      ASSERT_TRUE(stop_process(writer));
      for (unsigned gets = 0; gets < gets_while_stopped; ++gets) {
        longest_while_stopped = std::max(longest_while_stopped, reader.get());
      }
      writer.kill(SIGCONT);
      std::this_thread::sleep_for(std::chrono::microseconds(random() % 5000));
    }
    state->switch_if_replaced();
    EXPECT_NE(phase.progress(state->inspect()), before) << "the phase did not happen";
    EXPECT_EQ(reader.wrong_count(), 0U);
    print_percentiles("at rest", rest);
    print_percentiles(phase.name, beside);
    std::printf("%-20s %u times, longest get %.0f ns\n", "  writer stopped", stop_count,
                longest_while_stopped);
    // A get that waits for the writer would take milliseconds. Other processes of the machine may
    // preempt one get in a thousand.
    EXPECT_LT(beside.p99, 20 * rest.p99 + 20'000);
    EXPECT_LT(longest_while_stopped, 1e9);
  }
}

}  // namespace
}  // namespace whycache
