// Processes contend for a lock. Each gets its share, even if others die or are stopped.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <ctime>
#include <memory>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "base/clock.h"
#include "base/file.h"
#include "base/process_lock.h"
#include "state/file/lock_file.h"
#include "state/test_state.h"
#include "support/child_process.h"

namespace whycache {
namespace {

using std::chrono::milliseconds;
using testing::ChildProcess;
using testing::SharedWithChildren;
using testing::TemporaryDirectory;
using testing::TestState;

constexpr std::size_t process_count = 5;
constexpr std::uint64_t append_gate = 15;

struct Turns {
  std::atomic<std::size_t> ready{0};
  std::atomic<bool> go{false};
  std::atomic<bool> stop{false};
  std::array<std::atomic<std::uint64_t>, process_count> count{};
};

StateOptions small_options() {
  StateOptions options;
  options.bytes_max = std::uint64_t{64} << 20;
  return options;
}

// The words of a lock file.
class MappedHeader {
 public:
  explicit MappedHeader(const std::string& path) {
    const FileDescriptor file = open_file(path, O_RDWR);
    void* const mapped = ::mmap(nullptr, sizeof(LockFileHeader), PROT_READ | PROT_WRITE, MAP_SHARED,
                                file.number(), 0);
    if (mapped == MAP_FAILED) throw std::runtime_error("cannot map the lock file");
    header_ = static_cast<LockFileHeader*>(mapped);
  }
  ~MappedHeader() { ::munmap(header_, sizeof(LockFileHeader)); }
  MappedHeader(const MappedHeader&) = delete;
  MappedHeader& operator=(const MappedHeader&) = delete;

  LockFileHeader* operator->() const { return header_; }

 private:
  LockFileHeader* header_;
};

class LockQueueTest : public ::testing::Test {
 protected:
  // Each process takes the lock, holds it for half a millisecond, and takes it again immediately.
  void start_processes() {
    for (std::size_t i = 0; i < process_count; ++i) {
      processes_.push_back(std::make_unique<ChildProcess>([this, i]() -> std::string {
        const TestState state(path_, small_options());
        ++turns_->ready;
        while (!turns_->go) ::usleep(100);
        while (!turns_->stop) {
          const HeldLock held = state->lock(StateLock::append, Deadline(milliseconds(20'000)));
          ::usleep(500);
          ++turns_->count[i];
        }
        return "";
      }));
    }
    while (turns_->ready < process_count) ::usleep(1000);
    turns_->go = true;
  }
  void stop_processes() {
    turns_->stop = true;
    for (const auto& process : processes_) EXPECT_EQ(process->wait(), "");
  }
  std::uint64_t turns() const {
    return std::accumulate(turns_->count.begin(), turns_->count.end(), std::uint64_t{0});
  }

  TemporaryDirectory directory_;
  std::string path_ = directory_.file("a.state");
  TestState state_{path_, small_options()};
  const MappedHeader header_{path_ + ".lock"};
  SharedWithChildren<Turns> turns_;
  std::vector<std::unique_ptr<ChildProcess>> processes_;
};

TEST_F(LockQueueTest, each_contending_process_gets_its_share) {
  start_processes();
  while (turns() < 1500) ::usleep(1000);
  stop_processes();

  const std::uint64_t least = *std::min_element(turns_->count.begin(), turns_->count.end());
  EXPECT_GE(least, turns() / process_count / 4);
}

// The words are hints: any value in them must be harmless.
TEST_F(LockQueueTest, random_waiter_words_do_not_block_the_lock) {
  start_processes();
  std::uint32_t value = 0;
  while (turns() < 1000) {
    for (std::atomic<std::uint32_t>& word : header_->waiters) word = value * 0x9e3779b9U >> 30;
    header_->append_is_awaited = value * 0x9e3779b9U >> 31;
    ++value;
    ::usleep(20);
  }
  stop_processes();
  EXPECT_GT(*std::min_element(turns_->count.begin(), turns_->count.end()), 0U);
}

TEST_F(LockQueueTest, lock_of_a_dead_holder_passes_to_a_waiter) {
  for (int round = 0; round < 10; ++round) {
    const SharedWithChildren<std::atomic<bool>> is_held;
    ChildProcess holder([&]() -> std::string {
      const TestState state(path_, small_options());
      const HeldLock held = state->lock(StateLock::append, Deadline(milliseconds(20'000)));
      *is_held = true;
      for (;;) ::pause();
    });
    while (!*is_held) ::usleep(100);
    ChildProcess next([&]() -> std::string {
      const TestState state(path_, small_options());
      const HeldLock held = state->lock(StateLock::append, Deadline(milliseconds(20'000)));
      return "";
    });
    ::usleep(5000);
    const std::int64_t killed_ns = boot_time_ns();
    holder.kill(SIGKILL);
    holder.wait();
    EXPECT_EQ(next.wait(), "");
    EXPECT_LT(boot_time_ns() - killed_ns, 2'000'000'000);
  }
}

// A waiter that only polled, once per millisecond, would get the lock after half a millisecond on
// average.
TEST_F(LockQueueTest, release_wakes_the_next_waiter) {
  const SharedWithChildren<std::atomic<std::int64_t>> taken_at_ns;
  std::vector<std::int64_t> waits_ns;
  for (int round = 0; round < 51; ++round) {
    auto held =
        std::make_unique<HeldLock>(state_->lock(StateLock::append, Deadline(milliseconds(20'000))));
    ChildProcess next([&]() -> std::string {
      const TestState state(path_, small_options());
      const HeldLock taken = state->lock(StateLock::append, Deadline(milliseconds(20'000)));
      *taken_at_ns = boot_time_ns();
      return "";
    });
    ::usleep(static_cast<unsigned>(8000 + round * 37));  // the waiter polls every millisecond now
    const std::int64_t released_ns = boot_time_ns();
    held.reset();
    EXPECT_EQ(next.wait(), "");
    waits_ns.push_back(*taken_at_ns - released_ns);
  }
  std::sort(waits_ns.begin(), waits_ns.end());
  EXPECT_LT(waits_ns[waits_ns.size() / 2], 350'000);
}

// The word changes all the time, so the futex call returns immediately each time.
TEST_F(LockQueueTest, waiter_that_cannot_sleep_on_word_uses_no_cpu) {
  const HeldLock held = state_->lock(StateLock::follow, Deadline(milliseconds(20'000)));
  const SharedWithChildren<std::atomic<bool>> done;
  ChildProcess waiter([&]() -> std::string {
    const TestState state(path_, small_options());
    timespec before{};
    timespec after{};
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &before);
    try {
      const HeldLock taken = state->lock(StateLock::follow, Deadline(milliseconds(500)));
    } catch (const Error&) {
    }
    ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &after);
    *done = true;
    const std::int64_t used_ns =
        (after.tv_sec - before.tv_sec) * 1'000'000'000 + after.tv_nsec - before.tv_nsec;
    return used_ns < 50'000'000 ? "" : "the waiter used the CPU: ns=" + std::to_string(used_ns);
  });
  while (!*done) header_->waiters[1] = 2;
  EXPECT_EQ(waiter.wait(), "");
}

TEST_F(LockQueueTest, append_lock_is_taken_without_the_gate_if_no_process_waits) {
  const FileDescriptor file = open_file(path_ + ".lock", O_RDWR);
  ASSERT_TRUE(try_lock_byte(file.number(), append_gate));
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(state_->try_lock(StateLock::append));
}

// Nothing but the gate keeps a process that releases the lock from taking it again before a waiter
// wakes up.
TEST_F(LockQueueTest, append_lock_is_not_taken_past_a_process_that_waits) {
  const FileDescriptor file = open_file(path_ + ".lock", O_RDWR);
  // Given a process that has passed the gate and waits for the lock,
  std::optional<HeldLock> held = state_->lock(StateLock::append, Deadline(milliseconds(20'000)));
  ChildProcess waiter([&]() -> std::string {
    const TestState state(path_, small_options());
    const HeldLock lock = state->lock(StateLock::append, Deadline(milliseconds(20'000)));
    return "";
  });
  while (header_->append_is_awaited == 0) ::usleep(100);
  // and one that takes the next place at the gate before the first one gets the lock,
  held.reset();
  EXPECT_EQ(waiter.wait(), "");
  // (the next one that passes the gate finds that none waits)
  EXPECT_TRUE(state_->try_lock(StateLock::append));
  EXPECT_EQ(header_->append_is_awaited, 0U);
  ASSERT_TRUE(try_lock_byte(file.number(), append_gate));
  header_->append_is_awaited = 1;
  // a third one stays behind it, although the lock is free,
  EXPECT_FALSE(state_->try_lock(StateLock::append));
  unlock_byte(file.number(), append_gate);
  // and finds out if it has died.
  EXPECT_TRUE(state_->try_lock(StateLock::append));
  EXPECT_EQ(header_->append_is_awaited, 0U);
}

// As with a process of a version that always passes the gate, and does not say that it waits.
TEST_F(LockQueueTest, append_lock_is_not_taken_past_one_that_sleeps_without_saying_so) {
  const FileDescriptor file = open_file(path_ + ".lock", O_RDWR);
  ASSERT_TRUE(try_lock_byte(file.number(), append_gate));
  for (const std::uint64_t byte : {std::uint64_t{2}, append_gate}) {
    header_->waiters[byte] = 1;
    EXPECT_FALSE(state_->try_lock(StateLock::append)) << byte;
    header_->waiters[byte] = 0;
  }
  header_->append_is_awaited = 0;
  // A process that is woken does not sleep any more, and has not got the lock yet.
  std::optional<HeldLock> held = state_->try_lock(StateLock::append);
  ASSERT_TRUE(held);
  header_->waiters[2] = 1;
  held.reset();
  EXPECT_EQ(header_->append_is_awaited, 1U);
}

TEST_F(LockQueueTest, process_stopped_at_the_gate_does_not_block_others) {
  // Given a process that holds the gate and does nothing,
  const std::string lock_path = path_ + ".lock";
  const SharedWithChildren<std::atomic<bool>> at_gate;
  ChildProcess stopped([&]() -> std::string {
    const FileDescriptor file = open_file(lock_path, O_RDWR);
    if (!try_lock_byte(file.number(), append_gate)) return "the gate was held";
    *at_gate = true;
    for (;;) ::pause();
  });
  while (!*at_gate) ::usleep(1000);

  // the others get the lock anyway, only later,
  start_processes();
  while (turns() < 200) ::usleep(1000);
  stop_processes();
  const FileDescriptor file = open_file(lock_path, O_RDWR);
  EXPECT_FALSE(try_lock_byte(file.number(), append_gate));

  // and the gate is free again when that process dies.
  stopped.kill(SIGKILL);
  stopped.wait();
  EXPECT_TRUE(try_lock_byte(file.number(), append_gate));
}

}  // namespace
}  // namespace whycache
