// The log in PostgreSQL over connections that are cut at random bytes, in either direction: the
// outcome that a writer gets for its write is true. WHYCACHE_CUTS sets the minimum number of cuts.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdio>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "log/postgres_test_support.h"
#include "log/write_outcomes.h"
#include "support/child_process.h"
#include "support/tcp_proxy.h"
#include "update/update.h"

namespace whycache {
namespace {

using PostgresLogCutsLong = PostgresTest;
using testing::TcpProxy;

// A server behind a proxy that cuts every connection after a random number of bytes.
class FaultyPostgresNetwork {
 public:
  explicit FaultyPostgresNetwork(const PostgresStore& store)
      : store_(store), proxy_(store.server().port()), random_(testing::test_seed()) {
    proxy_.set_fault_chooser([this](std::uint64_t) {
      TcpProxy::ConnectionFaults faults = random_cut(random_);
      // Opening a connection takes more bytes than in MySQL.
      for (TcpProxy::Direction* const direction : {&faults.to_server, &faults.to_client}) {
        if (direction->cut_after) *direction->cut_after *= 2;
      }
      return faults;
    });
  }

  std::string url(const std::string& options) const {
    return "postgres://postgres@127.0.0.1:" + std::to_string(proxy_.port()) + '/' +
           store_.database() + options;
  }
  std::uint64_t cuts() const { return proxy_.cuts(); }
  // Stops injecting faults, and waits until the server has finished all requests of the cut
  // connections.
  void repair() {
    proxy_.set_faults({});
    proxy_.cut_all();
    EXPECT_TRUE(becomes_true_within(milliseconds(20'000), [&] {
      return store_.run("SELECT count(*) FROM pg_stat_activity WHERE datname = '" +
                        store_.database() + "' AND pid <> pg_backend_pid()") == "0";
    }));
  }

 private:
  const PostgresStore& store_;
  TcpProxy proxy_;
  std::mt19937_64 random_;
};

TEST_F(PostgresLogCutsLong, reported_append_outcomes_match_log) {
  SCOPED_TRACE(testing::seed_note());
  PostgresStore store;
  store.open();
  FaultyPostgresNetwork network(store);
  WriteOutcomes outcomes;
  std::atomic<bool> done{false};
  std::vector<std::thread> writers;
  for (int writer = 0; writer < 4; ++writer) {
    writers.emplace_back([&, writer] {
      const auto log =
          retry_until_success([&] { return open_log(network.url("?deadline_ms=2000")); });
      for (int i = 0; !done; ++i) {
        const std::string text = std::to_string(writer) + ' ' + std::to_string(i);
        const UpdateId id = retry_until_success([&] {
                              const UpdateId head = log->extent().head;
                              updates_of(*log, head);  // required after a new connection
                              return head;
                            }) +
                            1;
        try {
          if (log->append(id, text) == Appended::yes) {
            outcomes.record_acknowledged(text, id);
          } else {
            outcomes.record_refused(text);
          }
        } catch (const Error& error) {
          outcomes.record_failure(text, error);
        }
      }
    });
  }
  EXPECT_TRUE(becomes_true_within(milliseconds(100'000),
                                  [&] { return network.cuts() >= cut_count_min() / 3; }));
  done = true;
  for (std::thread& writer : writers) writer.join();
  network.repair();

  std::map<std::string, std::vector<UpdateId>> found;
  for (const auto& [id, text] : updates_of(*store.open())) found[text].push_back(id);
  std::printf("cuts=%llu ", static_cast<unsigned long long>(network.cuts()));
  outcomes.expect_consistent_with(found);
}

TEST_F(PostgresLogCutsLong, reported_cache_write_outcomes_match_log) {
  SCOPED_TRACE(testing::seed_note());
  PostgresStore store;
  store.open();
  FaultyPostgresNetwork network(store);
  const TemporaryDirectory directory;
  WriteOutcomes outcomes;
  std::atomic<bool> done{false};
  constexpr std::size_t writer_count = 4;
  std::vector<std::thread> writers;
  for (std::size_t writer = 0; writer < writer_count; ++writer) {
    writers.emplace_back([&, writer] {
      const std::string name = std::to_string(writer);
      Cache cache = retry_until_success(
          [&] { return Cache(network.url("?deadline_ms=2000"), options_for(directory, name)); });
      std::mt19937_64 random(testing::test_seed() + writer);
      UpdateId last = 0;
      for (int i = 0; !done; ++i) {
        // Some writes have a deadline of a few milliseconds, and end as unavailable or uncertain.
        const WriteOptions options{
            .note = {}, .deadline = milliseconds(random() % 3 == 0 ? random() % 4 : 5000)};
        const std::string text = name + ' ' + std::to_string(i);
        try {
          const UpdateId id = cache.set("key " + std::to_string(random() % 50), text, options);
          outcomes.record_acknowledged(text, id);
          EXPECT_GT(id, last);
          last = id;
        } catch (const Error& error) {
          outcomes.record_failure(text, error);
        }
        EXPECT_GE(cache.applied_id(), last);
      }
      cache.update({.staleness_max = {}, .at_least = 0, .deadline = milliseconds(20'000)});
    });
  }
  EXPECT_TRUE(becomes_true_within(milliseconds(100'000),
                                  [&] { return network.cuts() >= cut_count_min() / 3; }));
  done = true;
  for (std::thread& writer : writers) writer.join();
  network.repair();

  // All machines reach the state that the log describes.
  Digest expected;
  for (std::size_t writer = 0; writer < writer_count; ++writer) {
    Cache cache(network.url(""), options_for(directory, std::to_string(writer)));
    cache.update();
    if (writer == 0) expected = cache.digest();
    EXPECT_EQ(cache.digest(), expected) << writer;
    EXPECT_EQ(cache.counters().rebuilds_diverged, 0U);
  }
  std::map<std::string, std::vector<UpdateId>> found;
  for (const auto& [id, bytes] : updates_of(*store.open())) {
    Update update;
    decode_update(bytes, update);
    for (const Change& change : update.changes) found[std::string(change.value)].push_back(id);
  }
  std::printf("cuts=%llu ", static_cast<unsigned long long>(network.cuts()));
  outcomes.expect_consistent_with(found);
}

}  // namespace
}  // namespace whycache
