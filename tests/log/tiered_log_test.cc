// The URL of a log with a tier in front of it, races of head records, and timeouts of the tier. The
// purpose of a tier is tested in client/tier_fleet_test.cc.
#include <gtest/gtest.h>
#include <whycache/log.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/call_limit.h"
#include "log/forwarding_log.h"
#include "log/tiered_store.h"
#include "support/thrown_error.h"
#include "support/tier_server.h"

namespace whycache {
namespace {

using std::chrono::milliseconds;
using testing::expect_error;
using testing::make_tier;
using testing::tiered_url;

class TieredLogTest : public ::testing::TestWithParam<testing::TierKind> {
 protected:
  static testing::TierServer& server() { return testing::TierServer::shared(GetParam()); }
  static MakeTierStore tier() {
    return make_tier(GetParam(), server().address(), tier_options().timeout);
  }
};

// A build may have no tier.
GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(TieredLogTest);
INSTANTIATE_TEST_SUITE_P(Tiers, TieredLogTest, ::testing::ValuesIn(testing::tier_kinds()),
                         testing::name_of_kind);

TEST_P(TieredLogTest, tier_has_name_uuid_and_updates_of_its_log) {
  StoreDirectory directory;
  const std::string url = "file://" + directory.file("log");
  const auto log = open_log(url);
  const auto tier = open_log(tiered_url(GetParam(), url, server().address()));

  EXPECT_EQ(tier->name(), log->name());
  EXPECT_EQ(tier->extent().uuid, log->extent().uuid);
  ASSERT_EQ(tier->append(1, "x"), Log::Appended::yes);
  EXPECT_EQ(log->extent().head, 1U);
}

// Staging, made from a backup of production, has the same uuid and the same first update.
TEST_P(TieredLogTest, copy_of_a_log_shares_no_updates_with_it) {
  StoreDirectory directory;
  const auto open = [&](const std::string& name) {
    return open_log(tiered_url(GetParam(), "file://" + directory.file(name) + "?confirm_s=1",
                               server().address()));
  };
  const auto production = open("production");
  ASSERT_EQ(production->append(1, "price=10"), Log::Appended::yes);
  std::filesystem::copy(directory.file("production"), directory.file("staging"),
                        std::filesystem::copy_options::recursive);
  const auto staging = open("staging");
  ASSERT_EQ(staging->extent().uuid, production->extent().uuid);
  // A follower that has polled the log itself trusts what is published after that.
  const auto follower = open("production");
  const auto pass = [](UpdateId, std::string_view) { return true; };
  ASSERT_EQ(follower->poll(1, std::nullopt, pass).extent.head, 1U);
  ASSERT_EQ(staging->append(2, "price=0"), Log::Appended::yes);

  for (int i = 0; i < 5; ++i) {
    const PollResult polled =
        follower->poll(1, std::nullopt, [](UpdateId id, std::string_view bytes) {
          EXPECT_EQ(id, 1U);
          EXPECT_EQ(bytes, "price=10");
          return true;
        });
    EXPECT_EQ(polled.extent.head, 1U);
    std::this_thread::sleep_for(milliseconds(20));
  }
}

TEST_P(TieredLogTest, options_of_tier_and_log_are_accepted_and_others_refused) {
  StoreDirectory directory;
  const std::string kind = name_of(GetParam());
  const std::string log = "file://" + directory.file("log");
  const std::string url = tiered_url(GetParam(), log, server().address());
  const std::string timeout = kind + "_timeout_ms";
  EXPECT_NE(
      open_log(url + "&deadline_ms=5000&confirm_s=1&ask_s=60&" + timeout + "=20&instance=other"),
      nullptr);
  expect_error(
      ErrorKind::invalid, [&] { open_log(url + "&durable=off"); }, "durable");
  for (const std::string& option : {std::string("confirm_s=0"), std::string("ask_s=x"),
                                    timeout + "=-1", std::string("confirm_s=4000")}) {
    expect_error(
        ErrorKind::invalid, [&] { open_log(url + "&" + option); },
        option.substr(0, option.find('=')));
  }
  expect_error(
      ErrorKind::invalid, [&] { open_log(kind + '+' + log); }, kind + "=host:port");
  expect_error(
      ErrorKind::invalid, [&] { open_log(kind + '+' + url); }, "unknown scheme");
  expect_error(
      ErrorKind::invalid, [&] { open_log(kind + "+mongodb://host/db?" + kind + "=127.0.0.1"); },
      "scheme=mongodb");
}

// A log that calls a hook after a read and before the read returns.
class InterceptedReadLog final : public testing::ForwardingLog {
 public:
  using ForwardingLog::ForwardingLog;

  std::function<void()> after_read = [] {};  // called once

  Extent read(UpdateId first, UpdateId last, const VisitUpdate& visit) override {
    const Extent extent = target().read(first, last, visit);
    std::exchange(after_read, [] {})();
    return extent;
  }
};

TEST_P(TieredLogTest, slow_poll_does_not_overwrite_newer_head_record) {
  FileStore store;
  TieredLog writer(store.open(), tier(), tier_options());
  auto slow = std::make_shared<InterceptedReadLog>(store.open());
  TieredLog stale(slow, tier(), tier_options());
  const std::string prefix = tiered_item_prefix(writer.extent(), writer.name());
  ASSERT_EQ(writer.append(1, "one"), Log::Appended::yes);

  std::optional<std::string> newer;
  slow->after_read = [&] {
    ASSERT_EQ(writer.append(2, "two"), Log::Appended::yes);
    newer = server().head(prefix);
  };
  std::vector<UpdateId> seen;
  const auto see = [&](UpdateId id, std::string_view) {
    seen.push_back(id);
    return true;
  };
  EXPECT_EQ(stale.poll(1, std::chrono::nanoseconds(0), see).extent.head, 1U);
  EXPECT_EQ(server().head(prefix), newer);
  // The slow process finds the new update through the tier.
  seen.clear();
  EXPECT_EQ(stale.poll(1, std::nullopt, see).extent.head, 2U);
  EXPECT_EQ(seen, (std::vector<UpdateId>{1, 2}));
}

TEST_P(TieredLogTest, evicted_head_record_is_not_lowered) {
  FileStore store;
  TieredLog writer(store.open(), tier(), tier_options());
  auto slow = std::make_shared<InterceptedReadLog>(store.open());
  TieredLog stale(slow, tier(), tier_options());
  ASSERT_EQ(writer.append(1, "one"), Log::Appended::yes);
  slow->after_read = [&] {
    server().flush_all();
    ASSERT_EQ(writer.append(2, "two"), Log::Appended::yes);
  };
  const auto pass = [](UpdateId, std::string_view) { return true; };
  stale.poll(1, std::chrono::nanoseconds(0), pass);
  TieredLog other(store.open(), tier(), tier_options());
  other.poll(1, std::nullopt, pass);
  EXPECT_EQ(other.poll(1, std::nullopt, pass).extent.head, 2U);
}

TEST_P(TieredLogTest, invalid_head_record_confirms_nothing) {
  FileStore store;
  TierOptions options = tier_options();
  options.confirm_interval = std::chrono::hours(1);
  TieredLog follower(store.open(), tier(), options);
  const auto pass = [](UpdateId, std::string_view) { return true; };
  EXPECT_EQ(follower.poll(1, std::nullopt, pass).extent.head, 0U);
  EXPECT_EQ(follower.poll(1, std::nullopt, pass).extent.head, 0U);

  const auto log = store.open();  // without the tier
  ASSERT_EQ(log->append(1, "one"), Log::Appended::yes);
  server().set_head(tiered_item_prefix(log->extent(), log->name()), "no head record");
  EXPECT_EQ(follower.poll(1, std::nullopt, pass).extent.head, 1U);
}

// Another thread waits for a tier that hangs. A writer whose update is in the log learns its
// id before its deadline.
TEST_P(TieredLogTest, calls_of_the_log_do_not_wait_for_requests_of_other_threads) {
  FileStore store;
  const auto own_server = testing::TierServer::start_new(GetParam());
  testing::TierServer& hanging = *own_server;
  TierOptions options = tier_options();
  options.timeout = milliseconds(3000);
  TieredLog tier(store.open(), make_tier(GetParam(), hanging.address(), options.timeout), options);
  const auto pass = [](UpdateId, std::string_view) { return true; };
  tier.poll(1, std::nullopt, pass);
  hanging.pause();
  std::thread polling([&] { tier.poll(1, std::nullopt, pass); });
  std::this_thread::sleep_for(milliseconds(200));

  const auto began = std::chrono::steady_clock::now();
  {
    const Deadline deadline(milliseconds(300));
    const CallLimit limit(deadline);
    EXPECT_EQ(tier.append(1, "one"), Log::Appended::yes);
    EXPECT_EQ(tier.append(1, "other"), Log::Appended::taken);
    EXPECT_EQ(tier.extent().head, 1U);
    std::string bytes;
    const auto see = [&](UpdateId, std::string_view of_update) {
      bytes = of_update;
      return true;
    };
    EXPECT_EQ(tier.read(1, 1, see).head, 1U) << "as a writer reads back after a lost answer";
    EXPECT_EQ(bytes, "one");
  }
  EXPECT_LT(std::chrono::steady_clock::now() - began, milliseconds(1500));

  polling.join();
  hanging.resume();
  EXPECT_EQ(tier.poll(1, std::nullopt, pass).extent.head, 1U) << "it knows what it appended";
}

TEST_P(TieredLogTest, wait_ends_in_time_while_another_thread_asks_a_tier_that_hangs) {
  FileStore store;
  const auto hanging = testing::TierServer::start_new(GetParam());
  TierOptions options = tier_options();
  options.timeout = milliseconds(3000);
  TieredLog tier(store.open(), make_tier(GetParam(), hanging->address(), options.timeout), options);
  const auto pass = [](UpdateId, std::string_view) { return true; };
  tier.poll(1, std::nullopt, pass);
  hanging->pause();
  std::thread polling([&] { tier.poll(1, std::nullopt, pass); });
  std::this_thread::sleep_for(milliseconds(200));

  const auto began = std::chrono::steady_clock::now();
  EXPECT_FALSE(tier.wait(0, milliseconds(200)));
  EXPECT_LT(std::chrono::steady_clock::now() - began, milliseconds(1500));
  polling.join();
  hanging->resume();
}

}  // namespace
}  // namespace whycache
