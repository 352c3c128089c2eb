// Leases: one holder at a time, tokens that grow, and transactions that need the lease.
#include "client/lease.h"

#include <gtest/gtest.h>

#include <atomic>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "client/fleet.h"
#include "client/lease_record.h"

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;

constexpr milliseconds long_time{3'600'000};

LeaseOptions without_skew(const std::string& holder = {}) {
  return {.holder = holder, .clock_skew_max = milliseconds(0)};
}

TEST(LeaseTest, second_holder_gets_nothing_until_release) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  tokyo.set("other", "");

  const std::optional<Lease> lease = berlin.acquire("importer", long_time);

  ASSERT_TRUE(lease.has_value());
  EXPECT_EQ(lease->token, 2U);
  EXPECT_GT(lease->remaining(), long_time / 2);
  EXPECT_LE(lease->remaining(), long_time);
  EXPECT_EQ(tokyo.acquire("importer", long_time), std::nullopt);
  EXPECT_EQ(berlin.acquire("importer", long_time), std::nullopt) << "not reentrant";
  EXPECT_TRUE(tokyo.acquire("another", long_time).has_value());
  EXPECT_TRUE(berlin.release(*lease));
  EXPECT_FALSE(berlin.release(*lease));
  const std::optional<Lease> next = tokyo.acquire("importer", long_time);
  ASSERT_TRUE(next.has_value());
  EXPECT_GT(next->token, lease->token);
  EXPECT_FALSE(berlin.release(*lease)) << "of another holder now";
  EXPECT_TRUE(tokyo.contains("importer"));
}

TEST(LeaseTest, expired_lease_is_taken_and_cannot_be_renewed) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  std::optional<Lease> lease = berlin.acquire("importer", milliseconds(100), without_skew());
  ASSERT_TRUE(lease.has_value());
  EXPECT_EQ(tokyo.acquire("importer", long_time, without_skew()), std::nullopt);

  std::this_thread::sleep_for(milliseconds(110));

  EXPECT_EQ(lease->remaining(), milliseconds(0));
  EXPECT_EQ(tokyo.acquire("importer", long_time), std::nullopt) << "may differ in their clocks";
  const std::optional<Lease> next = tokyo.acquire("importer", long_time, without_skew());
  ASSERT_TRUE(next.has_value());
  EXPECT_GT(next->token, lease->token);
  EXPECT_FALSE(berlin.renew(*lease));
  EXPECT_EQ(lease->remaining(), milliseconds(0));
  EXPECT_FALSE(berlin.release(*lease));
}

TEST(LeaseTest, renewed_lease_keeps_its_token_and_lasts_longer) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  std::optional<Lease> lease = berlin.acquire("importer", milliseconds(150), without_skew());
  ASSERT_TRUE(lease.has_value());
  const UpdateId token = lease->token;
  for (int i = 0; i < 4; ++i) {
    std::this_thread::sleep_for(milliseconds(60));
    ASSERT_TRUE(berlin.renew(*lease));
    EXPECT_EQ(tokyo.acquire("importer", long_time, without_skew()), std::nullopt);
  }
  EXPECT_EQ(lease->token, token);
  std::this_thread::sleep_for(milliseconds(160));
  EXPECT_TRUE(berlin.renew(*lease)) << "expired, but nobody has taken it";
}

TEST(LeaseTest, transaction_that_holds_a_lost_lease_runs_again) {
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  const std::optional<Lease> lease = berlin.acquire("importer", long_time);
  ASSERT_TRUE(lease.has_value());
  std::vector<bool> held;
  berlin.transact([&](Transaction& transaction) {
    held.push_back(transaction.holds(*lease));
    if (held.size() == 1) {  // another machine takes the lease meanwhile
      tokyo.update();
      tokyo.erase("importer");
      ASSERT_TRUE(tokyo.acquire("importer", long_time).has_value());
    }
    if (held.back()) transaction.set("imported", "1");
  });

  EXPECT_EQ(held, (std::vector<bool>{true, false}));
  EXPECT_FALSE(berlin.contains("imported"));
}

TEST(LeaseTest, concurrent_acquirers_never_hold_it_at_once) {
  Fleet fleet("sqlite");
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  std::atomic<int> holders{0};
  std::atomic<int> acquired{0};
  std::atomic<UpdateId> last_token{0};
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      Cache& cache = thread % 2 == 0 ? berlin : tokyo;
      for (int i = 0; i < 40; ++i) {
        const std::optional<Lease> lease = cache.acquire("lock", long_time);
        if (!lease) continue;
        EXPECT_EQ(++holders, 1);
        EXPECT_LT(last_token.exchange(lease->token), lease->token);
        ++acquired;
        --holders;
        EXPECT_TRUE(cache.release(*lease));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(acquired, 0);
}

TEST(LeaseTest, invalid_calls_throw_and_write_nothing) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("data", "lease token=1");
  expect_error(
      ErrorKind::invalid, [&] { static_cast<void>(cache.acquire("data", long_time)); },
      "not a lease");
  expect_error(
      ErrorKind::invalid, [&] { static_cast<void>(cache.acquire("key", milliseconds(0))); },
      "ttl_ms=0");
  expect_error(ErrorKind::invalid,
               [&] { static_cast<void>(cache.acquire("key", std::chrono::hours(24 * 400))); });
  expect_error(
      ErrorKind::invalid,
      [&] {
        static_cast<void>(cache.acquire("key", long_time, {.clock_skew_max = milliseconds(-1)}));
      },
      "clock_skew_ms=-1");
  expect_error(
      ErrorKind::invalid,
      [&] {
        static_cast<void>(cache.acquire("key", long_time, {.holder = std::string(256, 'h')}));
      },
      "holder");
  expect_error(ErrorKind::invalid, [&] { static_cast<void>(cache.acquire("", long_time)); });
  EXPECT_EQ(cache.applied_id(), 1U);
}

TEST(LeaseTest, lease_names_its_holder) {
  Fleet fleet;
  Options options;
  options.writer_name = "berlin:1";
  Cache cache = fleet.open("berlin", options);
  std::optional<Lease> lease = cache.acquire("a", long_time);
  EXPECT_EQ(decode_lease(*cache.get("a"))->holder, "berlin:1");
  EXPECT_TRUE(cache.renew(*lease));
  EXPECT_EQ(decode_lease(*cache.get("a"))->holder, "berlin:1");
  static_cast<void>(cache.acquire("b", long_time, without_skew("import of\n today")));
  EXPECT_EQ(decode_lease(*cache.get("b"))->holder, "import of\n today");
}

// --- The record ---

TEST(LeaseRecordTest, encoded_record_is_decoded_again) {
  const LeaseRecord record{.token = 12,
                           .nonce = 0x0123456789abcdef,
                           .granted_ms = 1'764'432'000'000,
                           .ttl_ms = 30'000,
                           .holder = "berlin:4711"};
  const std::string value = encode_lease(record);
  EXPECT_EQ(value,
            "lease token=12 nonce=0123456789abcdef granted_ms=1764432000000 ttl_ms=30000 "
            "holder=berlin:4711");
  const std::optional<LeaseRecord> decoded = decode_lease(value);
  ASSERT_TRUE(decoded.has_value());
  EXPECT_EQ(decoded->token, record.token);
  EXPECT_EQ(decoded->nonce, record.nonce);
  EXPECT_EQ(decoded->granted_ms, record.granted_ms);
  EXPECT_EQ(decoded->ttl_ms, record.ttl_ms);
  EXPECT_EQ(decoded->holder, record.holder);
  const std::string without_holder = value.substr(0, value.size() - record.holder.size());
  EXPECT_TRUE(decode_lease(without_holder).has_value());
  for (std::size_t size = 0; size < without_holder.size(); ++size)
    EXPECT_EQ(decode_lease(value.substr(0, size)), std::nullopt) << size;
}

TEST(LeaseRecordTest, other_values_are_no_leases) {
  for (const std::string value :
       {"", "berlin", "lease token=-1 nonce=0 granted_ms=1 ttl_ms=1 holder=",
        "lease token=1 nonce=0 granted_ms=-1 ttl_ms=1 holder=",
        "lease token=1 nonce=0 granted_ms=1 ttl_ms=0 holder=",
        "lease token=1 nonce=0 granted_ms=99999999999999999 ttl_ms=1 holder=",
        "lease token=1 nonce=0 granted_ms=1 ttl_ms=99999999999999 holder=",
        "lease token=1 nonce=g granted_ms=1 ttl_ms=1 holder=",
        "lease token=99999999999999999999 nonce=0 granted_ms=1 ttl_ms=1 holder="}) {
    EXPECT_EQ(decode_lease(value), std::nullopt) << value;
  }
}

TEST(LeaseRecordTest, record_expires_after_ttl_and_clock_skew) {
  const LeaseRecord record{.granted_ms = 1'000'000, .ttl_ms = 100};
  EXPECT_FALSE(has_expired(record, 1'000'100, milliseconds(0)));
  EXPECT_TRUE(has_expired(record, 1'000'101, milliseconds(0)));
  EXPECT_FALSE(has_expired(record, 1'000'150, milliseconds(50)));
  EXPECT_TRUE(has_expired(record, 1'000'151, milliseconds(50)));
  EXPECT_FALSE(has_expired(record, 0, milliseconds(0))) << "granted by a clock ahead of ours";
}

}  // namespace
}  // namespace whycache::testing
