// TLS to Redis, with real servers: what is verified, what is refused, and that an encrypted
// connection keeps the promises of a plain one. Built without the rest of the library, too, see
// redis_tls/redis_tls_test.py.
#include <gtest/gtest.h>
#include <pthread.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include <whycache/error.h>

#include "log/child.h"
#include "log/memory_log.h"
#include "log/redis_store.h"
#include "log/redis_tls.h"
#include "log/tiered_log.h"
#include "support/certificate_authority.h"
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
using testing::CertificateAuthority;
using testing::expect_error;
using testing::RedisClient;
using testing::RedisTestServer;

constexpr char prefix[] = "whycache2:test:";

// A Redis with a plain port, and one for TLS.
class TlsRedis {
 public:
  TlsRedis(const CertificateAuthority& authority, const std::string& certificate,
           const std::vector<std::string>& options = {"--tls-auth-clients", "no"})
      : server_(with_tls(authority, certificate, options)) {}
  std::uint16_t port() const { return port_; }
  RedisTestServer& server() { return server_; }

 private:
  std::vector<std::string> with_tls(const CertificateAuthority& authority,
                                    const std::string& certificate,
                                    const std::vector<std::string>& options) const {
    std::vector<std::string> all = {"--tls-port",         std::to_string(port_), "--tls-cert-file",
                                    certificate,          "--tls-key-file",      authority.key(),
                                    "--tls-ca-cert-file", authority.ca()};
    all.insert(all.end(), options.begin(), options.end());
    return all;
  }

  const std::uint16_t port_ = testing::free_port();
  RedisTestServer server_;
};

RedisServer redis_at(const std::string& host, std::uint16_t port, const std::string& ca) {
  RedisServer server;
  server.address = {host, port, ""};
  server.verifies_tls = true;
  server.tls_ca = ca;
  return server;
}

template <typename... Words>
void expect_refusal(const RedisServer& server, const Words&... words) {
  RedisStore store(server, seconds(4));
  EXPECT_FALSE(store.get_head(prefix).has_value());
  expect_error(
      ErrorKind::unavailable, [&] { store.wait(prefix, 0, seconds(5)); }, words...);
  EXPECT_FALSE(store.notifies());
}

bool publish(TierStore& store, UpdateId id, const std::string& body) {
  const TierStore::UpdateView update{id, body};
  return store.publish(prefix, {&update, 1}, std::nullopt).has_updates;
}

std::string update_of(TierStore& store, UpdateId id) {
  const auto found = store.get_updates(prefix, id, id);
  return found && (*found)[0] ? (*found)[0]->bytes : "";
}

// Returns whether this process runs the current test alone, with these variables of the
// environment. If not, starts a process that does, and expects that it passes.
bool runs_alone(const std::string& variables = "") {
  if (std::getenv("WHYCACHE_TEST_ALONE") != nullptr) return true;
  const ::testing::TestInfo& test = *::testing::UnitTest::GetInstance()->current_test_info();
  const std::string program = std::filesystem::read_symlink("/proc/self/exe").string();
  const std::string command = variables + " WHYCACHE_TEST_ALONE=1 '" + program +
                              "' --gtest_filter=" + test.test_suite_name() + '.' + test.name();
  EXPECT_EQ(std::system(command.c_str()), 0) << command;
  return false;
}

// --- Preparation. ---

std::atomic<bool> prepares_during_fork{false};
std::thread preparing_thread;

void prepare_tls_during_fork() {
  if (!prepares_during_fork.exchange(false)) return;
  preparing_thread = std::thread(prepare_redis_tls);
  std::this_thread::sleep_for(milliseconds(200));
}
// Such handlers run in reverse order. This one runs after that of the library, which lets no thread
// into OpenSSL until the process has forked.
[[gnu::constructor(101)]] void register_before_the_library() {
  ::pthread_atfork(prepare_tls_during_fork, nullptr, nullptr);
}

TEST(RedisTlsPreparation, child_forked_while_another_thread_prepares_can_prepare) {
  if (!runs_alone()) return;
  prepares_during_fork = true;
  Child child([] {
    ::alarm(20);
    prepare_redis_tls();
  });
  EXPECT_EQ(child.wait(), 0);
  preparing_thread.join();
}

TEST(RedisTlsPreparation, log_is_appended_and_read_while_openssl_has_no_ciphers) {
  const testing::TemporaryDirectory directory;
  const std::string configuration = directory.file("openssl.cnf");
  std::ofstream(configuration) << "openssl_conf = top\n[top]\nproviders = all\n"
                                  "[all]\nbase = base_provider\n[base_provider]\nactivate = 1\n";
  if (!runs_alone("OPENSSL_CONF=" + configuration)) return;
  const RedisTestServer redis;
  TieredLog log(
      MemoryLog::shared("tls"),
      [&] {
        return std::make_unique<RedisStore>(redis_at("127.0.0.1", redis.port(), ""), seconds(4));
      },
      TierOptions{});
  EXPECT_EQ(log.append(1, "update"), Log::Appended::yes);
  UpdateId read = 0;
  log.poll(1, std::nullopt, [&](UpdateId id, std::string_view) {
    read = id;
    return true;
  });
  EXPECT_EQ(read, 1U);
  expect_error(
      ErrorKind::unavailable, [&] { log.wait(1, seconds(5)); }, "OpenSSL cannot be used",
      "openssl.cnf");
}

// --- Connections. ---

class RedisTls : public ::testing::Test {
 protected:
  const CertificateAuthority authority{"DNS:localhost,IP:127.0.0.1"};
};

TEST_F(RedisTls, verified_server_keeps_updates_and_wakes_waiters) {
  const TlsRedis redis(authority, authority.certificate());
  RedisStore store(redis_at("127.0.0.1", redis.port(), authority.ca()), seconds(4));
  RedisStore waiting(redis_at("localhost", redis.port(), authority.ca()), seconds(4));
  for (UpdateId id = 1; id <= 5; ++id) {
    const std::string body(id * 150'000, static_cast<char>('a' + id));
    std::thread later([&] {
      std::this_thread::sleep_for(milliseconds(20));
      EXPECT_TRUE(publish(store, id, body));
    });
    EXPECT_TRUE(waiting.wait(prefix, id - 1, seconds(30)));
    later.join();
    EXPECT_EQ(update_of(waiting, id), body);
  }
}

TEST_F(RedisTls, certificate_of_another_authority_is_refused) {
  const CertificateAuthority stranger("DNS:localhost,IP:127.0.0.1");
  const TlsRedis redis(authority, authority.certificate());
  expect_refusal(redis_at("127.0.0.1", redis.port(), stranger.ca()), "certificate", "redis_tls_ca");
  expect_refusal(redis_at("127.0.0.1", redis.port(), ""), "certificate", "redis_tls_ca");
}

TEST_F(RedisTls, certificate_of_another_host_is_refused) {
  const CertificateAuthority elsewhere("DNS:elsewhere.example.org,IP:127.0.0.9");
  const TlsRedis redis(elsewhere, elsewhere.certificate());
  for (const char* host : {"127.0.0.1", "localhost"}) {
    expect_refusal(redis_at(host, redis.port(), elsewhere.ca()), "mismatch",
                   "as its certificate does");
  }
}

TEST_F(RedisTls, expired_certificate_is_refused) {
  const TlsRedis redis(authority, authority.expired_certificate());
  expect_refusal(redis_at("127.0.0.1", redis.port(), authority.ca()), "expired",
                 "renew the certificate");
}

TEST_F(RedisTls, port_without_tls_is_refused) {
  TlsRedis redis(authority, authority.certificate());
  expect_refusal(redis_at("127.0.0.1", redis.server().port(), authority.ca()),
                 "does not support it", "tls-port");
}

TEST_F(RedisTls, server_gets_requested_certificate_or_refusal_names_it) {
  for (const auto& [protocol, refusal] :
       {std::pair("TLSv1.2", "handshake failure"), std::pair("TLSv1.3", "certificate required")}) {
    SCOPED_TRACE(protocol);
    const TlsRedis redis(authority, authority.certificate(),
                         {"--tls-auth-clients", "yes", "--tls-protocols", protocol});
    RedisServer server = redis_at("127.0.0.1", redis.port(), authority.ca());
    expect_refusal(server, refusal, "redis_tls_cert");
    server.tls_certificate = authority.certificate();
    server.tls_key = authority.key();
    RedisStore store(server, seconds(4));
    EXPECT_TRUE(publish(store, 1, "body"));
    EXPECT_EQ(update_of(store, 1), "body");
  }
}

TEST_F(RedisTls, server_that_speaks_only_an_older_protocol_is_refused) {
  const TlsRedis redis(authority, authority.certificate(),
                       {"--tls-auth-clients", "no", "--tls-protocols", "TLSv1.1", "--tls-ciphers",
                        "ALL:@SECLEVEL=0"});
  expect_refusal(redis_at("127.0.0.1", redis.port(), authority.ca()), "protocol", "TLS 1.2 or 1.3");
}

TEST_F(RedisTls, server_without_a_common_cipher_is_refused) {
  const TlsRedis redis(
      authority, authority.certificate(),
      {"--tls-auth-clients", "no", "--tls-protocols", "TLSv1.2", "--tls-ciphers", "PSK"});
  expect_refusal(redis_at("127.0.0.1", redis.port(), authority.ca()), "handshake failure",
                 "ciphers");
}

TEST_F(RedisTls, file_that_cannot_be_used_is_named) {
  const TlsRedis redis(authority, authority.certificate());
  const auto expect_problem = [](const RedisServer& server, const std::string& option,
                                 const std::string& why) {
    RedisStore store(server, seconds(4));
    EXPECT_FALSE(store.get_head(prefix).has_value());
    expect_error(
        ErrorKind::unavailable, [&] { store.wait(prefix, 0, seconds(5)); }, option, why);
  };
  RedisServer server = redis_at("127.0.0.1", redis.port(), "/nowhere/ca.pem");
  expect_problem(server, "redis_tls_ca", "/nowhere/ca.pem: No such file");
  server.tls_ca = authority.ca();
  server.tls_certificate = authority.certificate();
  server.tls_key = authority.certificate();  // holds no key
  expect_problem(server, "redis_tls_key", authority.certificate());
}

TEST_F(RedisTls, user_logs_in_with_a_password_from_a_file) {
  TlsRedis redis(authority, authority.certificate());
  RedisClient(redis.server()).run({"ACL", "SETUSER", "flags", "on", ">secret", "~*", "+@all"});
  RedisClient(redis.server()).run({"ACL", "SETUSER", "default", "off"});
  const testing::TemporaryDirectory directory;
  RedisServer server = redis_at("127.0.0.1", redis.port(), authority.ca());
  server.user = "flags";
  server.password_file = directory.file("password");
  std::ofstream(server.password_file) << "secret\n";
  RedisStore store(server, seconds(4));
  EXPECT_TRUE(publish(store, 1, "body"));
  std::ofstream(server.password_file) << "wrong\n";
  expect_refusal(server, "WRONGPASS");
}

TEST_F(RedisTls, connection_says_when_the_certificate_expires) {
  const TlsRedis redis(authority, authority.certificate());
  const RedisConnection connection(redis_at("127.0.0.1", redis.port(), authority.ca()),
                                   Deadline(seconds(20)));
  EXPECT_TRUE(connection.certificate_end().ends_with(" GMT")) << connection.certificate_end();
}

TEST_F(RedisTls, server_that_hangs_fails_requests_in_time_without_a_report) {
  TlsRedis redis(authority, authority.certificate());
  const RedisServer server = redis_at("127.0.0.1", redis.port(), authority.ca());
  RedisStore connected(server, milliseconds(200));
  RedisStore fresh(server, milliseconds(200));
  EXPECT_TRUE(publish(connected, 1, "body"));
  redis.server().pause();
  const auto began = std::chrono::steady_clock::now();
  EXPECT_FALSE(connected.get_head(prefix).has_value());
  EXPECT_FALSE(fresh.get_head(prefix).has_value());
  EXPECT_FALSE(fresh.wait(prefix, 0, milliseconds(100)));
  EXPECT_LT(std::chrono::steady_clock::now() - began, seconds(3));
  EXPECT_TRUE(fresh.notifies());
  redis.server().resume();
}

// Writing to a connection that the server has closed raises no signal.
TEST_F(RedisTls, connection_that_the_server_closed_is_opened_again) {
  TlsRedis redis(authority, authority.certificate());
  RedisStore store(redis_at("127.0.0.1", redis.port(), authority.ca()), seconds(4));
  EXPECT_TRUE(publish(store, 1, "body"));
  RedisClient(redis.server()).run({"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"});
  std::this_thread::sleep_for(milliseconds(1'100));
  EXPECT_EQ(update_of(store, 1), "body") << "noticed before the request";
  RedisClient(redis.server()).run({"CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"});
  publish(store, 2, std::string(900'000, 'x'));
}

TEST_F(RedisTls, child_destroys_the_store_of_its_parent) {
  TlsRedis redis(authority, authority.certificate());
  auto store =
      std::make_unique<RedisStore>(redis_at("127.0.0.1", redis.port(), authority.ca()), seconds(4));
  EXPECT_TRUE(publish(*store, 1, "body"));
  std::thread waiting([&] { store->wait(prefix, 1, seconds(1)); });
  std::this_thread::sleep_for(milliseconds(300));
  Child child([&] { store.reset(); });
  EXPECT_EQ(child.wait(), 0);
  EXPECT_EQ(update_of(*store, 1), "body");
  waiting.join();
}

TEST_F(RedisTls, connections_cut_at_random_bytes_never_yield_a_wrong_update) {
  TlsRedis redis(authority, authority.certificate());
  std::mt19937_64 random(testing::test_seed());
  SCOPED_TRACE(testing::seed_note());
  testing::TcpProxy proxy(redis.port());
  const std::uint64_t first_seed = random();
  proxy.set_fault_chooser([&](std::uint64_t connection) {
    std::mt19937_64 of_connection(first_seed + connection);
    testing::TcpProxy::ConnectionFaults faults;
    faults.cut_by_reset = of_connection() % 2 == 0;
    auto& direction = of_connection() % 2 == 0 ? faults.to_client : faults.to_server;
    direction.cut_after = of_connection() % 60'000;
    return faults;
  });
  RedisStore direct(redis_at("127.0.0.1", redis.port(), authority.ca()), seconds(4));
  const auto body_of = [](UpdateId id) {
    return std::string(id % 7 == 0 ? 40'000 : 100, static_cast<char>('a' + id % 26));
  };
  int answers = 0;
  for (UpdateId id = 1; id <= 60; ++id) {
    EXPECT_TRUE(publish(direct, id, body_of(id)));
    RedisStore cut(redis_at("127.0.0.1", proxy.port(), authority.ca()), seconds(4));
    for (int attempt = 0; attempt < 2; ++attempt) {
      if (const std::string found = update_of(cut, id); !found.empty()) {
        EXPECT_EQ(found, body_of(id));
        ++answers;
      }
    }
  }
  EXPECT_GT(answers, 0);
  EXPECT_GT(proxy.cuts(), 0U);
}

// --- The URL. ---

RedisServer server_of(const std::string& options) {
  Url url("memory:?" + options);
  return take_redis_server(url);
}

TEST_F(RedisTls, is_verified_off_loopback_by_default) {
  for (const char* options :
       {"redis=redis.example.org", "redis=10.0.0.5:6380&redis_tls=verify",
        "redis=127.0.0.1&redis_tls=verify", "redis=localhost&redis_tls_ca=/ca.pem",
        "redis=[::1]&redis_tls_cert=/c.pem&redis_tls_key=/k.pem"}) {
    EXPECT_TRUE(server_of(options).verifies_tls) << options;
  }
  for (const char* options : {"redis=redis.example.org&redis_tls=off", "redis=127.0.0.1",
                              "redis=[::1]:6380", "redis=/run/redis.sock"}) {
    EXPECT_FALSE(server_of(options).verifies_tls) << options;
  }
  const auto expect_wrong = [](const std::string& options, const std::string& word) {
    expect_error(
        ErrorKind::invalid, [&] { server_of(options); }, word);
  };
  expect_wrong("redis=h&redis_tls=on", "redis_tls");
  expect_wrong("redis=h&redis_tls=off&redis_tls_ca=/ca.pem", "redis_tls=off contradicts");
  expect_wrong("redis=h&redis_tls_cert=/c.pem", "redis_tls_key");
  expect_wrong("redis=/run/redis.sock&redis_tls=verify", "unix socket");
}

}  // namespace
}  // namespace whycache
