#include "base/backoff.h"

#include <gtest/gtest.h>

#include <vector>

namespace whycache {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using std::chrono::seconds;

constexpr milliseconds long_timeout = seconds(60);

std::vector<nanoseconds> next_pauses(Backoff& backoff, int count) {
  std::vector<nanoseconds> pauses;
  for (int i = 0; i < count; ++i) pauses.push_back(backoff.next_pause().value());
  return pauses;
}

TEST(Backoff, pauses_double_up_to_the_longest) {
  Backoff backoff(long_timeout, {milliseconds(3), milliseconds(20)});

  EXPECT_EQ(next_pauses(backoff, 5),
            (std::vector<nanoseconds>{milliseconds(3), milliseconds(6), milliseconds(12),
                                      milliseconds(20), milliseconds(20)}));
  EXPECT_EQ(backoff.pause_count(), 5);
}

TEST(Backoff, reset_restarts_pauses_and_timeout) {
  Backoff backoff(long_timeout, {milliseconds(3), milliseconds(20)});
  const nanoseconds before = backoff.deadline().remaining();
  next_pauses(backoff, 3);

  backoff.reset();

  EXPECT_EQ(backoff.pause_count(), 0);
  EXPECT_EQ(backoff.next_pause(), milliseconds(3));
  EXPECT_GT(backoff.deadline().remaining(), before - milliseconds(1'000));
  EXPECT_EQ(backoff.timeout(), long_timeout);
}

TEST(Backoff, jitter_shortens_each_pause_by_at_most_its_share) {
  Backoff backoff(long_timeout, {milliseconds(100), milliseconds(100), 0.5});
  bool differs = false;
  for (const nanoseconds pause : next_pauses(backoff, 20)) {
    EXPECT_GE(pause, milliseconds(50));
    EXPECT_LE(pause, milliseconds(100));
    differs = differs || pause < milliseconds(99);
  }
  EXPECT_TRUE(differs);
}

TEST(Backoff, last_pause_ends_at_the_deadline) {
  Backoff backoff(milliseconds(20), {seconds(60), seconds(60)});

  EXPECT_TRUE(backoff.pause());
  EXPECT_FALSE(backoff.pause());
  EXPECT_EQ(backoff.next_pause(), std::nullopt);
  EXPECT_EQ(backoff.pause_count(), 1);
}

TEST(Backoff, deadline_of_the_caller_ends_pauses) {
  Backoff backoff(Deadline(milliseconds(0)), {milliseconds(1), milliseconds(1)});

  EXPECT_FALSE(backoff.pause());
  EXPECT_EQ(backoff.timeout(), milliseconds(0));
}

}  // namespace
}  // namespace whycache
