// Redis as the store of a tier: what it keeps, how it wakes waiters, and every way in which a
// server may refuse, lie, forget or go away. Its promises together with a log are tested with
// those of memcached, in client/tier_fault_test.cc.
#include "log/redis_store.h"

#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "base/call_limit.h"
#include "log/child.h"
#include "log/setuid_program.h"
#include "log/stores.h"
#include "log/tiered_log.h"
#include "support/program.h"
#include "support/redis_server.h"
#include "support/seed.h"
#include "support/tcp_proxy.h"
#include "support/temporary_directory.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using testing::expect_error;
using testing::RedisClient;
using testing::RedisTestServer;
using Update = TierStore::UpdateView;
using HeadResult = TierStore::HeadResult;

constexpr char key_prefix[] = "whycache2:test:";

RedisServer redis_at(const std::string& address) {
  RedisServer server;
  server.address = parse_server_address(address, 6379).value();
  return server;
}

RedisServer redis_at_port(std::uint16_t port) {
  return redis_at("127.0.0.1:" + std::to_string(port));
}

TierStore::HeadChange change_of(std::optional<TierStore::StoredHead> found, UpdateId head) {
  return {.found = std::move(found), .head = head, .make_record = [head] {
            return "head " + std::to_string(head);
          }};
}

// Returns how often the server has run a command.
int calls_of(RedisClient& client, const std::string& command) {
  const std::string text = client.run({"INFO", "commandstats"}).at(0);
  const std::string name = "cmdstat_" + command + ":calls=";
  const std::size_t at = text.find(name);
  return at == std::string::npos ? 0 : std::stoi(text.substr(at + name.size()));
}

class RedisStoreTest : public ::testing::Test {
 protected:
  RedisStoreTest() {
    if (!RedisTestServer::is_installed())
      throw std::runtime_error("redis-server is not installed (Debian: redis-server)");
    server.emplace();
    store = open();
  }

  std::unique_ptr<RedisStore> open(milliseconds timeout = seconds(2)) {
    return std::make_unique<RedisStore>(redis_at(server->address()), timeout);
  }
  // Publishes updates from `first` on, and the head record that is due.
  HeadResult publish(UpdateId first, const std::vector<std::string>& bodies) {
    return publish_by(*store, first, bodies);
  }
  static HeadResult publish_by(TierStore& by, UpdateId first,
                               const std::vector<std::string>& bodies) {
    const auto found = by.get_head(key_prefix);
    if (!found) return HeadResult::failed;
    std::vector<Update> updates;
    for (const std::string& body : bodies) updates.push_back({first + updates.size(), body});
    return by.publish(key_prefix, updates, change_of(found->head, first + bodies.size() - 1)).head;
  }
  void publish_without_head(UpdateId id, const std::string& body) {
    const Update update{id, body};
    EXPECT_TRUE(store->publish(key_prefix, {&update, 1}, std::nullopt).has_updates);
  }
  bool publish_tail(UpdateId first, const std::vector<std::string>& bodies) {
    std::vector<Update> tail;
    for (const std::string& body : bodies) tail.push_back({first + tail.size(), body});
    return store->publish(key_prefix, tail, std::nullopt).has_updates;
  }
  // "1=a 2=b": the updates that the stream has of `first`..`last`.
  std::string updates(UpdateId first, UpdateId last) { return updates_by(*open(), first, last); }
  static std::string updates_by(TierStore& by, UpdateId first, UpdateId last) {
    const auto found = by.get_updates(key_prefix, first, last);
    if (!found) return "failed";
    std::string text;
    for (UpdateId id = first; id <= last; ++id) {
      const auto& update = (*found)[id - first];
      if (!update) continue;
      text += (text.empty() ? "" : " ") + std::to_string(id) + '=' +
              (update->is_too_large() ? "too large" : update->bytes);
    }
    return text;
  }
  std::optional<std::string> head() {
    const auto found = open()->get_head(key_prefix);
    return found && found->head ? std::optional(found->head->bytes) : std::nullopt;
  }

  std::optional<RedisTestServer> server;
  std::unique_ptr<RedisStore> store;
};

// --- What it keeps. ---

TEST_F(RedisStoreTest, head_is_replaced_only_if_it_is_the_one_found) {
  ASSERT_EQ(publish(1, {"a"}), HeadResult::stored);
  const auto found = store->get_head(key_prefix);
  EXPECT_EQ(store->publish(key_prefix, {}, change_of(std::nullopt, 2)).head,
            HeadResult::not_stored);
  ASSERT_EQ(store->publish(key_prefix, {}, change_of(found->head, 2)).head, HeadResult::stored);
  EXPECT_EQ(store->publish(key_prefix, {}, change_of(found->head, 3)).head, HeadResult::not_stored);
  EXPECT_EQ(head(), "head 2");
}

TEST_F(RedisStoreTest, updates_are_left_out_if_the_head_is_another_one) {
  ASSERT_EQ(publish(1, {"a"}), HeadResult::stored);
  const Update update{2, "b"};
  const auto published = store->publish(key_prefix, {&update, 1}, change_of(std::nullopt, 2));
  EXPECT_EQ(published.head, HeadResult::not_stored);
  EXPECT_FALSE(published.has_updates);
  EXPECT_EQ(updates(1, 5), "1=a");
}

TEST_F(RedisStoreTest, updates_with_any_bytes_are_returned_in_order) {
  std::string every_byte;
  for (int byte = 0; byte < 256; ++byte) every_byte += static_cast<char>(byte);
  ASSERT_EQ(publish(7, {"a", every_byte, "c"}), HeadResult::stored);
  const auto found = open()->get_updates(key_prefix, 6, 10);
  ASSERT_TRUE(found.has_value());
  EXPECT_FALSE((*found)[0].has_value());
  EXPECT_EQ((*found)[1]->bytes, "a");
  EXPECT_EQ((*found)[2]->bytes, every_byte);
  EXPECT_EQ((*found)[3]->bytes, "c");
  EXPECT_FALSE((*found)[4].has_value());
}

TEST_F(RedisStoreTest, update_published_late_is_inserted) {
  ASSERT_EQ(publish(1, {"a", "b"}), HeadResult::stored);
  ASSERT_EQ(publish(4, {"d", "e"}), HeadResult::stored);
  EXPECT_EQ(updates(1, 9), "1=a 2=b 4=d 5=e");
  publish_without_head(3, "c");
  EXPECT_EQ(updates(1, 9), "1=a 2=b 3=c 4=d 5=e");
  publish_without_head(6, "f");
  EXPECT_EQ(updates(1, 9), "1=a 2=b 3=c 4=d 5=e 6=f");
}

TEST_F(RedisStoreTest, other_bytes_replace_an_update_and_end_what_followed_it) {
  ASSERT_EQ(publish(1, {"a", "b", "c", "d"}), HeadResult::stored);
  publish_without_head(3, "restored");
  EXPECT_EQ(updates(1, 9), "1=a 2=b 3=restored");
}

TEST_F(RedisStoreTest, lower_head_removes_updates_beyond_it) {
  ASSERT_EQ(publish(1, {"a", "b", "c", "d"}), HeadResult::stored);
  ASSERT_EQ(publish(1, {"a", "b"}), HeadResult::stored);
  EXPECT_EQ(updates(1, 9), "1=a 2=b");
  ASSERT_EQ(publish(3, {"x"}), HeadResult::stored);
  EXPECT_EQ(updates(1, 9), "1=a 2=b 3=x");
}

TEST_F(RedisStoreTest, update_that_is_too_large_is_marked) {
  ASSERT_EQ(publish(1, {"a", std::string(tier_update_bytes_max + 1, 'x'), "c"}),
            HeadResult::stored);
  EXPECT_EQ(updates(1, 3), "1=a 2=too large 3=c");
}

TEST_F(RedisStoreTest, stream_is_bounded_by_bytes_and_by_updates) {
  const std::string large(400'000, 'x');
  for (UpdateId id = 1; id <= 60; ++id) ASSERT_EQ(publish(id, {large}), HeadResult::stored);
  RedisClient client(*server);
  const std::string key = client.run({"KEYS", "*updates"}).at(0);
  const std::string bodies = client.run({"KEYS", "*bodies"}).at(0);
  EXPECT_EQ(client.run({"XLEN", key}).at(0), "41");  // 16 MiB
  EXPECT_EQ(client.run({"HLEN", bodies}).at(0), "41");
  for (UpdateId id = 61; id <= 9'000; id += 100)
    ASSERT_EQ(publish(id, std::vector<std::string>(100, "x")), HeadResult::stored);
  EXPECT_EQ(client.run({"XLEN", key}).at(0), "4096");
  EXPECT_EQ(client.run({"KEYS", "*bodies"}).size(), 0U);
  EXPECT_EQ(updates(9'060, 9'070), "9060=x");
}

// A Redis pushes the entries of the stream to all that wait, at once.
TEST_F(RedisStoreTest, long_update_wakes_waiter_and_is_fetched_from_a_hash) {
  const auto waiting = open();
  const std::string limit(16 << 10, 'a');
  const std::string longer(100'000, 'b');
  const std::string longest(tier_update_bytes_max, 'c');
  ASSERT_EQ(publish(1, {limit, longer, "d", longest}), HeadResult::stored);
  EXPECT_TRUE(waiting->wait(key_prefix, 0, seconds(30)));
  EXPECT_EQ(waiting->claimed_head(), 4U);
  RedisClient client(*server);
  const std::string key = client.run({"KEYS", "*updates"}).at(0);
  for (const std::string& text : client.run({"XRANGE", key, "-", "+"}))
    EXPECT_LE(text.size(), limit.size());
  const auto found = waiting->get_updates(key_prefix, 1, 4);
  ASSERT_TRUE(found && (*found)[0] && (*found)[1] && (*found)[2] && (*found)[3]);
  EXPECT_EQ((*found)[0]->bytes, limit);
  EXPECT_EQ((*found)[1]->bytes, longer);
  EXPECT_EQ((*found)[2]->bytes, "d");
  EXPECT_EQ((*found)[3]->bytes, longest);
}

TEST_F(RedisStoreTest, hash_keeps_only_what_the_stream_names) {
  const auto body = [](char c) { return std::string(20'000, c); };
  const auto fields = [&] {
    RedisClient client(*server);
    const std::vector<std::string> key = client.run({"KEYS", "*bodies"});
    std::vector<std::string> found =
        key.empty() ? std::vector<std::string>() : client.run({"HKEYS", key[0]});
    std::sort(found.begin(), found.end());
    return found;
  };
  ASSERT_EQ(publish(1, {body('a'), body('b'), "c", body('d'), body('e')}), HeadResult::stored);
  EXPECT_EQ(fields(), (std::vector<std::string>{"1", "2", "4", "5"}));
  publish_without_head(2, body('x'));  // the log was restored
  EXPECT_EQ(fields(), (std::vector<std::string>{"1", "2"}));
  EXPECT_EQ(updates(1, 9), "1=" + body('a') + " 2=" + body('x'));
  publish_without_head(2, "short");
  EXPECT_EQ(fields(), (std::vector<std::string>{"1"}));
  // It may be evicted by itself. The next process that polls the log publishes again.
  RedisClient client(*server);
  client.run({"DEL", client.run({"KEYS", "*bodies"}).at(0)});
  EXPECT_EQ(updates(1, 9), "2=short");
  publish_without_head(1, body('a'));
  EXPECT_EQ(updates(1, 9), "1=" + body('a') + " 2=short");
  // The stream, too.
  client.run({"DEL", client.run({"KEYS", "*updates"}).at(0)});
  publish_without_head(7, body('g'));
  EXPECT_EQ(fields(), (std::vector<std::string>{"7"}));
  client.run({"DEL", client.run({"KEYS", "*updates"}).at(0)});
  publish_without_head(8, "short");
  EXPECT_EQ(fields(), (std::vector<std::string>{}));
}

// This bounds how long the script runs.
TEST_F(RedisStoreTest, stream_that_is_made_again_keeps_a_mebibyte_before_the_update) {
  const std::vector<std::string> bodies(400, std::string(10'000, 'x'));
  ASSERT_TRUE(publish_tail(1, bodies));
  publish_without_head(402, "later");
  publish_without_head(401, "late");
  EXPECT_EQ(updates(401, 402), "401=late 402=later");
  RedisClient client(*server);
  const std::string key = client.run({"KEYS", "*updates"}).at(0);
  EXPECT_EQ(client.run({"XLEN", key}).at(0), "107");
  EXPECT_EQ(store->publish(key_prefix, {}, change_of(std::nullopt, 401)).head, HeadResult::stored);
  EXPECT_EQ(client.run({"XLEN", key}).at(0), "106");
  ASSERT_TRUE(publish_tail(402, bodies));
  EXPECT_EQ(client.run({"XLEN", key}).at(0), "506");
  const auto found = store->get_head(key_prefix);
  EXPECT_EQ(store->publish(key_prefix, {}, change_of(found->head, 800)).head, HeadResult::stored);
  EXPECT_EQ(client.run({"XLEN", key}).at(0), "105");
}

TEST_F(RedisStoreTest, long_tail_before_a_later_update_is_kept_whole) {
  publish_without_head(1'000, "later");
  std::vector<std::string> bodies(400, std::string(10'000, 'x'));
  ASSERT_TRUE(publish_tail(1, bodies));
  EXPECT_EQ(updates(1'000, 1'000), "1000=later");
  const auto found = open()->get_updates(key_prefix, 1, 400);
  for (UpdateId id = 1; id <= 400; ++id)
    EXPECT_TRUE((*found)[id - 1] && (*found)[id - 1]->bytes == bodies[id - 1]) << id;
}

TEST_F(RedisStoreTest, long_tail_is_published_in_several_requests) {
  ASSERT_EQ(publish(1, std::vector<std::string>(20, std::string(300'000, 'x'))),
            HeadResult::stored);
  const auto found = open()->get_updates(key_prefix, 1, 20);
  for (const auto& update : *found) EXPECT_TRUE(update && update->bytes.size() == 300'000);
}

// The record says when it was sent.
TEST_F(RedisStoreTest, head_record_is_made_after_the_updates_before_it_were_sent) {
  const std::string body(900'000, 'x');
  std::vector<Update> tail;
  for (UpdateId id = 1; id <= 5; ++id) tail.push_back({id, body});
  const auto other = open();
  bool has_first = false;
  TierStore::HeadChange change{.found = std::nullopt, .head = 5, .make_record = [&] {
                                 const auto first = other->get_updates(key_prefix, 1, 1);
                                 has_first = first && (*first)[0];
                                 return "head 5";
                               }};
  EXPECT_EQ(store->publish(key_prefix, tail, change).head, HeadResult::stored);
  EXPECT_TRUE(has_first);
  change.make_record = [] { return std::nullopt; };
  const auto published = store->publish(key_prefix, tail, change);
  EXPECT_EQ(published.head, HeadResult::failed);
  EXPECT_TRUE(published.has_updates);
}

TEST_F(RedisStoreTest, leases_have_one_owner_until_they_expire) {
  EXPECT_TRUE(store->add_poll_lease(key_prefix, "mine", seconds(1)));
  EXPECT_FALSE(open()->add_poll_lease(key_prefix, "other", seconds(1)));
  EXPECT_EQ(store->get_head(key_prefix)->poll_lease, "mine");
  EXPECT_TRUE(store->add_fill_lease(key_prefix, 7, seconds(100)));
  EXPECT_FALSE(open()->add_fill_lease(key_prefix, 7, seconds(100)));
  std::this_thread::sleep_for(milliseconds(1'100));
  EXPECT_TRUE(open()->add_poll_lease(key_prefix, "other", seconds(1)));
  EXPECT_TRUE(store->set_poll_lease(key_prefix, "mine", seconds(1)));
}

TEST_F(RedisStoreTest, everything_expires) {
  ASSERT_EQ(publish(1, {"a"}), HeadResult::stored);
  store->set_poll_lease(key_prefix, "mine", seconds(1));
  store->add_fill_lease(key_prefix, 7, seconds(2));
  for (const std::string& key : RedisClient(*server).run({"KEYS", "*"}))
    EXPECT_GT(std::stol(RedisClient(*server).run({"TTL", key}).at(0)), 0) << key;
}

// --- Waiting. ---

TEST_F(RedisStoreTest, published_update_wakes_waiter_and_comes_with_its_body) {
  const auto waiting = open();
  for (UpdateId id = 1; id <= 5; ++id) {
    std::thread later([&] {
      std::this_thread::sleep_for(milliseconds(20));
      publish(id, {"body " + std::to_string(id)});
    });
    EXPECT_TRUE(waiting->wait(key_prefix, id - 1, seconds(30)));
    later.join();
    server->pause();  // so that nothing can be requested
    const auto found = waiting->get_updates(key_prefix, id, id);
    server->resume();
    ASSERT_TRUE(found && (*found)[0]);
    EXPECT_EQ((*found)[0]->bytes, "body " + std::to_string(id));
  }
}

TEST_F(RedisStoreTest, wait_for_a_published_update_returns_at_once) {
  publish(1, {"a", "b"});
  EXPECT_TRUE(open()->wait(key_prefix, 1, seconds(30)));
  EXPECT_TRUE(open()->wait(key_prefix, 0, seconds(30)));
}

// The log has less than the tier says.
TEST_F(RedisStoreTest, update_that_the_log_lacks_wakes_once) {
  publish_without_head(9, "forged");
  EXPECT_TRUE(store->wait(key_prefix, 3, seconds(30)));
  store->note_head(3, store->claimed_head());
  EXPECT_FALSE(store->wait(key_prefix, 3, milliseconds(200)));
}

TEST_F(RedisStoreTest, wait_ends_at_its_time_and_when_it_is_stopped) {
  const auto time_of = [&](const std::function<void()>& call) {
    const auto began = std::chrono::steady_clock::now();
    call();
    return std::chrono::steady_clock::now() - began;
  };
  EXPECT_LT(time_of([&] { EXPECT_FALSE(store->wait(key_prefix, 0, milliseconds(100))); }),
            milliseconds(1'000));
  std::stop_source source;
  std::thread later([&] {
    std::this_thread::sleep_for(milliseconds(100));
    source.request_stop();
  });
  const Deadline deadline(seconds(60), source.get_token());
  const CallLimit limit(deadline);
  EXPECT_LT(time_of([&] { EXPECT_FALSE(store->wait(key_prefix, 0, seconds(60))); }),
            milliseconds(5'000));
  later.join();
}

TEST_F(RedisStoreTest, wait_continues_after_server_restarts) {
  EXPECT_FALSE(store->wait(key_prefix, 0, milliseconds(50)));
  server->kill();
  EXPECT_TRUE(store->wait(key_prefix, 0, seconds(30))) << "something may have been missed";
  EXPECT_FALSE(store->wait(key_prefix, 0, milliseconds(50)));
  EXPECT_TRUE(store->notifies());
  server->start();
  const auto writer = open();
  ASSERT_EQ(publish_by(*writer, 1, {"a"}), HeadResult::stored);
  EXPECT_TRUE(store->wait(key_prefix, 0, seconds(30)));
}

// --- Servers with data of another time. ---

TEST_F(RedisStoreTest, server_restarted_with_saved_data_is_empty) {
  ASSERT_EQ(publish(1, {"a"}), HeadResult::stored);
  RedisClient(*server).run({"SAVE"});
  server->kill();
  server->start();
  EXPECT_NE(RedisClient(*server).run({"DBSIZE"}).at(0), "0");
  EXPECT_EQ(head(), std::nullopt);
  EXPECT_EQ(updates(1, 1), "");
}

void expect_replicating(RedisTestServer& replica) {
  const auto end = std::chrono::steady_clock::now() + seconds(30);
  while (RedisClient(replica).info("master_link_status") != "up") {
    ASSERT_LT(std::chrono::steady_clock::now(), end);
    std::this_thread::sleep_for(milliseconds(20));
  }
}

TEST_F(RedisStoreTest, replica_that_takes_over_is_empty_each_time) {
  RedisTestServer other;
  testing::TcpProxy proxy(server->port());
  RedisStore behind(redis_at_port(proxy.port()), seconds(2));
  RedisTestServer* primary = &*server;
  RedisTestServer* replica = &other;
  for (UpdateId round = 1; round <= 2; ++round) {  // the second one returns to a server it knows
    ASSERT_EQ(publish_by(behind, round, {"body"}), HeadResult::stored) << round;
    RedisClient(*replica).run({"REPLICAOF", "127.0.0.1", std::to_string(primary->port())});
    expect_replicating(*replica);
    ASSERT_NE(RedisClient(*replica).run({"DBSIZE"}).at(0), "0");

    RedisClient(*replica).run({"REPLICAOF", "NO", "ONE"});
    proxy.point_to(replica->port());
    std::this_thread::sleep_for(milliseconds(2'100));  // it was noticed by a failure
    behind.get_head(key_prefix);
    std::this_thread::sleep_for(milliseconds(2'100));
    const auto found = behind.get_head(key_prefix);
    ASSERT_TRUE(found.has_value());
    EXPECT_FALSE(found->head.has_value()) << round;
    std::swap(primary, replica);
  }
}

// Makes a server a replica of `other`, which has another head record.
void demote(RedisTestServer& server, RedisTestServer& other) {
  RedisClient(other).run({"REPLICAOF", "127.0.0.1", std::to_string(server.port())});
  expect_replicating(other);
  RedisClient client(other);
  client.run({"REPLICAOF", "NO", "ONE"});
  client.run({"SET", client.run({"KEYS", "*head"}).at(0), "head of another time"});
  RedisClient(server).run({"REPLICAOF", "127.0.0.1", std::to_string(other.port())});
  expect_replicating(server);
}

// A client that stays connected gets no word of it.
TEST_F(RedisStoreTest, primary_that_becomes_a_replica_is_empty) {
  ASSERT_EQ(publish(1, {"a"}), HeadResult::stored);
  RedisTestServer other;
  demote(*server, other);
  EXPECT_FALSE(store->get_head(key_prefix).has_value());
  const auto found = store->get_head(key_prefix);
  ASSERT_TRUE(found.has_value());
  EXPECT_FALSE(found->head.has_value());
}

// The request of a thread that was woken asks for the head and for the data at once.
TEST_F(RedisStoreTest, primary_that_becomes_a_replica_is_empty_for_woken_thread) {
  ASSERT_EQ(publish(1, {"a"}), HeadResult::stored);
  ASSERT_TRUE(store->get_head(key_prefix).has_value());  // no longer a new record
  ASSERT_TRUE(store->wait(key_prefix, 0, seconds(30)));
  RedisTestServer other;
  demote(*server, other);
  RedisClient client(*server);
  client.run({"CONFIG", "RESETSTAT"});
  EXPECT_FALSE(store->get_head(key_prefix).has_value());
  EXPECT_EQ(calls_of(client, "info"), 1);
  const auto found = store->get_head(key_prefix);
  ASSERT_TRUE(found.has_value());
  EXPECT_FALSE(found->head.has_value());
}

// --- Servers that refuse. ---

// Expects one report with these words, and that the store is out of use meanwhile.
template <typename... Words>
void expect_refusal(RedisStore& store, const Words&... words) {
  expect_error(
      ErrorKind::unavailable, [&] { store.wait(key_prefix, 0, seconds(5)); }, words...);
  EXPECT_FALSE(store.notifies());
}

TEST_F(RedisStoreTest, password_that_is_missing_or_wrong_is_reported) {
  RedisTestServer closed({"--requirepass", "secret"});
  RedisStore without(redis_at(closed.address()), seconds(2));
  EXPECT_FALSE(without.get_head(key_prefix).has_value());
  expect_refusal(without, "NOAUTH", "redis_password_file=");

  testing::TemporaryDirectory directory;
  RedisServer with_file = redis_at(closed.address());
  with_file.password_file = directory.file("password");
  RedisStore no_file(with_file, seconds(2));
  expect_error(
      ErrorKind::unavailable, [&] { no_file.wait(key_prefix, 0, seconds(5)); }, "password_file");

  std::ofstream(with_file.password_file) << "wrong\n";
  RedisStore wrong(with_file, seconds(2));
  expect_refusal(wrong, "WRONGPASS");
  std::ofstream(with_file.password_file) << "secret\n";
  EXPECT_TRUE(RedisStore(with_file, seconds(2)).get_head(key_prefix).has_value());
}

// "-@all", "+info" ...: what docs/logs.md gives to a user.
std::vector<std::string> documented_permissions() {
  const std::string text = testing::read_file(WHYCACHE_SOURCE_FOLDER "/docs/logs.md");
  const std::size_t begin = text.find("-@all");
  std::istringstream words(text.substr(begin, text.find("\n\n", begin) - begin));
  return {std::istream_iterator<std::string>(words), {}};
}

TEST_F(RedisStoreTest, setuid_program_does_not_log_in_with_password_of_its_caller) {
  const SetuidProgram program;
  if (!program.is_possible()) GTEST_SKIP() << "NOT TESTED: needs root, and a mount without nosuid";
  RedisTestServer closed({"--requirepass", "secret"});
  const testing::TemporaryDirectory directory;
  ASSERT_EQ(::chmod(directory.path().c_str(), 0777), 0);
  for (const bool is_setuid : {false, true}) {
    const std::string url = "redis+file://" + directory.file(is_setuid ? "setuid" : "plain") +
                            "?redis=" + closed.address();
    const std::string output = program.run(is_setuid, {"WHYCACHE_REDIS_PASSWORD=secret"}, url);
    EXPECT_EQ(output.find("NOAUTH") != std::string::npos, is_setuid) << output;
    EXPECT_EQ(output == "opened\n", !is_setuid) << output;
  }
}

TEST_F(RedisStoreTest, user_needs_only_what_the_documentation_lists) {
  testing::TemporaryDirectory directory;
  std::ofstream(directory.file("password")) << "secret\n";
  std::vector<std::string> rule = {"ACL", "SETUSER", "flags", "on", ">secret", "~whycache2:*"};
  for (const std::string& permission : documented_permissions()) rule.push_back(permission);
  RedisClient(*server).run(rule);
  RedisServer with_user = redis_at(server->address());
  with_user.user = "flags";
  with_user.password_file = directory.file("password");
  store = std::make_unique<RedisStore>(with_user, seconds(2));
  ASSERT_EQ(publish(1, {"a", "b", "c"}), HeadResult::stored);
  publish_without_head(2, "x");
  publish_without_head(3, std::string(20'000, 'y'));
  publish_without_head(3, "z");
  for (UpdateId id = 4; id <= 60; ++id) publish_without_head(id, std::string(400'000, 'x'));
  EXPECT_EQ(updates_by(*store, 20, 20), "20=" + std::string(400'000, 'x'));
  EXPECT_TRUE(store->add_poll_lease(key_prefix, "mine", seconds(10)));
  EXPECT_TRUE(store->add_fill_lease(key_prefix, 1, seconds(10)));
  EXPECT_TRUE(store->wait(key_prefix, 1, seconds(10)));

  RedisClient(*server).run({"ACL", "SETUSER", "flags", "-xread"});
  RedisStore limited(with_user, seconds(2));
  expect_refusal(limited, "NOPERM", "docs/logs.md");
}

TEST_F(RedisStoreTest, cluster_is_reported) {
  RedisTestServer cluster({"--cluster-enabled", "yes"});
  RedisStore of_cluster(redis_at(cluster.address()), seconds(2));
  EXPECT_FALSE(of_cluster.get_head(key_prefix).has_value());
  expect_refusal(of_cluster, "is a cluster");
}

TEST_F(RedisStoreTest, replica_is_reported_and_still_read) {
  RedisTestServer replica({"--replicaof", "127.0.0.1 " + std::to_string(server->port())});
  expect_replicating(replica);
  RedisStore reading(redis_at(replica.address()), seconds(2));
  EXPECT_EQ(publish_by(reading, 1, {"a"}), HeadResult::failed);
  expect_refusal(reading, "READONLY", "name the primary");
  EXPECT_TRUE(reading.get_head(key_prefix).has_value());
}

TEST_F(RedisStoreTest, replica_costs_no_connection_per_request) {
  RedisTestServer replica({"--replicaof", "127.0.0.1 " + std::to_string(server->port())});
  expect_replicating(replica);
  RedisStore store_of_replica(redis_at(replica.address()), seconds(2));
  RedisClient client(replica);
  const auto connections = [&] { return std::stoi(client.info("total_connections_received")); };
  store_of_replica.get_head(key_prefix);
  const int before = connections();
  const auto end = std::chrono::steady_clock::now() + seconds(1);
  while (std::chrono::steady_clock::now() < end) {
    EXPECT_TRUE(store_of_replica.get_head(key_prefix).has_value());
    EXPECT_FALSE(store_of_replica.add_poll_lease(key_prefix, "mine", seconds(1)));
    EXPECT_EQ(publish_by(store_of_replica, 1, {"a"}), HeadResult::failed);
  }
  EXPECT_EQ(connections(), before);
  client.run({"REPLICAOF", "NO", "ONE"});
  std::this_thread::sleep_for(milliseconds(2'100));
  EXPECT_EQ(publish_by(store_of_replica, 1, {"a"}), HeadResult::stored);
  const auto other = std::make_unique<RedisStore>(redis_at(replica.address()), seconds(2));
  EXPECT_EQ(updates_by(*other, 1, 1), "1=a") << "under the keys of the primary that it is now";
}

TEST_F(RedisStoreTest, new_connection_to_a_promoted_replica_is_written_to_at_once) {
  RedisTestServer replica({"--replicaof", "127.0.0.1 " + std::to_string(server->port())});
  expect_replicating(replica);
  RedisStore store_of_replica(redis_at(replica.address()), seconds(2));
  EXPECT_EQ(publish_by(store_of_replica, 1, {"a"}), HeadResult::failed);
  RedisClient client(replica);
  client.run({"REPLICAOF", "NO", "ONE"});
  client.run({"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"});
  std::this_thread::sleep_for(milliseconds(1'100));
  EXPECT_EQ(publish_by(store_of_replica, 1, {"a"}), HeadResult::stored);
}

// The script is longer than most updates.
TEST_F(RedisStoreTest, script_is_sent_once) {
  RedisClient client(*server);
  const auto calls = [&](const std::string& command) { return calls_of(client, command); };
  for (UpdateId id = 1; id <= 10; ++id) ASSERT_EQ(publish(id, {"x"}), HeadResult::stored);
  EXPECT_EQ(calls("eval"), 1);
  client.run({"SCRIPT", "FLUSH"});
  ASSERT_EQ(publish(11, {"x"}), HeadResult::stored);
  EXPECT_EQ(calls("eval"), 2);
  EXPECT_EQ(updates(11, 11), "11=x");
}

TEST_F(RedisStoreTest, full_server_is_reported_and_still_read) {
  ASSERT_EQ(publish(1, {"a"}), HeadResult::stored);
  RedisClient(*server).run({"CONFIG", "SET", "maxmemory", "1"});
  EXPECT_EQ(publish(2, {"b"}), HeadResult::failed);
  expect_refusal(*store, "OOM", "maxmemory");
  EXPECT_EQ(store->get_head(key_prefix)->head->bytes, "head 1");
  RedisClient(*server).run({"CONFIG", "SET", "maxmemory", "0"});
  EXPECT_EQ(publish(2, {"b"}), HeadResult::stored);
}

TEST_F(RedisStoreTest, key_of_another_type_is_reported) {
  ASSERT_EQ(publish(1, {"a"}), HeadResult::stored);
  RedisClient client(*server);
  const std::string key = client.run({"KEYS", "*updates"}).at(0);
  client.run({"SET", key, "not a stream"});
  EXPECT_FALSE(store->get_updates(key_prefix, 1, 1).has_value());
  expect_refusal(*store, "WRONGTYPE", "delete them");
}

TEST_F(RedisStoreTest, foreign_entries_of_the_stream_are_replaced) {
  ASSERT_EQ(publish(1, {"a"}), HeadResult::stored);
  RedisClient client(*server);
  const std::string key = client.run({"KEYS", "*updates"}).at(0);
  client.run({"XADD", key, "5-3", "field", "value"});
  client.run({"XADD", key, "9-0", "x", "y", "z", "0"});
  EXPECT_EQ(updates(1, 20), "1=a");
  ASSERT_EQ(publish(2, {"b"}), HeadResult::stored);
  EXPECT_EQ(updates(1, 20), "2=b");
}

// --- Servers that lie, hang, or are cut off. ---

// Accepts connections, and sends the same bytes to each, whatever was asked. Then `trickle`, again
// and again, to the last one.
class LyingServer {
 public:
  explicit LyingServer(std::string bytes, std::string trickle = "")
      : bytes_(std::move(bytes)), trickle_(std::move(trickle)) {
    listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    socklen_t size = sizeof address;
    if (::bind(listener_, reinterpret_cast<const sockaddr*>(&address), size) != 0 ||
        ::listen(listener_, 16) != 0 ||
        ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &size) != 0)
      throw std::runtime_error("cannot listen");
    port_ = ntohs(address.sin_port);
    thread_ = std::thread([this] {
      for (;;) {
        const int socket = ::accept(listener_, nullptr, nullptr);
        if (socket < 0) return;
        sockets_.push_back(socket);
        static_cast<void>(::send(socket, bytes_.data(), bytes_.size(), MSG_NOSIGNAL));
        while (!trickle_.empty() &&
               ::send(socket, trickle_.data(), trickle_.size(), MSG_NOSIGNAL) > 0)
          std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
    });
  }
  LyingServer(const LyingServer&) = delete;
  LyingServer& operator=(const LyingServer&) = delete;
  ~LyingServer() {
    ::shutdown(listener_, SHUT_RDWR);
    thread_.join();
    for (const int socket : sockets_) ::close(socket);
    ::close(listener_);
  }
  std::uint16_t port() const { return port_; }

 private:
  const std::string bytes_;
  const std::string trickle_;
  int listener_;
  std::uint16_t port_ = 0;
  std::vector<int> sockets_;
  std::thread thread_;
};

std::string repeated(const std::string& text, int count) {
  std::string all;
  for (int i = 0; i < count; ++i) all += text;
  return all;
}

// The answers to the first two commands.
std::string hello_of_liar() {
  const auto text = [](const std::string& bytes) {
    return '$' + std::to_string(bytes.size()) + "\r\n" + bytes + "\r\n";
  };
  return text("# Server\r\nrun_id:x\r\n") + text("# R\r\nmaster_replid:y\r\n");
}

TEST(RedisStoreLies, answer_that_never_ends_fails_request_in_time) {
  LyingServer server(hello_of_liar() + "+", std::string(400, 'x'));
  RedisStore store(redis_at_port(server.port()), milliseconds(200));
  const auto began = std::chrono::steady_clock::now();
  EXPECT_FALSE(store.get_head(key_prefix).has_value());
  EXPECT_LT(std::chrono::steady_clock::now() - began, seconds(3));
}

TEST(RedisStoreLies, nonsense_fails_requests_in_time) {
  const std::string hello = hello_of_liar();
  std::mt19937_64 random(testing::test_seed());
  SCOPED_TRACE(testing::seed_note());
  std::vector<std::string> lies = {"",
                                   "HTTP/1.1 400 Bad Request\r\n\r\n",
                                   hello + "*2147483647\r\n",
                                   hello + "*-5\r\n",
                                   hello + "$99999999999999\r\n",
                                   hello + "$5\r\nab\r\n",
                                   hello + "*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n*1\r\n",
                                   hello + ":5\r\n",
                                   hello + "+OK\r\n",
                                   hello + "*2\r\n:1\r\n*0\r\n",
                                   hello + "*1\r\n*2\r\n+key\r\n*1\r\n*2\r\n+5-0\r\n*1\r\n+b\r\n",
                                   hello + "*2\r\n" + repeated("*1\r\n", 100'000),
                                   hello + repeated("*50000\r\n", 5) + repeated("*0\r\n", 100'000),
                                   std::string(1 << 20, '*')};
  for (int i = 0; i < 20; ++i) {
    std::string bytes = hello;
    for (int length = 0; length < 200; ++length) bytes += "*$:+-0123456789\r\nab"[random() % 20];
    lies.push_back(bytes);
  }
  for (const std::string& lie : lies) {
    SCOPED_TRACE(lie.substr(0, 300));
    LyingServer server(lie);
    RedisStore store(redis_at_port(server.port()), milliseconds(100));
    const auto began = std::chrono::steady_clock::now();
    store.get_head(key_prefix);
    store.get_updates(key_prefix, 1, 3);
    store.add_poll_lease(key_prefix, "x", seconds(1));
    const Update update{1, "x"};
    store.publish(key_prefix, {&update, 1}, std::nullopt);
    try {
      store.wait(key_prefix, 0, milliseconds(100));
    } catch (const Error&) {
    }
    EXPECT_LT(std::chrono::steady_clock::now() - began, seconds(5));
  }
}

TEST_F(RedisStoreTest, hanging_server_fails_requests_in_time_and_is_avoided) {
  store = open(milliseconds(100));
  ASSERT_TRUE(store->get_head(key_prefix).has_value());
  const auto time_of_get = [&] {
    const auto began = std::chrono::steady_clock::now();
    EXPECT_FALSE(store->get_head(key_prefix).has_value());
    return std::chrono::steady_clock::now() - began;
  };
  server->pause();
  EXPECT_LT(time_of_get(), milliseconds(1'000));
  EXPECT_FALSE(store->is_available());
  EXPECT_LT(time_of_get(), milliseconds(50));  // sends no request
  server->resume();
  const auto end = std::chrono::steady_clock::now() + seconds(20);
  while (!store->get_head(key_prefix) && std::chrono::steady_clock::now() < end)
    std::this_thread::sleep_for(milliseconds(50));
  EXPECT_TRUE(store->is_available());
}

// The answer that the first call did not wait for is not taken for that of the second.
TEST_F(RedisStoreTest, short_deadline_of_a_caller_leaves_the_connection_usable) {
  ASSERT_EQ(publish(1, {"a"}), HeadResult::stored);
  server->pause();
  {
    const Deadline deadline(milliseconds(20));
    const CallLimit limit(deadline);
    EXPECT_FALSE(store->get_updates(key_prefix, 1, 1).has_value());
  }
  EXPECT_TRUE(store->is_available());
  server->resume();
  const auto found = store->get_head(key_prefix);
  ASSERT_TRUE(found && found->head);
  EXPECT_EQ(found->head->bytes, "head 1");
}

TEST_F(RedisStoreTest, answer_left_behind_long_ago_leaves_the_connection_usable) {
  ASSERT_EQ(publish(1, {"a"}), HeadResult::stored);
  RedisClient client(*server);
  const std::string connections = client.info("total_connections_received");
  server->pause();
  {
    const Deadline deadline(milliseconds(20));
    const CallLimit limit(deadline);
    EXPECT_FALSE(store->get_updates(key_prefix, 1, 1).has_value());
  }
  server->resume();
  std::this_thread::sleep_for(milliseconds(2'100));  // longer than the timeout
  EXPECT_TRUE(store->get_head(key_prefix).has_value());
  EXPECT_EQ(client.info("total_connections_received"), connections);
}

// After a new head record, the store asks whether the server is still the same.
TEST(RedisStoreLies, short_deadline_does_not_condemn_server_that_answers_half) {
  LyingServer server(hello_of_liar() + "*2\r\n$4\r\nhead\r\n$-1\r\n");
  RedisStore store(redis_at_port(server.port()), seconds(60));
  const Deadline deadline(milliseconds(50));
  const CallLimit limit(deadline);
  EXPECT_FALSE(store.get_head(key_prefix).has_value());
  EXPECT_TRUE(store.is_available());
}

TEST_F(RedisStoreTest, connection_closed_while_idle_is_opened_again) {
  ASSERT_EQ(publish(1, {"a"}), HeadResult::stored);
  RedisClient(*server).run({"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"});
  std::this_thread::sleep_for(milliseconds(1'100));
  EXPECT_TRUE(store->get_head(key_prefix).has_value());
}

TEST_F(RedisStoreTest, missing_server_fails_requests_without_report) {
  RedisStore missing(redis_at_port(testing::free_port()), milliseconds(100));
  EXPECT_FALSE(missing.get_head(key_prefix).has_value());
  EXPECT_FALSE(missing.wait(key_prefix, 0, milliseconds(50)));
  EXPECT_TRUE(missing.notifies());
}

TEST_F(RedisStoreTest, child_makes_no_request) {
  ASSERT_EQ(publish(1, {"a"}), HeadResult::stored);
  Child child([&] {
    if (store->is_available() || store->notifies() || store->get_head(key_prefix) ||
        store->get_updates(key_prefix, 1, 1))
      throw std::runtime_error("the child uses the connection of its parent");
    store.reset();
  });
  EXPECT_EQ(child.wait(), 0);
  EXPECT_EQ(store->get_head(key_prefix)->head->bytes, "head 1");
}

// Its copy of what the threads wait for must not be destroyed.
TEST_F(RedisStoreTest, child_may_destroy_store_that_threads_of_parent_wait_for) {
  std::thread waiting([&] { store->wait(key_prefix, 0, seconds(2)); });
  std::thread also_waiting([&] { store->wait(key_prefix, 0, seconds(2)); });
  std::this_thread::sleep_for(milliseconds(300));
  Child child([&] { store.reset(); });
  EXPECT_EQ(child.wait(), 0);
  waiting.join();
  also_waiting.join();
}

// A follower behind connections that end at random bytes has, at every moment, a key_prefix of the
// log.
TEST_F(RedisStoreTest, connections_cut_at_random_bytes_never_yield_a_wrong_update) {
  std::mt19937_64 random(testing::test_seed());
  SCOPED_TRACE(testing::seed_note());
  testing::TcpProxy proxy(server->port());
  std::atomic<std::uint64_t> next_random{random()};
  proxy.set_fault_chooser([&](std::uint64_t connection) {
    std::mt19937_64 of_connection(next_random + connection);
    testing::TcpProxy::ConnectionFaults faults;
    faults.cut_by_reset = of_connection() % 2 == 0;
    auto& direction = of_connection() % 2 == 0 ? faults.to_client : faults.to_server;
    direction.cut_after = of_connection() % 20'000;
    return faults;
  });
  FileStore files;
  TierOptions options;
  options.timeout = seconds(2);
  const auto tier_at = [&](std::uint16_t port) {
    return MakeTierStore([port, &options] {
      return std::make_unique<RedisStore>(redis_at_port(port), options.timeout);
    });
  };
  TieredLog writer(files.open(), tier_at(server->port()), options);
  UpdateId applied = 0;
  const auto end = std::chrono::steady_clock::now() + seconds(20);
  for (UpdateId id = 1; id <= 300 && std::chrono::steady_clock::now() < end; ++id) {
    ASSERT_EQ(writer.append(id, "body " + std::to_string(id)), Log::Appended::yes);
    TieredLog follower(files.open(), tier_at(proxy.port()), options);
    for (int poll = 0; poll < 3; ++poll) {
      follower.wait(applied, milliseconds(5));
      follower.poll(applied + 1, std::nullopt, [&](UpdateId found, std::string_view bytes) {
        EXPECT_EQ(found, applied + 1);
        EXPECT_EQ(bytes, "body " + std::to_string(found));
        applied = found;
        return true;
      });
    }
    EXPECT_EQ(applied, id);
  }
  EXPECT_GT(proxy.cuts(), 0U);
}

// --- The URL. ---

TEST(RedisUrl, options_are_checked) {
  const std::string url = "redis+memory:?redis=";
  for (const char* wrong : {"", ":6379", "host:", "host:0", "host:65536", "[::1"}) {
    if (*wrong == '\0') continue;  // an option without a value is an error of the URL
    expect_error(
        ErrorKind::invalid, [&] { open_log(url + wrong); }, "redis");
  }
  expect_error(
      ErrorKind::invalid, [&] { open_log(url + "127.0.0.1&redis_tls=yes"); }, "redis_tls");
  expect_error(
      ErrorKind::invalid, [&] { open_log(url + "/run/redis.sock&redis_tls=verify"); }, "TLS");
  // Nothing is sent in plain text over a network, unless that is asked for: a build without TLS
  // refuses.
  for (const char* encrypted : {"redis.example.org", "127.0.0.1&redis_tls=verify"}) {
    if (const auto error = testing::thrown_error([&] { open_log(url + encrypted); })) {
      EXPECT_EQ(error->kind(), ErrorKind::invalid);
      EXPECT_NE(std::string(error->what()).find("hiredis_ssl"), std::string::npos);
      EXPECT_NE(std::string(error->what()).find("redis_tls=off"), std::string::npos);
    } else {
      Url parsed("memory:?redis=" + std::string(encrypted));
      EXPECT_TRUE(take_redis_server(parsed).verifies_tls);
    }
  }
  EXPECT_NE(open_log(url + "redis.example.org&redis_tls=off"), nullptr);
  EXPECT_NE(open_log(url + "/run/redis.sock&redis_user=flags&redis_password_file=/run/secret"),
            nullptr);
}

}  // namespace
}  // namespace whycache
