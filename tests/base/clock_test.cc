#include "base/clock.h"

#include <gtest/gtest.h>

#include <thread>

namespace whycache {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;

TEST(Clock, of_the_boot_only_goes_forward) {
  std::int64_t before = boot_time_ns();
  EXPECT_GT(before, 0);
  for (int i = 0; i < 10'000; ++i) {
    const std::int64_t now = boot_time_ns();
    ASSERT_GE(now, before);
    before = now;
  }
}

TEST(Clock, on_the_wall_agrees_with_the_standard_library) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const std::int64_t expected_us =
      std::chrono::duration_cast<std::chrono::microseconds>(now).count();
  EXPECT_NEAR(static_cast<double>(wall_time_us()), static_cast<double>(expected_us), 60e6);
}

TEST(Clock, knows_this_boot) {
  const Uuid id = boot_id();
  EXPECT_NE(id, Uuid{});
  EXPECT_EQ(id, boot_id());
}

TEST(Deadline, passes_when_patience_is_over) {
  const Deadline deadline(milliseconds(20));
  EXPECT_FALSE(deadline.passed());
  EXPECT_GT(deadline.remaining(), nanoseconds(0));
  EXPECT_LE(deadline.remaining(), milliseconds(20));

  std::this_thread::sleep_for(milliseconds(25));

  EXPECT_TRUE(deadline.passed());
  EXPECT_EQ(deadline.remaining(), nanoseconds(0));
}

TEST(Deadline, without_patience_has_passed_at_once) {
  EXPECT_TRUE(Deadline(milliseconds(0)).passed());
  EXPECT_TRUE(Deadline(milliseconds(-5)).passed());
}

}  // namespace
}  // namespace whycache
