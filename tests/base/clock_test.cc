#include "base/clock.h"
#include "base/boot.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

#include <stop_token>
#include <thread>

namespace whycache {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;

TEST(Clock, boot_time_never_goes_back) {
  std::int64_t before = boot_time_ns();
  EXPECT_GT(before, 0);
  for (int i = 0; i < 10'000; ++i) {
    const std::int64_t now = boot_time_ns();
    ASSERT_GE(now, before);
    before = now;
  }
}

TEST(Clock, wall_time_agrees_with_the_standard_library) {
  const auto now = std::chrono::system_clock::now().time_since_epoch();
  const std::int64_t expected_us =
      std::chrono::duration_cast<std::chrono::microseconds>(now).count();
  EXPECT_NEAR(static_cast<double>(wall_time_us()), static_cast<double>(expected_us), 60e6);
}

TEST(Clock, boot_id_is_set_and_constant) {
  const Uuid id = boot_id();
  EXPECT_NE(id, Uuid{});
  EXPECT_EQ(id, boot_id());
}

TEST(Deadline, deadline_passes_after_its_timeout) {
  const Deadline deadline(milliseconds(20));
  EXPECT_FALSE(deadline.passed());
  EXPECT_GT(deadline.remaining(), nanoseconds(0));
  EXPECT_LE(deadline.remaining(), milliseconds(20));

  std::this_thread::sleep_for(milliseconds(25));

  EXPECT_TRUE(deadline.passed());
  EXPECT_EQ(deadline.remaining(), nanoseconds(0));
}

TEST(Deadline, deadline_without_timeout_has_passed_immediately) {
  EXPECT_TRUE(Deadline(milliseconds(0)).passed());
  EXPECT_TRUE(Deadline(milliseconds(-5)).passed());
}

TEST(Deadline, sleep_ends_after_its_time_or_at_the_deadline) {
  const std::int64_t began_ns = boot_time_ns();
  Deadline(milliseconds(60'000)).sleep(milliseconds(20));
  EXPECT_GE(boot_time_ns() - began_ns, 20'000'000);
  Deadline(milliseconds(20)).sleep(milliseconds(60'000));
  std::stop_source never_stopped;
  Deadline(milliseconds(20), never_stopped.get_token()).sleep(nanoseconds::max());
  EXPECT_LT(boot_time_ns() - began_ns, 30'000'000'000);
}

TEST(Deadline, sleep_ends_when_a_stop_is_requested) {
  std::stop_source stop;
  const Deadline deadline(milliseconds(60'000), stop.get_token());
  std::thread stopping([&] {
    std::this_thread::sleep_for(milliseconds(30));
    stop.request_stop();
  });
  const std::int64_t began_ns = boot_time_ns();
  struct rusage before {};
  ::getrusage(RUSAGE_THREAD, &before);

  deadline.sleep(milliseconds(60'000));

  struct rusage after {};
  ::getrusage(RUSAGE_THREAD, &after);
  EXPECT_LT(boot_time_ns() - began_ns, 30'000'000'000);
  EXPECT_LE(after.ru_nvcsw - before.ru_nvcsw, 2) << "it woke up to look for the request";
  stopping.join();
}

}  // namespace
}  // namespace whycache
