// The URL of a log with memcached in front of it, races of head records, and timeouts of memcached.
// The purpose of the tier is tested in client/memcached_fleet_test.cc.
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
#include "log/memcached.h"
#include "log/tiered_store.h"
#include "support/memcached_server.h"
#include "support/program.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

using std::chrono::milliseconds;
using testing::expect_error;

TEST(MemcachedTier, tier_has_name_uuid_and_updates_of_its_log) {
  StoreDirectory directory;
  const std::string url = "file://" + directory.file("log");
  const auto log = open_log(url);
  const auto tier =
      open_log("memcached+" + url + "?memcached=" + testing::MemcachedServer::shared().address());

  EXPECT_EQ(tier->name(), log->name());
  EXPECT_EQ(tier->extent().uuid, log->extent().uuid);
  ASSERT_EQ(tier->append(1, "x"), Log::Appended::yes);
  EXPECT_EQ(log->extent().head, 1U);
}

// Staging, made from a backup of production, has the same uuid and the same first update.
TEST(MemcachedTier, copy_of_a_log_shares_no_updates_with_it) {
  StoreDirectory directory;
  const auto open = [&](const std::string& name) {
    return open_log("memcached+file://" + directory.file(name) +
                    "?confirm_s=1&memcached=" + testing::MemcachedServer::shared().address());
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

TEST(MemcachedTier, options_of_tier_and_log_are_accepted_and_others_refused) {
  StoreDirectory directory;
  const std::string url = "memcached+file://" + directory.file("log") +
                          "?memcached=" + testing::MemcachedServer::shared().address();
  EXPECT_NE(
      open_log(url +
               "&deadline_ms=5000&confirm_s=1&ask_s=60&memcached_timeout_ms=20&instance=other"),
      nullptr);
  expect_error(
      ErrorKind::invalid, [&] { open_log(url + "&durable=off"); }, "durable");
  for (const char* option :
       {"confirm_s=0", "ask_s=x", "memcached_timeout_ms=-1", "confirm_s=4000"}) {
    expect_error(
        ErrorKind::invalid, [&] { open_log(url + "&" + option); },
        std::string(option).substr(0, std::string(option).find('=')));
  }
  expect_error(
      ErrorKind::invalid, [&] { open_log("memcached+file://" + directory.file("log")); },
      "memcached=host:port");
  expect_error(
      ErrorKind::invalid, [&] { open_log("memcached+memcached+memory:?memcached=127.0.0.1"); },
      "unknown scheme");
  expect_error(
      ErrorKind::invalid, [&] { open_log("memcached+mongodb://host/db?memcached=127.0.0.1"); },
      "scheme=mongodb");
}

TEST(MemcachedTier, servers_are_parsed_as_addresses_or_sockets) {
  const auto servers =
      parse_memcached_servers("cache.example.org,10.0.0.5:22122,[::1]:33133,[fe80::1],/run/m.sock");
  ASSERT_EQ(servers.size(), 5U);
  EXPECT_EQ(servers[0].host, "cache.example.org");
  EXPECT_EQ(servers[0].port, 11211);
  EXPECT_EQ(servers[1].port, 22122);
  EXPECT_EQ(servers[2].host, "::1");
  EXPECT_EQ(servers[2].port, 33133);
  EXPECT_EQ(servers[3].host, "fe80::1");
  EXPECT_EQ(servers[4].socket, "/run/m.sock");
  for (const char* wrong : {"", ",", "host,", "host:", "host:0", "host:65536", "host:1x", ":11211",
                            "[::1", "[::1]11"}) {
    expect_error(
        ErrorKind::invalid, [&] { parse_memcached_servers(wrong); }, "memcached");
  }
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

TEST(MemcachedTier, slow_poll_does_not_overwrite_newer_head_record) {
  FileStore store;
  auto& server = testing::MemcachedServer::shared();
  TieredLog writer(store.open(), memcached_tier(server.address()), tier_options());
  auto slow = std::make_shared<InterceptedReadLog>(store.open());
  TieredLog stale(slow, memcached_tier(server.address()), tier_options());
  const std::string head = tiered_item_prefix(writer.extent(), writer.name()) + "head";
  ASSERT_EQ(writer.append(1, "one"), Log::Appended::yes);

  std::optional<std::string> newer;
  slow->after_read = [&] {
    ASSERT_EQ(writer.append(2, "two"), Log::Appended::yes);
    newer = testing::MemcachedClient(server).get(head);
  };
  std::vector<UpdateId> seen;
  const auto see = [&](UpdateId id, std::string_view) {
    seen.push_back(id);
    return true;
  };
  EXPECT_EQ(stale.poll(1, std::chrono::nanoseconds(0), see).extent.head, 1U);
  EXPECT_EQ(testing::MemcachedClient(server).get(head), newer);
  // The slow process finds the new update through memcached.
  seen.clear();
  EXPECT_EQ(stale.poll(1, std::nullopt, see).extent.head, 2U);
  EXPECT_EQ(seen, (std::vector<UpdateId>{1, 2}));
}

TEST(MemcachedTier, evicted_head_record_is_not_lowered) {
  FileStore store;
  auto& server = testing::MemcachedServer::shared();
  TieredLog writer(store.open(), memcached_tier(server.address()), tier_options());
  auto slow = std::make_shared<InterceptedReadLog>(store.open());
  TieredLog stale(slow, memcached_tier(server.address()), tier_options());
  ASSERT_EQ(writer.append(1, "one"), Log::Appended::yes);
  slow->after_read = [&] {
    testing::MemcachedClient(server).flush_all();
    ASSERT_EQ(writer.append(2, "two"), Log::Appended::yes);
  };
  const auto pass = [](UpdateId, std::string_view) { return true; };
  stale.poll(1, std::chrono::nanoseconds(0), pass);
  TieredLog other(store.open(), memcached_tier(server.address()), tier_options());
  other.poll(1, std::nullopt, pass);
  EXPECT_EQ(other.poll(1, std::nullopt, pass).extent.head, 2U);
}

TEST(MemcachedTier, invalid_head_record_confirms_nothing) {
  FileStore store;
  auto& server = testing::MemcachedServer::shared();
  TierOptions options = tier_options();
  options.confirm_interval = std::chrono::hours(1);
  TieredLog follower(store.open(), memcached_tier(server.address()), options);
  const auto pass = [](UpdateId, std::string_view) { return true; };
  EXPECT_EQ(follower.poll(1, std::nullopt, pass).extent.head, 0U);
  EXPECT_EQ(follower.poll(1, std::nullopt, pass).extent.head, 0U);

  const auto log = store.open();  // without memcached
  ASSERT_EQ(log->append(1, "one"), Log::Appended::yes);
  testing::MemcachedClient(server).set(tiered_item_prefix(log->extent(), log->name()) + "head",
                                       "no head record");
  EXPECT_EQ(follower.poll(1, std::nullopt, pass).extent.head, 1U);
}

// Another thread waits for a memcached that hangs. A writer whose update is in the log learns its
// id before its deadline.
TEST(MemcachedTier, calls_of_the_log_do_not_wait_for_requests_of_other_threads) {
  FileStore store;
  testing::MemcachedServer server;
  TierOptions options = tier_options();
  options.timeout = milliseconds(3000);
  TieredLog tier(store.open(), memcached_tier(server.address(), options.timeout), options);
  const auto pass = [](UpdateId, std::string_view) { return true; };
  tier.poll(1, std::nullopt, pass);
  server.pause();
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
  server.resume();
  EXPECT_EQ(tier.poll(1, std::nullopt, pass).extent.head, 1U) << "it knows what it appended";
}

TEST(Memcached, compare_and_swap_replaces_only_seen_version) {
  testing::MemcachedServer server;
  Memcached memcached(parse_memcached_servers(server.address()), milliseconds(1000));
  const std::string every_byte = [] {
    std::string bytes;
    for (int byte = 0; byte < 256; ++byte) bytes += static_cast<char>(byte);
    return bytes;
  }();
  EXPECT_EQ(memcached.set("a", every_byte, 7, std::chrono::hours(1)),
            Memcached::StoreResult::stored);
  EXPECT_EQ(memcached.add("a", "other", std::chrono::hours(1)), Memcached::StoreResult::not_stored);
  EXPECT_EQ(memcached.add("b", "b", std::chrono::hours(1)), Memcached::StoreResult::stored);
  EXPECT_EQ(memcached.set("c", std::string(2'000'000, 'c'), 0, std::chrono::hours(1)),
            Memcached::StoreResult::too_large);

  const auto items = memcached.get({"c", "b", "none", "a"});
  ASSERT_TRUE(items.has_value());
  EXPECT_FALSE((*items)[0].has_value());
  EXPECT_EQ((*items)[1]->bytes, "b");
  EXPECT_FALSE((*items)[2].has_value());
  EXPECT_EQ((*items)[3]->bytes, every_byte);
  EXPECT_EQ((*items)[3]->flags, 7U);

  const std::uint64_t version = (*items)[1]->cas_version;
  EXPECT_EQ(memcached.compare_and_swap("b", "c", version, std::chrono::hours(1)),
            Memcached::StoreResult::stored);
  EXPECT_EQ(memcached.compare_and_swap("b", "d", version, std::chrono::hours(1)),
            Memcached::StoreResult::not_stored);
  EXPECT_EQ(memcached.compare_and_swap("none", "d", version, std::chrono::hours(1)),
            Memcached::StoreResult::not_stored);
}

TEST(Memcached, unresponsive_server_is_skipped_for_a_while) {
  testing::MemcachedServer server;
  Memcached memcached(parse_memcached_servers(server.address()), milliseconds(100));
  ASSERT_TRUE(memcached.get({"a"}).has_value());
  const auto time_of_get = [&] {
    const auto began = std::chrono::steady_clock::now();
    EXPECT_FALSE(memcached.get({"a"}).has_value());
    return std::chrono::steady_clock::now() - began;
  };

  server.pause();
  EXPECT_LT(time_of_get(), milliseconds(400));
  EXPECT_FALSE(memcached.is_available());
  EXPECT_LT(time_of_get(), milliseconds(50));  // sends no request

  server.resume();
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  while (!memcached.get({"a"}) && std::chrono::steady_clock::now() < end) {
    std::this_thread::sleep_for(milliseconds(50));
  }
  EXPECT_TRUE(memcached.is_available());
}

// Otherwise the old values would return with the server.
TEST(Memcached, keys_of_unavailable_server_stay_on_it) {
  testing::MemcachedServer stays;
  testing::MemcachedServer dies;
  Memcached memcached(parse_memcached_servers(stays.address() + ',' + dies.address()),
                      milliseconds(1000));
  std::string key;
  for (int i = 0; i < 100 && key.empty(); ++i) {
    const std::string name = "key" + std::to_string(i);
    ASSERT_EQ(memcached.set(name, "before", 0, std::chrono::hours(1)),
              Memcached::StoreResult::stored);
    if (testing::MemcachedClient(dies).get(name)) key = name;
  }
  ASSERT_FALSE(key.empty());

  dies.kill();
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(7);
  while (std::chrono::steady_clock::now() < end) {
    ASSERT_EQ(memcached.set(key, "after", 0, std::chrono::hours(1)),
              Memcached::StoreResult::failed);
    std::this_thread::sleep_for(milliseconds(10));
  }
  EXPECT_FALSE(testing::MemcachedClient(stays).get(key).has_value());
  dies.start();
  std::this_thread::sleep_for(milliseconds(2'100));
  EXPECT_EQ(memcached.set(key, "after", 0, std::chrono::hours(1)), Memcached::StoreResult::stored);
}

TEST(Memcached, missing_server_fails_requests_without_error) {
  Memcached memcached({{.host = "127.0.0.1", .port = testing::free_port(), .socket = ""}},
                      milliseconds(100));
  EXPECT_FALSE(memcached.get({"a"}).has_value());
  EXPECT_EQ(memcached.set("a", "a", 0, std::chrono::hours(1)), Memcached::StoreResult::failed);
}

}  // namespace
}  // namespace whycache
