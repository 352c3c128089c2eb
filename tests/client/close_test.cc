// Closing a cache, or destroying it, while the log does not answer: it returns at once, and each
// asynchronous write says whether it may be in the log.
#include <fcntl.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/file.h"
#include "base/process_lock.h"
#include "client/fleet.h"
#include "log/stores.h"
#include "support/mariadb_server.h"
#include "support/memcached_server.h"
#include "support/tcp_proxy.h"

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;
using std::chrono::steady_clock;

// The promise, and what this test's own threads take.
constexpr milliseconds promised{60};
// The machine may be busy. One attempt in time shows that nothing waits for the log.
constexpr int close_attempts_max = 8;

struct HangingLog {
  std::function<Cache()> open;
  std::function<void()> hang;
  std::function<void()> heal;
};

// Returns how long closing takes while two asynchronous writes wait, which cannot share an append.
milliseconds close_while_writes_wait(const HangingLog& log, bool destroys, int attempt) {
  const std::string prefix = std::string(destroys ? "d" : "c") + std::to_string(attempt) + '.';
  std::optional<Cache> cache = log.open();
  cache->set(prefix + "before", "1");
  log.hang();
  std::vector<std::future<UpdateId>> futures;
  for (const char* const note : {"one", "two"})
    futures.push_back(cache->set_async(prefix + note, "1", {.note = note}));
  std::this_thread::sleep_for(milliseconds(50));

  const auto began = steady_clock::now();
  if (destroys) {
    cache.reset();
  } else {
    cache->close_shared_state();
  }
  const auto took = std::chrono::duration_cast<milliseconds>(steady_clock::now() - began);

  std::vector<bool> is_unwritten;
  for (std::future<UpdateId>& future : futures) {
    EXPECT_EQ(future.wait_for(milliseconds(0)), std::future_status::ready);
    const std::optional<Error> error = thrown_error([&] { future.get(); });
    EXPECT_TRUE(error);
    if (!error) continue;
    EXPECT_TRUE(error->kind() == ErrorKind::unavailable || error->kind() == ErrorKind::uncertain)
        << error->what();
    EXPECT_NE(std::string(error->what()).find("closed"), std::string::npos) << error->what();
    is_unwritten.push_back(error->kind() == ErrorKind::unavailable);
  }
  EXPECT_TRUE(is_unwritten.back()) << "the second had not begun";
  log.heal();
  cache.emplace(log.open());
  cache->set(prefix + "after", "1");
  EXPECT_FALSE(is_unwritten.front() && cache->contains(prefix + "one"));
  EXPECT_FALSE(cache->contains(prefix + "two"));
  return took;
}

void expect_prompt_close(const HangingLog& log) {
  for (const bool destroys : {false, true}) {
    milliseconds shortest = milliseconds::max();
    for (int attempt = 0; attempt < close_attempts_max && shortest > promised; ++attempt)
      shortest = std::min(shortest, close_while_writes_wait(log, destroys, attempt));
    EXPECT_LE(shortest, promised) << (destroys ? "destructor" : "close_shared_state()");
  }
}

TEST(Close, locked_file_log_does_not_delay_close) {
  const Fleet fleet("file");
  fleet.open("berlin");
  std::optional<FileDescriptor> lock;
  expect_prompt_close(
      {.open = [&] { return fleet.open("berlin"); },
       .hang =
           [&] {
             lock.emplace(open_file(fleet.directory().file("log") + "/default/lock", O_RDWR));
             for (std::uint64_t byte = 0; byte < 16; ++byte)
               ASSERT_TRUE(try_lock_byte(lock->number(), byte));
           },
       .heal = [&] { lock.reset(); }});
}

TEST(Close, append_that_ends_soon_is_not_cut_off) {
  const Fleet fleet;
  auto script = std::make_shared<Script>();
  std::atomic<bool> has_begun{false};
  script->before_append = [&](UpdateId) {
    has_begun = true;
    std::this_thread::sleep_for(milliseconds(10));
  };
  Cache cache = fleet.open("berlin", script);
  std::future<UpdateId> future = cache.set_async("a", "1");
  while (!has_begun) std::this_thread::sleep_for(milliseconds(1));

  cache.close_shared_state();

  EXPECT_EQ(future.get(), 1U);
}

// The log of an application: it waits as long as it may.
void wait_while_allowed(std::atomic<bool>& waits) {
  waits = true;
  while (call_time_left() > std::chrono::nanoseconds(0))
    std::this_thread::sleep_for(milliseconds(1));
}

// A blocking write leads, and asynchronous writes joined its update: closing cannot wait for it.
TEST(Close, blocking_write_that_leads_asynchronous_ones_is_stopped_too) {
  const Fleet fleet;
  auto script = std::make_shared<Script>();
  std::atomic<bool> first_waits{false};
  std::atomic<bool> second_waits{false};
  std::atomic<bool> lets_first_pass{false};
  script->before_append = [&](UpdateId id) {
    if (id == 1) {
      first_waits = true;
      while (!lets_first_pass) std::this_thread::sleep_for(milliseconds(1));
    } else {
      wait_while_allowed(second_waits);
      throw uncertain_error();
    }
  };
  Cache cache = fleet.open("berlin", script);
  std::thread first([&] { cache.set("first", "1"); });
  while (!first_waits) std::this_thread::sleep_for(milliseconds(1));
  std::optional<Error> error;
  std::thread leader([&] { error = thrown_error([&] { cache.set("second", "1"); }); });
  std::this_thread::sleep_for(milliseconds(50));  // until it is queued
  std::future<UpdateId> joined = cache.set_async("third", "1");
  lets_first_pass = true;
  while (!second_waits) std::this_thread::sleep_for(milliseconds(1));

  const auto began = steady_clock::now();
  cache.close_shared_state();
  EXPECT_LT(steady_clock::now() - began, milliseconds(2000));

  first.join();
  leader.join();
  ASSERT_TRUE(error);
  EXPECT_EQ(error->kind(), ErrorKind::uncertain) << error->what();
  expect_error(
      ErrorKind::uncertain, [&] { joined.get(); }, "closed");
  EXPECT_EQ(cache.get("first"), "1");
}

// A blocking write that leads alone keeps its deadline.
TEST(Close, blocking_write_of_another_thread_finishes) {
  const Fleet fleet;
  auto script = std::make_shared<Script>();
  std::atomic<bool> waits{false};
  std::atomic<bool> is_open{false};
  script->before_append = [&](UpdateId) {
    waits = true;
    while (!is_open) std::this_thread::sleep_for(milliseconds(1));
  };
  Cache cache = fleet.open("berlin", script);
  std::thread writer([&] { EXPECT_EQ(cache.set("a", "1"), 1U); });
  while (!waits) std::this_thread::sleep_for(milliseconds(1));
  std::future<UpdateId> queued = cache.set_async("b", "1", {.note = "alone"});
  cache.close_shared_state();
  expect_error(
      ErrorKind::unavailable, [&] { queued.get(); }, "cache was closed");
  is_open = true;
  writer.join();
}

TEST(Close, stop_request_of_the_caller_still_ends_an_asynchronous_write) {
  const Fleet fleet;
  auto script = std::make_shared<Script>();
  std::atomic<bool> waits{false};
  script->before_append = [&](UpdateId) {
    wait_while_allowed(waits);
    throw unavailable_error();
  };
  Cache cache = fleet.open("berlin", script);
  std::stop_source source;
  std::future<UpdateId> future =
      cache.set_async("a", "1", {.note = {}, .deadline = {}, .stop = source.get_token()});
  while (!waits) std::this_thread::sleep_for(milliseconds(1));
  source.request_stop();
  ASSERT_EQ(future.wait_for(milliseconds(2000)), std::future_status::ready);
  expect_error(
      ErrorKind::unavailable, [&] { future.get(); }, "call was stopped");
}

TEST(Close, close_fails_all_updates_of_a_batch_that_was_split) {
  const Fleet fleet;
  auto script = std::make_shared<Script>();
  std::atomic<bool> waits{false};
  script->before_append = [&](UpdateId id) {
    if (id == 1) return;
    wait_while_allowed(waits);
    throw unavailable_error();
  };
  Options options;
  options.update_bytes_max = 4096;
  Cache cache = fleet.open("berlin", script, std::move(options));
  std::vector<std::string> values;
  std::vector<Item> items;
  const std::vector<std::string> keys{"a", "b", "c", "d", "e", "f"};
  for (std::uint64_t i = 0; i < keys.size(); ++i) values.push_back(incompressible_bytes(2000, i));
  for (std::size_t i = 0; i < keys.size(); ++i) items.push_back({keys[i], values[i]});
  std::future<UpdateId> future = cache.set_multi_async(items);
  while (!waits) std::this_thread::sleep_for(milliseconds(1));
  cache.close_shared_state();
  expect_error(
      ErrorKind::uncertain, [&] { future.get(); }, "changes_written=2", "of=6");
}

#if WHYCACHE_WITH_SQLITE

TEST(Close, locked_sqlite_log_does_not_delay_close) {
  const Fleet fleet("sqlite");
  fleet.open("berlin");
  std::optional<Database> other;
  expect_prompt_close({.open = [&] { return fleet.open("berlin"); },
                       .hang =
                           [&] {
                             other.emplace(fleet.directory().file("log.db"));
                             other->run("BEGIN EXCLUSIVE");
                           },
                       .heal = [&] { other.reset(); }});
}

#endif

#if WHYCACHE_WITH_MYSQL

class MysqlClose : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!MariadbServer::is_installed()) GTEST_SKIP() << "NOT TESTED: needs mariadbd";
  }
  static MariadbServer& server() { return MariadbServer::shared(); }
  Cache open(const std::string& url) const {
    Options options;
    options.state_path = directory_.file("berlin.state");
    return Cache(url, options);
  }

  const std::string database_ = server().make_database();
  const TemporaryDirectory directory_;
};

TEST_F(MysqlClose, black_hole_does_not_delay_close) {
  TcpProxy proxy(server().port());
  const std::string url =
      "mysql://root@127.0.0.1:" + std::to_string(proxy.port()) + '/' + database_;
  expect_prompt_close({.open = [&] { return open(url); },
                       .hang =
                           [&] {
                             proxy.set_faults(
                                 {.to_server = {.drop_after = 0}, .to_client = {.drop_after = 0}});
                           },
                       .heal =
                           [&] {
                             proxy.set_faults({});
                             proxy.cut_all();
                           }});
}

TEST_F(MysqlClose, held_row_lock_does_not_delay_close) {
  open(server().url(database_));
  std::optional<MariadbClient> other;
  expect_prompt_close(
      {.open = [&] { return open(server().url(database_)); },
       .hang =
           [&] {
             other.emplace(server(), database_);
             other->run(
                 "BEGIN; UPDATE whycache_logs SET part_count = 0 WHERE instance = 'default'");
           },
       .heal = [&] { other.reset(); }});
}

#if WHYCACHE_WITH_MEMCACHED

TEST_F(MysqlClose, paused_memcached_does_not_delay_close) {
  if (!MemcachedServer::is_installed()) GTEST_SKIP() << "NOT TESTED: needs memcached";
  MemcachedServer memcached;
  TcpProxy proxy(server().port());
  const std::string url = "memcached+mysql://root@127.0.0.1:" + std::to_string(proxy.port()) + '/' +
                          database_ + "?memcached_timeout_ms=5000&memcached=" + memcached.address();
  expect_prompt_close({.open = [&] { return open(url); },
                       .hang =
                           [&] {
                             memcached.pause();
                             proxy.set_faults(
                                 {.to_server = {.drop_after = 0}, .to_client = {.drop_after = 0}});
                           },
                       .heal =
                           [&] {
                             memcached.resume();
                             proxy.set_faults({});
                             proxy.cut_all();
                           }});
}

#endif
#endif

}  // namespace
}  // namespace whycache::testing
