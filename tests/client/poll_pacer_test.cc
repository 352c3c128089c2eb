#include "client/poll_pacer.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using std::chrono::seconds;

// A follower whose clock the test moves.
class Follower {
 public:
  explicit Follower(const FollowPace& pace = {}, std::uint64_t random = 0)
      : pacer_(pace, [random] { return random; }) {}

  // Polls when the pacer says so. Returns how long it waited before.
  nanoseconds poll(bool found_updates) {
    const nanoseconds waited = std::max(pacer_.time_left(now_), nanoseconds(0));
    now_ += waited;
    pacer_.note_poll(now_, found_updates, notifies);
    return waited;
  }
  void pass(nanoseconds time) { now_ += time; }
  void notify() { pacer_.note_notification(now_); }

  bool notifies = false;

 private:
  PollPacer::Clock::time_point now_{std::chrono::hours(1)};
  PollPacer pacer_;
};

TEST(PollPacer, first_poll_is_made_at_once) { EXPECT_EQ(Follower().poll(false), nanoseconds(0)); }

TEST(PollPacer, interval_is_the_shortest_while_updates_arrive) {
  Follower follower;
  follower.poll(true);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(follower.poll(true), milliseconds(5));
}

TEST(PollPacer, interval_doubles_up_to_the_longest_while_idle) {
  Follower follower;
  follower.poll(true);
  EXPECT_EQ(follower.poll(false), milliseconds(5));
  for (const int ms : {10, 20, 40, 80, 160, 320, 640, 1280, 2000, 2000})
    EXPECT_EQ(follower.poll(false), milliseconds(ms));
  EXPECT_EQ(follower.poll(true), milliseconds(2000));
  EXPECT_EQ(follower.poll(true), milliseconds(5)) << "an update makes it the shortest again";
}

TEST(PollPacer, jitter_leaves_out_up_to_a_quarter) {
  const FollowPace steady{.interval_min = seconds(1), .interval_max = seconds(1)};
  for (const std::uint64_t random : {0ULL, 1ULL << 15, (1ULL << 16) - 1, ~0ULL}) {
    Follower follower(steady, random);
    follower.poll(false);
    const nanoseconds waited = follower.poll(false);
    EXPECT_LE(waited, seconds(1));
    EXPECT_GE(waited, milliseconds(750));
    if (random == 1ULL << 15) {
      EXPECT_NEAR(static_cast<double>(waited.count()) / 1e9, 0.875, 0.001);
    }
  }
}

TEST(PollPacer, notification_is_followed_by_a_poll_at_once) {
  Follower follower;
  follower.notifies = true;
  follower.poll(false);
  follower.poll(false);
  for (int i = 0; i < 20; ++i) {
    follower.notify();
    EXPECT_EQ(follower.poll(true), nanoseconds(0));
  }
}

TEST(PollPacer, log_that_notified_of_an_update_is_polled_at_its_longest_interval) {
  Follower follower;
  follower.notifies = true;
  follower.poll(true);
  follower.notify();
  follower.poll(true);
  EXPECT_EQ(follower.poll(false), seconds(20));
}

TEST(PollPacer, fleet_of_a_log_that_notifies_polls_at_its_longest_interval_at_most) {
  for (const std::uint64_t random : {0ULL, 1ULL << 15, (1ULL << 16) - 1}) {
    Follower follower({}, random);
    follower.notifies = true;
    follower.poll(true);
    follower.notify();
    follower.poll(true);
    const nanoseconds waited = follower.poll(false);
    EXPECT_GE(waited, seconds(20));
    EXPECT_LE(waited, seconds(25));
  }
}

TEST(PollPacer, log_that_lost_a_notification_is_polled_like_others) {
  Follower follower;
  follower.notifies = true;
  follower.notify();
  follower.poll(true);
  EXPECT_EQ(follower.poll(true), seconds(20)) << "without a notification";
  EXPECT_EQ(follower.poll(true), milliseconds(5));
  EXPECT_EQ(follower.poll(false), milliseconds(5));
  EXPECT_EQ(follower.poll(false), milliseconds(10));
}

TEST(PollPacer, notification_before_its_update_is_visible_is_followed_by_polls_soon) {
  Follower follower;
  follower.notifies = true;
  follower.poll(false);
  follower.notify();
  EXPECT_EQ(follower.poll(false), nanoseconds(0));
  EXPECT_EQ(follower.poll(false), milliseconds(5));
  EXPECT_EQ(follower.poll(true), milliseconds(10));
}

TEST(PollPacer, flood_of_false_notifications_causes_few_polls) {
  Follower follower;
  follower.notifies = true;
  nanoseconds waited{0};
  for (int i = 0; i < 1000; ++i) {
    follower.notify();
    waited += follower.poll(false);
  }
  EXPECT_GT(waited, seconds(90));
  follower.notify();
  EXPECT_LE(follower.poll(true), milliseconds(100)) << "a true one among them is not lost";
  follower.notify();
  EXPECT_EQ(follower.poll(true), nanoseconds(0)) << "forgiven";
}

TEST(PollPacer, shortest_interval_above_the_longest_one_is_kept) {
  Follower follower({.interval_min = seconds(30)});
  follower.poll(true);
  EXPECT_EQ(follower.poll(false), seconds(30));
  EXPECT_EQ(follower.poll(false), seconds(30));
}

TEST(PollPacer, log_that_stops_notifying_is_polled_at_its_own_interval) {
  Follower follower;
  follower.notifies = true;
  follower.notify();
  follower.poll(true);
  follower.notifies = false;
  follower.poll(false);
  EXPECT_EQ(follower.poll(false), seconds(2));
}

}  // namespace
}  // namespace whycache::testing
