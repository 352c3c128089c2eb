// The head records in memcached that a process may trust, and their encoding. The protocol is
// tested against real servers in log/tiered_log_test.cc and client/tier_fleet_test.cc.
#include "log/head_tracker.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>

#include "log/head_record.h"

namespace whycache {
namespace {

using std::chrono::milliseconds;
using std::chrono::nanoseconds;
using std::chrono::seconds;

constexpr std::int64_t second_ns = 1'000'000'000;
constexpr std::int64_t own_poll_at = 100 * second_ns;

Extent extent_to(UpdateId head) { return {.uuid = {1}, .base = 0, .base_chain = 0, .head = head}; }

// A process that polled the log at second 100 and found `head`. A millisecond earlier it had read
// record 1 from memcached.
class PolledTracker : public HeadTracker {
 public:
  explicit PolledTracker(UpdateId head)
      : HeadTracker(extent_to(head), seconds(2), seconds(3600), 0) {
    record_own_poll(own_poll(own_poll_at), head, 0);
  }

  static OwnPoll own_poll(std::int64_t began_at_ns) {
    return {.prepared_at_ns = began_at_ns - 1'000'000,
            .began_at_ns = began_at_ns,
            .lease_id = 7,
            .record_id = 1};
  }
};

HeadRecord record_of(std::uint64_t record_id, UpdateId head) {
  return {.record_id = record_id, .head = head, .head_chain = 5, .lease_id = 9};
}

TEST(HeadTracker, log_must_be_polled_before_first_own_poll) {
  HeadTracker tracker(extent_to(3), seconds(2), seconds(3600), 0);
  EXPECT_TRUE(tracker.must_poll_log(3, seconds(5), own_poll_at));

  tracker.record_own_poll(PolledTracker::own_poll(own_poll_at), 3, 0);
  EXPECT_FALSE(tracker.must_poll_log(3, seconds(5), own_poll_at + 1));
  EXPECT_TRUE(tracker.must_poll_log(3, seconds(0), own_poll_at + 1));
}

TEST(HeadTracker, log_must_be_polled_after_own_poll_interval) {
  const PolledTracker tracker(3);
  EXPECT_FALSE(tracker.must_poll_log(3, seconds(5), own_poll_at + 3600 * second_ns - 1));
  EXPECT_TRUE(tracker.must_poll_log(3, seconds(5), own_poll_at + 3600 * second_ns));
}

TEST(HeadTracker, jitter_shortens_own_poll_interval_by_under_a_quarter) {
  HeadTracker tracker(extent_to(3), seconds(2), seconds(3600), 0);
  tracker.record_own_poll(PolledTracker::own_poll(own_poll_at), 3, 900 * second_ns - 1);
  EXPECT_FALSE(tracker.must_poll_log(3, seconds(5), own_poll_at + 2700 * second_ns));
  EXPECT_TRUE(tracker.must_poll_log(3, seconds(5), own_poll_at + 2700 * second_ns + 1));
}

TEST(HeadTracker, log_must_be_polled_after_rewrite_and_below_base) {
  PolledTracker tracker(3);
  tracker.record_extent({.uuid = {1}, .base = 2, .base_chain = 5, .head = 3});
  EXPECT_TRUE(tracker.must_poll_log(1, seconds(5), own_poll_at + 1));
  EXPECT_FALSE(tracker.must_poll_log(2, seconds(5), own_poll_at + 1));
  tracker.record_rewrite();
  EXPECT_TRUE(tracker.must_poll_log(2, seconds(5), own_poll_at + 1));
}

TEST(HeadTracker, failed_append_invalidates_head_until_log_returns_its_id) {
  PolledTracker tracker(3);
  tracker.invalidate_from(4, own_poll_at);
  tracker.record_extent(extent_to(3));
  EXPECT_TRUE(tracker.must_poll_log(3, seconds(5), own_poll_at + 1));
  tracker.record_extent(extent_to(4));
  EXPECT_FALSE(tracker.must_poll_log(3, seconds(5), own_poll_at + 1));
}

TEST(HeadTracker, failed_append_invalidates_head_no_longer_than_served_staleness) {
  PolledTracker tracker(3);
  tracker.invalidate_from(4, own_poll_at);
  const std::int64_t end_ns = own_poll_at + nanoseconds(tracker.served_staleness_max()).count();
  EXPECT_TRUE(tracker.must_poll_log(3, seconds(5), end_ns - 1));
  EXPECT_FALSE(tracker.must_poll_log(3, seconds(5), end_ns));
}

TEST(HeadTracker, own_poll_that_began_earlier_changes_nothing) {
  PolledTracker tracker(3);
  EXPECT_FALSE(tracker.record_own_poll(PolledTracker::own_poll(own_poll_at - 1), 9, 0));
  EXPECT_EQ(tracker.first_unproven_id(), 4U);
}

TEST(HeadTracker, known_record_beyond_own_poll_is_unproven) {
  const PolledTracker tracker(3);
  EXPECT_EQ(tracker.judge(record_of(1, 4), 3, 0), HeadVerdict::unproven);
  EXPECT_EQ(tracker.judge(record_of(1, 3), 3, 0), HeadVerdict::needs_updates);
}

TEST(HeadTracker, later_record_beyond_own_poll_is_proven) {
  const PolledTracker tracker(3);
  EXPECT_EQ(tracker.judge(record_of(1, 4), 3, own_poll_at), HeadVerdict::unproven);
  EXPECT_EQ(tracker.judge(record_of(1, 4), 3, own_poll_at + 1), HeadVerdict::needs_updates);
}

TEST(HeadTracker, record_with_lease_of_own_poll_is_proven) {
  const PolledTracker tracker(3);
  HeadRecord record = record_of(1, 4);
  record.lease_id = 7;
  EXPECT_EQ(tracker.judge(record, 3, 0), HeadVerdict::needs_updates);
}

TEST(HeadTracker, new_record_published_late_is_unproven) {
  const PolledTracker tracker(3);
  HeadRecord record = record_of(2, 4);
  record.publish_delay_ns = second_ns;
  EXPECT_EQ(tracker.judge(record, 3, 0), HeadVerdict::needs_updates);
  record.publish_delay_ns = second_ns + 1;
  EXPECT_EQ(tracker.judge(record, 3, 0), HeadVerdict::unproven);
}

TEST(HeadTracker, own_append_raises_proven_head) {
  PolledTracker tracker(3);
  tracker.record_append(4);
  EXPECT_EQ(tracker.known_extent().head, 4U);
  EXPECT_EQ(tracker.judge(record_of(1, 4), 4, 0), HeadVerdict::needs_updates);
  EXPECT_EQ(tracker.judge(record_of(2, 3), 3, own_poll_at + 1), HeadVerdict::poll_log);
}

TEST(HeadTracker, record_below_caller_polls_log_once) {
  PolledTracker tracker(3);
  const HeadRecord record = record_of(2, 3);
  EXPECT_EQ(tracker.judge(record, 5, own_poll_at + 1), HeadVerdict::poll_log);
  tracker.record_seen(record, own_poll_at + 1);
  EXPECT_EQ(tracker.judge(record, 5, own_poll_at + 1), HeadVerdict::unusable);
}

TEST(HeadTracker, record_at_base_is_usable_only_with_chain_of_base) {
  PolledTracker tracker(3);
  tracker.record_extent({.uuid = {1}, .base = 3, .base_chain = 5, .head = 3});
  EXPECT_EQ(tracker.judge(record_of(2, 3), 3, 0), HeadVerdict::usable);
  tracker.record_extent({.uuid = {1}, .base = 3, .base_chain = 6, .head = 3});
  EXPECT_EQ(tracker.judge(record_of(2, 3), 3, 0), HeadVerdict::poll_log);
}

TEST(HeadTracker, record_of_empty_log_is_usable) {
  const PolledTracker tracker(0);
  HeadRecord record = record_of(2, 0);
  record.head_chain = 0;
  EXPECT_EQ(tracker.judge(record, 1, 0), HeadVerdict::usable);
}

TEST(HeadTracker, new_record_is_dated_by_previous_record) {
  PolledTracker tracker(3);
  tracker.record_seen(record_of(2, 3), own_poll_at + 50 * second_ns);
  HeadRecord record = record_of(3, 3);
  record.publish_delay_ns = 5;
  EXPECT_EQ(tracker.earliest_poll_at_ns(record, std::nullopt, own_poll_at + 60 * second_ns),
            own_poll_at + 50 * second_ns - 5);
  EXPECT_EQ(
      tracker.earliest_poll_at_ns(record_of(2, 3), std::nullopt, own_poll_at + 60 * second_ns), 0);
}

TEST(HeadTracker, record_is_dated_by_its_lease_in_memcached) {
  const PolledTracker tracker(3);
  const std::int64_t now_ns = own_poll_at + 60 * second_ns;
  EXPECT_EQ(tracker.earliest_poll_at_ns(record_of(1, 3), PollLease{9, 2}, now_ns),
            now_ns - 3 * second_ns);
  EXPECT_EQ(tracker.earliest_poll_at_ns(record_of(1, 3), PollLease{8, 2}, now_ns), 0);
}

TEST(HeadTracker, staleness_counts_from_last_confirmation_up_to_limit) {
  PolledTracker tracker(3);
  const std::int64_t now_ns = own_poll_at + 2 * second_ns;
  EXPECT_EQ(tracker.staleness(seconds(2), now_ns), seconds(2));
  EXPECT_EQ(tracker.staleness(milliseconds(1999), now_ns), std::nullopt);
  EXPECT_EQ(tracker.staleness(seconds(60), own_poll_at + 8 * second_ns), std::nullopt);

  tracker.record_used(record_of(2, 4), own_poll_at + 7 * second_ns, own_poll_at + 8 * second_ns);
  EXPECT_EQ(tracker.staleness(seconds(60), own_poll_at + 8 * second_ns), seconds(1));
  EXPECT_EQ(tracker.known_extent().head, 4U);
}

TEST(HeadTracker, nothing_is_new_from_confirmed_head_on) {
  EXPECT_FALSE(PolledTracker(3).has_nothing_new_after(2));
  EXPECT_TRUE(PolledTracker(3).has_nothing_new_after(3));
  EXPECT_FALSE(PolledTracker(0).has_nothing_new_after(1));
}

TEST(HeadTracker, replaced_log_resets_tracker) {
  PolledTracker tracker(3);
  tracker.invalidate_from(4, own_poll_at);
  tracker.record_extent({.uuid = {2}, .base = 0, .base_chain = 0, .head = 0});
  EXPECT_TRUE(tracker.must_poll_log(1, seconds(5), own_poll_at + 1));
  EXPECT_EQ(tracker.earliest_poll_at_ns(record_of(2, 0), std::nullopt, own_poll_at + 1), 0);

  tracker.record_own_poll(PolledTracker::own_poll(own_poll_at), 0, 0);
  EXPECT_FALSE(tracker.must_poll_log(1, seconds(5), own_poll_at + 1));
}

TEST(HeadRecord, encoded_record_decodes_to_same_values) {
  const HeadRecord record{
      .record_id = 1, .head = 2, .head_chain = 3, .lease_id = 4, .publish_delay_ns = 5};
  const std::string bytes = encode_head_record(record);
  EXPECT_EQ(bytes.size(), 48U);
  const HeadRecord decoded = decode_head_record(bytes);
  EXPECT_EQ(decoded.record_id, 1U);
  EXPECT_EQ(decoded.head, 2U);
  EXPECT_EQ(decoded.head_chain, 3U);
  EXPECT_EQ(decoded.lease_id, 4U);
  EXPECT_EQ(decoded.publish_delay_ns, 5);
}

TEST(HeadRecord, damaged_bytes_have_record_id_zero) {
  std::string bytes = encode_head_record({.record_id = 1, .head = 2});
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    std::string damaged = bytes;
    damaged[i] = static_cast<char>(damaged[i] ^ 1);
    EXPECT_EQ(decode_head_record(damaged).record_id, 0U) << i;
  }
  EXPECT_EQ(decode_head_record("").record_id, 0U);
  EXPECT_EQ(decode_head_record(bytes + ' ').record_id, 0U);
}

TEST(HeadRecord, publish_delay_is_clamped_to_one_hour) {
  const auto decoded_delay = [](std::int64_t delay_ns) {
    return decode_head_record(encode_head_record({.record_id = 1, .publish_delay_ns = delay_ns}))
        .publish_delay_ns;
  };
  EXPECT_EQ(decoded_delay(-1), 0);
  EXPECT_EQ(decoded_delay(3601 * second_ns), 3600 * second_ns);
}

TEST(PollLease, encoded_lease_decodes_unless_longer_than_one_hour) {
  const std::optional<PollLease> lease = decode_poll_lease(encode_poll_lease({1, 3600}));
  ASSERT_TRUE(lease.has_value());
  EXPECT_EQ(lease->lease_id, 1U);
  EXPECT_EQ(lease->duration_seconds, 3600U);
  EXPECT_FALSE(decode_poll_lease(encode_poll_lease({1, 3601})).has_value());
  EXPECT_FALSE(decode_poll_lease("short").has_value());
}

}  // namespace
}  // namespace whycache
