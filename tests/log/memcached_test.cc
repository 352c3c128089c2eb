// The client of memcached servers.
#include "log/memcached.h"

#include <gtest/gtest.h>

#include <chrono>
#include <string>
#include <thread>

#include "support/memcached_server.h"
#include "support/program.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

using std::chrono::milliseconds;
using testing::expect_error;

TEST(Memcached, servers_are_parsed_as_addresses_or_sockets) {
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
