// What a thread says of its reads, on which it hangs when a file that was replaced is unmapped.
#include "state/read/rcu.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <thread>

#include "state/test_state.h"
#include "support/child_process.h"

namespace whycache {
namespace {

using testing::TestState;

TEST(ReaderThreads, failed_value_allocation_ends_the_read_section) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers need address space of their own";
#endif
  const testing::TemporaryDirectory folder("/dev/shm");
  const TestState state(folder.file("large.state"));
  const std::unique_ptr<StateWriter> writer = state->begin_write(TestState::deadline());
  TestState::apply(*writer, {{"large key", std::string(8 << 20, 'x')}, {"small key", "small"}});
  EXPECT_EQ(testing::run_in_child([&]() -> std::string {
              std::string value;
              if (!state->get("small key", value)) return "small key is not there";
              struct rlimit limit;
              ::getrlimit(RLIMIT_AS, &limit);
              limit.rlim_cur = 1 << 20;  // less than there is: no more memory
              ::setrlimit(RLIMIT_AS, &limit);
              void* volatile taken;  // what was given back before, too
              do {
                taken = std::malloc(1 << 20);
              } while (taken != nullptr);
              try {
                state->get("large key", value);
                return "there was memory";
              } catch (const std::bad_alloc&) {
              }
              if (this_reader.thread->reading != 0) return "still reading";
              return state->get("small key", value) && value == "small" ? "" : "small key is gone";
            }),
            "");
}

TEST(ReaderThreads, grace_periods_elapse_beside_a_busy_reader) {
  const testing::TemporaryDirectory folder("/dev/shm");
  TestState state(folder.file("busy.state"));
  state.apply({{"some key", std::string(100, 'x')}});
  std::atomic<bool> stop = false;
  std::atomic<std::uint64_t> reads = 0;
  std::thread reader([&] {
    std::string value;
    while (!stop.load(std::memory_order_relaxed)) {
      state->get("some key", value);
      reads.fetch_add(1, std::memory_order_relaxed);
    }
  });
  while (reads < 1000) std::this_thread::yield();
  int periods = 0;
  const Deadline deadline(std::chrono::seconds(30));
  while (periods < 100 && !deadline.passed()) {
    GracePeriod period;
    while (!period.elapsed() && !deadline.passed()) {
    }
    ++periods;
  }
  stop = true;
  reader.join();
  EXPECT_EQ(periods, 100);
}

}  // namespace
}  // namespace whycache
