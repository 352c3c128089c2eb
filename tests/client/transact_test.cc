// Transactions, and the writes built on them: committed transactions are serializable, whatever
// other machines write meanwhile.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <thread>
#include <vector>

#include "client/appender.h"
#include "client/cache_internal.h"
#include "client/fleet.h"
#include "client/follow.h"
#include "client/session.h"
#include "client/state_location.h"
#include "client/transact.h"

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;

std::int64_t number_of(std::optional<std::string_view> value) {
  return value ? std::stoll(std::string(*value)) : 0;
}

TEST(Transact, transaction_reads_snapshot_and_writes_one_update) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set_multi({{"a", "1"}, {"b", "2"}, {"c", "3"}});

  const UpdateId id = cache.transact([](Transaction& transaction) {
    EXPECT_EQ(transaction.id(), 1U);
    EXPECT_EQ(transaction.get("a"), "1");
    EXPECT_EQ(transaction.get("absent"), std::nullopt);
    transaction.set("a", "10");
    transaction.erase("b");
    transaction.set("bb", "new");
    EXPECT_EQ(transaction.get("a"), "10");
    EXPECT_FALSE(transaction.contains("b"));
    EXPECT_THAT(transaction.items({}),
                ::testing::ElementsAre(Item{"a", "10"}, Item{"bb", "new"}, Item{"c", "3"}));
    EXPECT_THAT(transaction.items(KeyRange::between("b", "c")),
                ::testing::ElementsAre(Item{"bb", "new"}));
  });

  EXPECT_EQ(id, 2U);
  EXPECT_EQ(contents(cache), (Contents{{"a", "10"}, {"bb", "new"}, {"c", "3"}}));
}

TEST(Transact, read_only_transaction_appends_nothing) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  EXPECT_EQ(cache.transact([](Transaction& transaction) { transaction.get("a"); }), 1U);
  EXPECT_EQ(CacheInternal::log(cache).extent().head, 1U);
}

TEST(Transact, exception_from_function_propagates_without_write) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  const auto fails = [](Transaction& transaction) {
    transaction.set("a", "1");
    throw std::logic_error("no");
  };
  EXPECT_THROW(cache.transact(fails), std::logic_error);
  expect_error(
      ErrorKind::invalid,
      [&] { cache.transact([](Transaction& transaction) { transaction.set("", "1"); }); }, "key");
  expect_error(
      ErrorKind::invalid,
      [&] {
        cache.transact([](Transaction& transaction) { transaction.erase(std::string(1025, 'k')); });
      },
      "1025");
  EXPECT_EQ(CacheInternal::log(cache).extent().head, 0U);
}

TEST(Transact, transaction_exceeding_update_bytes_max_throws_limit) {
  Fleet fleet;
  Options options;
  options.update_bytes_max = 4096;
  Cache cache = fleet.open("berlin", std::move(options));
  expect_error(
      ErrorKind::limit,
      [&] {
        cache.transact([](Transaction& transaction) {
          for (int i = 0; i < 10; ++i)
            transaction.set("key" + std::to_string(i), incompressible_bytes(1000, 1));
        });
      },
      "update_bytes_max");
  EXPECT_EQ(CacheInternal::log(cache).extent().head, 0U);
}

// Runs a transaction that calls `read` and sets "out"; between the two, another machine calls
// `meanwhile`. Returns how often the transaction ran.
int runs_when(const std::function<void(Transaction&)>& read,
              const std::function<void(Cache&)>& meanwhile) {
  Fleet fleet;
  Cache tokyo = fleet.open("tokyo");
  tokyo.set_multi({{"a", "1"}, {"b", "2"}, {"x", "3"}});
  Cache berlin = fleet.open("berlin");
  int runs = 0;
  berlin.transact([&](Transaction& transaction) {
    read(transaction);
    if (++runs == 1) meanwhile(tokyo);
    transaction.set("out", std::to_string(runs));
  });
  EXPECT_EQ(berlin.get("out"), std::to_string(runs));
  return runs;
}

TEST(Transact, transaction_reruns_if_its_reads_were_changed) {
  const auto read_a = [](Transaction& transaction) { transaction.get("a"); };
  const auto read_absent = [](Transaction& transaction) { transaction.get("absent"); };
  const auto scan = [](Transaction& transaction) {
    transaction.items(KeyRange::between("a", "c"));
  };
  EXPECT_EQ(runs_when(read_a, [](Cache& cache) { cache.set("a", "9"); }), 2);
  EXPECT_EQ(runs_when(read_a, [](Cache& cache) { cache.erase("a"); }), 2);
  EXPECT_EQ(runs_when(read_absent, [](Cache& cache) { cache.set("absent", ""); }), 2);
  EXPECT_EQ(runs_when(scan, [](Cache& cache) { cache.set("b", "9"); }), 2);
  EXPECT_EQ(runs_when(scan, [](Cache& cache) { cache.set("aa", "a key that was not there"); }), 2);
  EXPECT_EQ(runs_when(scan, [](Cache& cache) { cache.erase("b"); }), 2);
  EXPECT_EQ(runs_when(read_a, [](Cache& cache) { cache.delete_all_history(); }), 2);
}

TEST(Transact, transaction_does_not_rerun_for_unread_changes) {
  const auto read_a = [](Transaction& transaction) { transaction.get("a"); };
  const auto scan = [](Transaction& transaction) {
    transaction.items(KeyRange::between("a", "c"));
  };
  const auto write_then_read = [](Transaction& transaction) {
    transaction.set("a", "mine");
    transaction.get("a");
  };
  EXPECT_EQ(runs_when(read_a, [](Cache& cache) { cache.set("b", "9"); }), 1);
  EXPECT_EQ(runs_when(read_a, [](Cache& cache) { cache.set("a", "1"); }), 1);  // the same value
  EXPECT_EQ(runs_when(scan, [](Cache& cache) { cache.set("c", "9"); }), 1);
  EXPECT_EQ(runs_when(write_then_read, [](Cache& cache) { cache.set("a", "9"); }), 1);
  EXPECT_EQ(runs_when(read_a,
                      [](Cache& cache) {
                        cache.set("b", "9");
                        cache.rewrite_history();
                      }),
            1);
}

TEST(Transact, transaction_adds_reads_many_and_erases_ranges) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set_multi({{"n", "40"}, {"p/1", "1"}, {"p/2", "2"}, {"q", "3"}});

  cache.transact([](Transaction& transaction) {
    EXPECT_EQ(transaction.add("n", 2), 42);
    EXPECT_EQ(transaction.add("n", 1), 43) << "its own write";
    EXPECT_EQ(transaction.add("new", -5), -5);
    EXPECT_THAT(transaction.get_multi({"n", "absent", "q"}),
                ::testing::ElementsAre("43", std::nullopt, "3"));
    EXPECT_THAT(transaction.get_multi(std::vector<std::string>{"q"}), ::testing::ElementsAre("3"));
    transaction.set("p/3", "own");
    transaction.erase(KeyRange::prefix("p/"));
    EXPECT_TRUE(transaction.items(KeyRange::prefix("p/")).empty());
    transaction.set("p/4", "after");
  });

  EXPECT_EQ(contents(cache), (Contents{{"n", "43"}, {"new", "-5"}, {"p/4", "after"}, {"q", "3"}}));
  expect_error(
      ErrorKind::invalid,
      [&] { cache.transact([](Transaction& transaction) { transaction.add("p/4", 1); }); },
      "integer");
}

TEST(Transact, transaction_reruns_if_an_added_read_or_erased_key_was_changed) {
  const auto add = [](Transaction& transaction) { transaction.add("b", 1); };
  const auto read = [](Transaction& transaction) { transaction.get_multi({"a", "absent"}); };
  const auto erase = [](Transaction& transaction) {
    transaction.erase(KeyRange::between("b", "c"));
  };
  EXPECT_EQ(runs_when(add, [](Cache& cache) { cache.set("b", "9"); }), 2);
  EXPECT_EQ(runs_when(read, [](Cache& cache) { cache.set("a", "9"); }), 2);
  EXPECT_EQ(runs_when(read, [](Cache& cache) { cache.set("absent", ""); }), 2);
  EXPECT_EQ(runs_when(read, [](Cache& cache) { cache.set("b", "9"); }), 1);
  EXPECT_EQ(runs_when(erase, [](Cache& cache) { cache.set("bb", "new"); }), 2);
  EXPECT_EQ(runs_when(erase, [](Cache& cache) { cache.set("c", "outside"); }), 1);
}

TEST(Transact, key_added_to_an_erased_range_is_erased_too) {
  Fleet fleet;
  Cache tokyo = fleet.open("tokyo");
  tokyo.set("p/1", "1");
  Cache berlin = fleet.open("berlin");
  int runs = 0;
  berlin.transact([&](Transaction& transaction) {
    transaction.erase(KeyRange::prefix("p/"));
    if (++runs == 1) tokyo.set("p/2", "2");
  });
  EXPECT_EQ(runs, 2);
  EXPECT_EQ(berlin.size(), 0U);
}

// --- Results ---

TEST(Transact, result_of_the_committed_run_is_returned) {
  Fleet fleet;
  Cache tokyo = fleet.open("tokyo");
  tokyo.set("n", "1");
  Cache berlin = fleet.open("berlin");
  int runs = 0;
  const auto [id, sum] = berlin.transact([&](Transaction& transaction) {
    const std::int64_t added = transaction.add("n", 1);
    if (++runs == 1) tokyo.set("n", "10");
    return added;
  });
  EXPECT_EQ(id, 3U);
  EXPECT_EQ(sum, 11);
  EXPECT_EQ(berlin.get("n"), "11");

  const TransactResult<std::unique_ptr<std::string>> read =
      berlin.transact([](Transaction& transaction) {
        return std::make_unique<std::string>(transaction.get("n").value_or(""));
      });
  EXPECT_EQ(read.id, 3U);
  EXPECT_EQ(*read.value, "11");
  EXPECT_EQ(berlin.transact([](Transaction&) { return true; }, {.attempts_max = 1}).value, true);
  EXPECT_THROW(berlin.transact([](Transaction&) -> int { throw std::logic_error("no"); }),
               std::logic_error);
}

template <typename T>
concept ReturnedByTransact = requires(Cache cache, T (*function)(Transaction&)) {
  cache.transact(function);
};
static_assert(ReturnedByTransact<void> && ReturnedByTransact<int>);
static_assert(ReturnedByTransact<std::string> && ReturnedByTransact<std::optional<std::string>>);
static_assert(ReturnedByTransact<std::vector<std::pair<std::string, int>>>);
// These would refer to bytes that are valid only while the function runs.
static_assert(!ReturnedByTransact<std::string_view> && !ReturnedByTransact<const std::string&>);
static_assert(!ReturnedByTransact<std::optional<std::string_view>> && !ReturnedByTransact<Item>);
static_assert(!ReturnedByTransact<std::vector<Item>>);
static_assert(!ReturnedByTransact<std::vector<std::optional<std::string_view>>>);
static_assert(!ReturnedByTransact<std::pair<int, std::string_view>>);
static_assert(!ReturnedByTransact<std::span<const char>>);

TEST(Transact, transaction_throws_conflict_after_attempts_max) {
  Fleet fleet;
  Cache tokyo = fleet.open("tokyo");
  Cache berlin = fleet.open("berlin");
  int runs = 0;
  const auto conflicting = [&](Transaction& transaction) {
    transaction.get("a");
    tokyo.set("a", std::to_string(++runs));
    transaction.set("b", "1");
  };
  TransactOptions options;
  options.attempts_max = 3;
  expect_error(
      ErrorKind::conflict, [&] { berlin.transact(conflicting, options); }, "attempts=3");
  EXPECT_EQ(runs, 3);
  EXPECT_FALSE(berlin.contains("b"));
}

TEST(Transact, transaction_with_lost_answer_is_appended_once) {
  Fleet fleet;
  auto script = std::make_shared<Script>();
  std::atomic<int> lost{1};
  script->after_append = [&](UpdateId) {
    if (lost-- > 0) throw uncertain_error();
  };
  Cache cache = fleet.open("berlin", script);
  int runs = 0;
  EXPECT_EQ(cache.transact([&](Transaction& transaction) {
    ++runs;
    transaction.set("n", std::to_string(number_of(transaction.get("n")) + 1));
  }),
            1U);
  EXPECT_EQ(runs, 1);
  EXPECT_EQ(cache.get("n"), "1");
  EXPECT_EQ(CacheInternal::log(cache).extent().head, 1U);
}

// Each of two transactions reads both keys and writes one of them. One transaction must see the
// write of the other.
TEST(Transact, concurrent_transactions_show_no_write_skew) {
  for (int round = 0; round < 20; ++round) {
    Fleet fleet;
    Cache berlin = fleet.open("berlin");
    berlin.set_multi({{"on call: ann", "yes"}, {"on call: bob", "yes"}});
    Cache tokyo = fleet.open("tokyo");
    const auto leave = [](Cache& cache, const std::string& mine) {
      cache.transact([&](Transaction& transaction) {
        int on_call = 0;
        for (const Item& item : transaction.items(KeyRange::prefix("on call: ")))
          on_call += item.value == "yes";
        std::this_thread::yield();
        if (on_call > 1) transaction.set(mine, "no");
      });
    };
    std::thread ann([&] { leave(berlin, "on call: ann"); });
    leave(tokyo, "on call: bob");
    ann.join();
    berlin.update();
    EXPECT_NE(berlin.get("on call: ann"), berlin.get("on call: bob"));
  }
}

TEST(Transact, concurrent_transfers_preserve_total) {
  constexpr int accounts = 5;
  constexpr int threads_each = 2;
  constexpr int moves = 60;
  Fleet fleet("sqlite");
  Cache berlin = fleet.open("berlin");
  for (int i = 0; i < accounts; ++i) berlin.set("account" + std::to_string(i), "1000");
  Cache tokyo = fleet.open("tokyo");
  std::vector<std::thread> threads;
  std::atomic<int> moved{0};
  for (int thread = 0; thread < 2 * threads_each; ++thread) {
    threads.emplace_back([&, thread] {
      Cache& cache = thread % 2 == 0 ? berlin : tokyo;
      std::mt19937_64 random(static_cast<std::uint64_t>(thread) + 1);
      for (int i = 0; i < moves; ++i) {
        const std::string from = "account" + std::to_string(random() % accounts);
        const std::string to = "account" + std::to_string(random() % accounts);
        if (from == to) continue;
        const auto amount = static_cast<std::int64_t>(random() % 100);
        cache.transact([&](Transaction& transaction) {
          transaction.set(from, std::to_string(number_of(transaction.get(from)) - amount));
          transaction.set(to, std::to_string(number_of(transaction.get(to)) + amount));
        });
        ++moved;
        std::int64_t sum = 0;
        for (const std::string_view value : cache.values()) sum += number_of(value);
        EXPECT_EQ(sum, 1000 * accounts);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  berlin.update();
  tokyo.update();
  EXPECT_EQ(berlin.digest(), tokyo.digest());
  EXPECT_EQ(berlin.applied_id(), static_cast<UpdateId>(accounts + moved));
}

TEST(WriteIf, set_if_and_erase_if_write_only_over_expected_value) {
  Fleet fleet;
  Cache tokyo = fleet.open("tokyo");
  Cache berlin = fleet.open("berlin");
  EXPECT_EQ(berlin.set_if("lock", std::nullopt, "berlin"), 1U);
  EXPECT_EQ(tokyo.set_if("lock", std::nullopt, "tokyo"),
            std::nullopt);  // tokyo's own state does not have the key yet
  EXPECT_EQ(tokyo.get("lock"), "berlin");
  EXPECT_EQ(tokyo.set_if("lock", "paris", "tokyo"), std::nullopt);
  EXPECT_EQ(tokyo.erase_if("lock", "tokyo"), std::nullopt);
  EXPECT_EQ(berlin.erase_if("lock", "berlin"), 2U);
  EXPECT_EQ(tokyo.set_if("lock", std::nullopt, "tokyo"), 3U);
  EXPECT_EQ(tokyo.set_if("lock", "tokyo", "still tokyo"), 4U);
}

TEST(Add, concurrent_adds_lose_no_increment) {
  constexpr int adds_per_thread = 40;
  Fleet fleet;
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  std::vector<std::thread> threads;
  for (int thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      Cache& cache = thread % 2 == 0 ? berlin : tokyo;
      for (int i = 0; i < adds_per_thread; ++i) cache.add("n", thread % 2 == 0 ? 3 : -1);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(berlin.add("n", 0), 2 * adds_per_thread * 3 - 2 * adds_per_thread);
  EXPECT_EQ(CacheInternal::log(berlin).extent().head,
            static_cast<UpdateId>(4 * adds_per_thread + 1));
}

TEST(Add, add_to_non_integer_or_overflow_throws) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set_multi({{"word", "seven"}, {"trailing", "7 "}, {"large", "9223372036854775807"}});
  expect_error(
      ErrorKind::invalid, [&] { cache.add("word", 1); }, "integer");
  expect_error(
      ErrorKind::invalid, [&] { cache.add("trailing", 1); }, "integer");
  expect_error(
      ErrorKind::limit, [&] { cache.add("large", 1); }, "64 bits");
  EXPECT_EQ(cache.add("large", -1), 9223372036854775806);
  EXPECT_EQ(cache.add("new", 5), 5);
}

TEST(GetFresh, get_fresh_enforces_bound_or_reports_stale) {
  Fleet fleet;
  Cache tokyo = fleet.open("tokyo");
  auto script = std::make_shared<Script>();
  std::atomic<bool> away{false};
  script->before_read = [&] {
    if (away) throw unavailable_error();
  };
  Cache berlin = fleet.open("berlin", script);
  tokyo.set("a", "1");
  FreshValue fresh = berlin.get_fresh("a");
  EXPECT_EQ(fresh.value, "1");
  EXPECT_EQ(fresh.id, 1U);
  EXPECT_FALSE(fresh.stale);
  EXPECT_EQ(berlin.get_fresh("absent").value, std::nullopt);

  away = true;
  tokyo.set("a", "2");
  FreshOptions options;
  options.deadline = milliseconds(30);
  expect_error(ErrorKind::unavailable, [&] { static_cast<void>(berlin.get_fresh("a", options)); });
  options.serve_stale = true;
  fresh = berlin.get_fresh("a", options);
  EXPECT_EQ(fresh.value, "1");
  EXPECT_TRUE(fresh.stale);
  EXPECT_GE(fresh.staleness, milliseconds(30));
  options.staleness_max = std::chrono::hours(1);  // the state is within this bound
  fresh = berlin.get_fresh("a", options);
  EXPECT_EQ(fresh.value, "1");
  EXPECT_FALSE(fresh.stale);
}

TEST(Guards, erase_beyond_guard_throws_refused) {
  Fleet fleet;
  Cache plain = fleet.open("tokyo");
  std::vector<std::string> keys;
  for (int i = 0; i < 100; ++i) keys.push_back("key" + std::to_string(100 + i));
  for (const std::string& key : keys) plain.set(key, "1");
  const UpdateId before = plain.applied_id();

  Options options;
  options.guards.erased_share_max = 0.1;
  Cache guarded = fleet.open("berlin", std::move(options));
  const std::vector<std::string> too_many(keys.begin(), keys.begin() + 38);
  expect_error(
      ErrorKind::refused, [&] { guarded.erase_multi(too_many); }, "38% of the keys", "erased=38",
      "keys=100");
  expect_error(
      ErrorKind::refused,
      [&] {
        guarded.transact([&](Transaction& transaction) {
          for (const std::string& key : too_many) transaction.erase(key);
        });
      },
      "38%");
  RewriteOptions rewrite;
  rewrite.keep = [](std::string_view key, std::string_view) { return key < "key162"; };
  expect_error(
      ErrorKind::refused, [&] { guarded.rewrite_history(rewrite); }, "38%");
  expect_error(
      ErrorKind::refused, [&] { guarded.delete_all_history(); }, "100%");
  EXPECT_EQ(CacheInternal::log(guarded).extent().head, before);

  const std::vector<std::string> allowed(keys.begin(), keys.begin() + 10);
  EXPECT_EQ(guarded.erase_multi(allowed), before + 1);
  EXPECT_EQ(guarded.erase_multi(std::vector<std::string>{"absent1", "absent2", keys[10]}),
            before + 2);  // only present keys count
  rewrite.keep = [](std::string_view key, std::string_view) { return key < "key195"; };
  guarded.rewrite_history(rewrite);
  EXPECT_EQ(guarded.size(), 84U);
}

TEST(Guards, change_rejected_by_validator_throws_refused) {
  Fleet fleet;
  Options options;
  options.guards.erased_keys_max = 1;
  options.guards.validate = [](const Change& change) -> std::optional<std::string> {
    if (change.kind == Change::Kind::set && change.value.empty())
      return "values are not empty here";
    return std::nullopt;
  };
  Cache cache = fleet.open("berlin", std::move(options));
  cache.set_multi({{"a", "1"}, {"b", "2"}});
  expect_error(
      ErrorKind::refused, [&] { cache.set("a", ""); }, "not empty");
  expect_error(
      ErrorKind::refused, [&] { static_cast<void>(cache.set_async("a", "")); }, "not empty");
  expect_error(
      ErrorKind::refused,
      [&] {
        cache.set_multi({{"c", "3"}, {"d", ""}});
      },
      "not empty");
  expect_error(
      ErrorKind::refused,
      [&] {
        cache.erase_multi({"a", "b"});
      },
      "erased_keys_max=1");
  EXPECT_EQ(contents(cache), (Contents{{"a", "1"}, {"b", "2"}}));
}

// Another process of the machine follows the log right after this one has read the value. The value
// read is then older than the state, although the log was read after the call began.
TEST(ReadModifyWrite, negative_decision_uses_state_from_after_call) {
  Fleet fleet;
  Cache rome = fleet.open("rome");
  rome.set("key", "old");
  Cache neighbor = fleet.open("berlin");
  const std::unique_ptr<State> state = State::open({.path = fleet.state_path("berlin")});
  const std::unique_ptr<Log> log = fleet.log();
  const Options options;
  AtomicCounters counters;
  const StateLocation location;
  Session session(*state, location, *log, nullptr, options, counters);
  Appender appender(session);
  Backoff backoff(options.deadline);
  follow(session, backoff);
  rome.update();
  rome.set("key", "new");

  std::vector<std::string> seen;
  const auto decide = [&](std::optional<std::string_view> value) -> std::optional<Change> {
    seen.emplace_back(value.value_or("nothing"));
    if (seen.size() == 1) neighbor.update();
    return value == "new" ? std::optional(Change::set("key", "ours")) : std::nullopt;
  };
  EXPECT_EQ(read_modify_write(session, appender, "key", decide, {}), 3U);
  EXPECT_EQ(seen.back(), "new");
}

TEST(ReadModifyWrite, negative_decision_needs_one_log_read) {
  Fleet fleet;
  const auto script = std::make_shared<Script>();
  Cache cache = fleet.open("berlin", script);
  cache.set("lock", "taken");
  std::this_thread::sleep_for(milliseconds(150));  // so that no recent confirmation exists
  const int before = script->read_count;
  EXPECT_EQ(cache.set_if("lock", std::nullopt, "ours"), std::nullopt);
  EXPECT_EQ(script->read_count, before + 1);
}

}  // namespace
}  // namespace whycache::testing
