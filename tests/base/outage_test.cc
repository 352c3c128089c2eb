#include "base/outage.h"

#include <gtest/gtest.h>

#include <chrono>
#include <optional>
#include <vector>

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::minutes;
using std::chrono::nanoseconds;
using std::chrono::seconds;

const Outage::Clock::time_point start{std::chrono::hours(1)};

TEST(Outage, that_lasts_is_reported_at_growing_intervals_with_its_duration) {
  Outage outage;
  std::vector<std::int64_t> minutes_reported;
  for (seconds passed{0}; passed < std::chrono::hours(6); passed += seconds(1)) {
    if (const auto lasted = outage.note_failure(start + passed)) {
      EXPECT_EQ(*lasted, passed);
      minutes_reported.push_back(std::chrono::duration_cast<minutes>(*lasted).count());
    }
  }
  EXPECT_EQ(minutes_reported,
            (std::vector<std::int64_t>{0, 1, 3, 7, 15, 31, 63, 123, 183, 243, 303}));
}

TEST(Outage, that_ends_says_how_long_it_lasted) {
  Outage outage;
  EXPECT_FALSE(outage.is_under_way());
  EXPECT_EQ(outage.note_success(start), std::nullopt) << "there was none";
  EXPECT_EQ(outage.note_failure(start), nanoseconds(0));
  EXPECT_EQ(outage.note_failure(start + seconds(1)), std::nullopt);
  EXPECT_TRUE(outage.is_under_way());
  EXPECT_EQ(outage.note_success(start + seconds(2)), seconds(2));
  EXPECT_EQ(outage.note_success(start + seconds(3)), std::nullopt);
  EXPECT_FALSE(outage.is_under_way());
}

TEST(Outage, that_comes_and_goes_is_not_reported_each_time) {
  Outage outage;
  int reports = 0;
  int recoveries = 0;
  milliseconds passed{0};
  for (; passed < minutes(1); passed += milliseconds(100)) {
    reports += outage.note_failure(start + passed).has_value();
    recoveries += outage.note_success(start + passed + milliseconds(50)).has_value();
  }
  EXPECT_EQ(reports, 6);
  EXPECT_EQ(recoveries, reports) << "of those that were reported";
  EXPECT_EQ(outage.note_failure(start + passed + minutes(1)), nanoseconds(0));
}

}  // namespace
}  // namespace whycache::testing
