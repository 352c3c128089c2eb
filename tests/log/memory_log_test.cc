// The log in memory: sharing within a process, and fork().
#include "log/memory_log.h"

#include <gtest/gtest.h>

#include "log/child.h"
#include "log/root_tests.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

using testing::expect_error;
using testing::thrown_error;

TEST(MemoryLog, unnamed_logs_are_independent) {
  MemoryLog first;
  MemoryLog second;
  EXPECT_EQ(first.append(1, "x"), Log::Appended::yes);
  EXPECT_EQ(second.extent().head, 0U);
  EXPECT_NE(first.extent().uuid, second.extent().uuid);
}

TEST(MemoryLog, named_log_is_shared_and_outlives_its_handles) {
  const auto first = MemoryLog::shared("a_name");
  ASSERT_EQ(first->append(1, "x"), Log::Appended::yes);
  const Uuid uuid = MemoryLog::shared("a_name")->extent().uuid;
  EXPECT_EQ(uuid, first->extent().uuid);
  EXPECT_EQ(MemoryLog::shared("a_name")->extent().head, 1U);
  EXPECT_EQ(MemoryLog::shared("another_name")->extent().head, 0U);
}

TEST(MemoryLog, append_beyond_next_id_returns_taken) {
  MemoryLog log;
  EXPECT_EQ(log.append(2, "x"), Log::Appended::taken);
  EXPECT_EQ(log.extent().head, 0U);
}

TEST(MemoryLog, append_of_reserved_id_or_empty_update_is_invalid) {
  MemoryLog log;
  expect_error(
      ErrorKind::invalid, [&] { log.append(0, "x"); }, "id=0");
  expect_error(
      ErrorKind::invalid, [&] { log.append(1, ""); }, "empty");
}

TEST(MemoryLog, child_may_destroy_log_that_thread_of_parent_waits_for) {
  auto log = std::make_unique<MemoryLog>();
  std::thread waiter([&] { log->wait(0, std::chrono::milliseconds(500)); });
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  Child child([&] {
    ::alarm(20);
    log.reset();
  });
  EXPECT_EQ(child.wait(), 0);
  waiter.join();
}

// The child has a copy of the log: no other process would read its append.
TEST(MemoryLog, append_in_forked_child_is_invalid) {
  const auto log = MemoryLog::shared("a_parent");
  ASSERT_EQ(log->append(1, "x"), Log::Appended::yes);
  Child child([&] {
    const auto opened_again = MemoryLog::shared("a_parent");
    for (MemoryLog* each : {log.get(), opened_again.get()}) {
      const auto error = thrown_error([&] { each->append(2, "lost"); });
      require(error && error->kind() == ErrorKind::invalid, "an append in the child is refused");
    }
    MemoryLog own;
    require(own.append(1, "x") == Log::Appended::yes, "the child may have a log of its own");
  });
  EXPECT_EQ(child.wait(), 0);
  EXPECT_EQ(log->append(2, "y"), Log::Appended::yes);
}

}  // namespace
}  // namespace whycache
