// Allocations fail while a state is replaced. Readers of the old file must be able to continue.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <new>
#include <optional>
#include <string>
#include <thread>

#include "state/read/rcu.h"
#include "state/test_state.h"
#include "support/failing_allocation.h"
#include "support/mappings.h"
#include "support/program.h"

namespace whycache {
namespace {

using testing::TemporaryDirectory;
using testing::TestState;

// A thread that is in a read section for its whole life.
class LongRead {
 public:
  LongRead() {
    while (!reads_) std::this_thread::yield();
  }
  ~LongRead() {
    stop_ = true;
    thread_.join();
  }
  LongRead(const LongRead&) = delete;
  LongRead& operator=(const LongRead&) = delete;

 private:
  std::atomic<bool> reads_{false};
  std::atomic<bool> stop_{false};
  std::thread thread_{[this] {
    const ReadSection reading;
    reads_ = true;
    while (!stop_) std::this_thread::yield();
  }};
};

TEST(NoMemory, failed_allocation_keeps_a_replaced_mapping_for_its_reader) {
  const TemporaryDirectory directory("/dev/shm");
  int failed = 0;
  bool was_reached = true;  // the allocation that has to fail
  for (long number = 1; was_reached; ++number) {
    const std::string path = directory.file(std::to_string(number) + ".state");
    TestState state(path);
    state.apply({{"key", "old"}});
    const std::unique_ptr<StateBuilder> builder = state->begin_build(testing::test_uuid, "test:");
    builder->finish_load(5, 7);
    std::optional<LongRead> read(std::in_place);
    const long before = testing::allocation_count;
    testing::allocations_until_failure = number;
    try {
      state->install(*builder);
    } catch (const std::bad_alloc&) {
      ++failed;
    } catch (const Error&) {
      ++failed;
    }
    testing::allocations_until_failure = 0;
    was_reached = testing::allocation_count - before >= number;
    const auto is_old = [](const std::string& mapping) { return mapping.ends_with("(deleted)"); };
    const auto old_mappings = [&] {
      int count = 0;
      for (const std::string& mapping : testing::mappings_of(path))
        count += is_old(mapping) ? 1 : 0;
      return count;
    };
    state->switch_if_replaced();
    const bool replaced = state->applied_id() == 5;
    EXPECT_EQ(old_mappings() > 0, replaced) << number;
    read.reset();
    state->switch_if_replaced();
    EXPECT_EQ(old_mappings(), 0) << number;
    EXPECT_EQ(state.get("key").has_value(), !replaced) << number;
  }
  EXPECT_GE(failed, 2);
  std::printf("failed=%d\n", failed);
}

TEST(NoMemory, first_read_of_a_thread_throws_and_does_not_abort) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers have an allocator of their own";
#endif
  const TemporaryDirectory directory("/dev/shm");
  const int status = testing::wait_for(testing::run_program(
      {WHYCACHE_TEST_BIN "/first_read_main", directory.file("a.state")}, directory.file("output")));
  EXPECT_EQ(status, 0) << testing::read_file(directory.file("output"));
}

}  // namespace
}  // namespace whycache
