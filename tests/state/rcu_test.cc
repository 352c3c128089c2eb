// Read sections of threads, on which the unmapping of a replaced file depends.
#include "state/read/rcu.h"

#include <gtest/gtest.h>
#include <linux/membarrier.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <new>
#include <thread>

#include "state/test_state.h"
#include "support/child_process.h"

namespace whycache {
namespace {

using testing::TestState;

// A value of 8 MiB takes the slow path.
class ReaderWithoutMemory : public ::testing::TestWithParam<std::size_t> {};

TEST_P(ReaderWithoutMemory, failed_value_allocation_ends_the_read_section) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers need more address space than the limit";
#endif
  const testing::TemporaryDirectory directory("/dev/shm");
  const TestState state(directory.file("large.state"));
  const std::unique_ptr<StateWriter> writer = state->begin_write(TestState::deadline());
  TestState::apply(*writer, {{"large key", std::string(GetParam(), 'x')}, {"small key", "small"}});
  EXPECT_EQ(testing::run_in_child([&]() -> std::string {
              std::string value;
              if (!state->get("small key", value)) return "small key not found";
              struct rlimit limit;
              ::getrlimit(RLIMIT_AS, &limit);
              limit.rlim_cur =
                  1 << 20;  // less than is in use: no allocation of address space succeeds
              ::setrlimit(RLIMIT_AS, &limit);
              void* volatile taken;  // use up what the allocator has cached
              for (const std::size_t bytes : {1 << 20, 30'000}) {
                do {
                  taken = std::malloc(bytes);
                } while (taken != nullptr);
              }
              try {
                state->get("large key", value);
                return "the allocation succeeded";
              } catch (const std::bad_alloc&) {
              }
              if (this_reader.thread->reading != 0) return "the read section has not ended";
              return state->get("small key", value) && value == "small"
                         ? ""
                         : "small key not found afterwards";
            }),
            "");
}

INSTANTIATE_TEST_SUITE_P(ValueBytes, ReaderWithoutMemory, ::testing::Values(60'000, 8 << 20));

// Registering later would make every view that is opened meanwhile wait for the kernel.
TEST(ReaderThreads, process_is_registered_for_membarrier_when_library_is_loaded) {
  const auto is_registered = [] {
    return ::syscall(SYS_membarrier, MEMBARRIER_CMD_PRIVATE_EXPEDITED, 0, 0) == 0;
  };
  EXPECT_TRUE(is_registered());
  EXPECT_EQ(testing::run_in_child([&]() -> std::string { return is_registered() ? "" : "not"; }),
            "");
}

TEST(ReaderThreads, grace_periods_elapse_beside_a_busy_reader) {
  const testing::TemporaryDirectory directory("/dev/shm");
  TestState state(directory.file("busy.state"));
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
