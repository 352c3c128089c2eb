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

// The entry's memory is written again while the copy of its value waits for memory.
TEST(NoMemory, value_that_is_overwritten_while_its_copy_gets_memory_is_read_again) {
  const TemporaryDirectory directory("/dev/shm");
  TestState state(directory.file("a.state"));
  for (const std::size_t bytes : {100, 130, 3000, 60'000}) {
    for (const std::string key : {"short key", "a key of more than sixteen bytes", "key"}) {
      for (const std::string before : {"", "a string that has memory, but not enough"}) {
        state.apply({{key, std::string(bytes, '!')}});
        ASSERT_EQ(state.get(key), std::string(bytes, '!'));
        std::string value = before;
        value.shrink_to_fit();
        testing::during_allocation = [&] {
          for (int i = 0; i < 60; ++i) {
            state.apply({{key, std::string(bytes, static_cast<char>('a' + i % 26))},
                         {"other" + std::to_string(i % 7), std::string(60'000, 'z')}});
          }
        };
        ASSERT_TRUE(state->get(key, value));
        ASSERT_FALSE(testing::during_allocation) << "nothing was allocated: " << bytes;
        ASSERT_EQ(value.size(), bytes);
        ASSERT_EQ(value, std::string(bytes, value.front())) << "torn: " << key;
        ASSERT_NE(value.front(), 'z');
      }
    }
  }
}

// A replacement of operator new may read a cache of its own.
TEST(NoMemory, another_state_that_is_read_while_memory_is_allocated_changes_nothing) {
  const TemporaryDirectory directory("/dev/shm");
  TestState state(directory.file("a.state"));
  TestState other(directory.file("b.state"));
  for (const std::size_t bytes : {100, 3000}) {
    state.apply({{"key", std::string(bytes, 'a')}});
    other.apply({{"key", std::string(bytes + 1, 'b')}});
    // The first reads after a file has grown take the slow path.
    for (int i = 0; i < 3; ++i) {
      ASSERT_TRUE(state.get("key"));
      ASSERT_TRUE(other.get("key"));
    }
    std::string value;
    testing::during_allocation = [&] {
      ASSERT_EQ(other.get("key"), std::string(bytes + 1, 'b'));
      for (int i = 0; i < 300; ++i) other.apply({{"more", std::string(200'000, 'z')}});
    };
    ASSERT_TRUE(state->get("key", value));
    ASSERT_FALSE(testing::during_allocation);
    ASSERT_EQ(value, std::string(bytes, 'a'));
    ASSERT_EQ(this_reader.thread->reading, 0U);
  }
}

// Another part of the process may learn that the file has grown, before a read does.
TEST(NoMemory, try_read_of_file_that_has_grown_takes_no_memory) {
  const TemporaryDirectory directory("/dev/shm");
  TestState writer(directory.file("a.state"));
  const std::string key(300, 'k');  // too long for the fast path
  writer.apply({{key, "value"}});
  const TestState reader(directory.file("a.state"));
  ASSERT_EQ(reader.get(key), "value");
  EntryVersion version;
  ASSERT_EQ(reader->try_find_version(key, version), true);
  for (int i = 0; i < 100; ++i)
    writer.apply({{"filling" + std::to_string(i), std::string(100'000, 'f')}});

  reader->inspect();  // asks for the size
  testing::allocations_keep_failing = true;
  testing::allocations_until_failure = 1;
  const std::optional<bool> found = reader->try_find_version(key, version);
  testing::allocations_until_failure = 0;
  testing::allocations_keep_failing = false;

  EXPECT_EQ(found, std::nullopt);
  EXPECT_EQ(reader.get(key), "value");
  EXPECT_EQ(reader->try_find_version(key, version), true);
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
