// Committing: an update is in the log once or not at all, and its writer learns which. Group commit
// shares an append among queued writes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <unistd.h>

#include <atomic>
#include <fstream>
#include <future>
#include <set>
#include <thread>
#include <vector>

#include "client/cache_internal.h"
#include "client/fleet.h"
#include "log/forwarding_log.h"
#include "update/update.h"

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;
using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr milliseconds append_deadline{80};

WriteOptions write_within(milliseconds deadline) { return {.note = {}, .deadline = deadline}; }

// Returns how often the log changes each key.
std::map<std::string, int> set_counts_by_key(Log& log) {
  std::map<std::string, int> times;
  Update update;
  log.read(1, ~UpdateId{0}, [&](UpdateId, std::string_view bytes) {
    decode_update(bytes, update);
    for (const Change& change : update.changes) ++times[std::string(change.key)];
    return true;
  });
  return times;
}

// Returns a hook that throws `error` and decrements `failures` until that is 0.
auto throw_while_positive(std::atomic<int>& failures, Error error) {
  return [&failures, error](UpdateId) {
    if (failures-- > 0) throw error;
  };
}

TEST(WriteQueue, write_with_lost_answer_is_appended_once) {
  Fleet fleet;
  auto script = std::make_shared<Script>();
  std::atomic<int> failures{0};
  script->after_append = throw_while_positive(failures, uncertain_error());
  Cache cache = fleet.open("berlin", script);
  failures = 1;

  EXPECT_EQ(cache.set("a", "1"), 1U);

  EXPECT_EQ(cache.get("a"), "1");
  EXPECT_EQ(set_counts_by_key(CacheInternal::log(cache))["a"], 1);
  EXPECT_EQ(cache.counters().updates_written, 1U);
  EXPECT_EQ(cache.counters().append_conflicts, 0U);
}

TEST(WriteQueue, write_is_retried_after_unavailable_log) {
  Fleet fleet;
  auto script = std::make_shared<Script>();
  std::atomic<int> failures{3};
  script->before_append = throw_while_positive(failures, unavailable_error());
  Cache cache = fleet.open("berlin", script);

  EXPECT_EQ(cache.set("a", "1"), 1U);

  EXPECT_EQ(set_counts_by_key(CacheInternal::log(cache))["a"], 1);
  EXPECT_EQ(cache.counters().log_retries, 3U);
}

TEST(WriteQueue, lost_answer_behind_other_update_is_resolved) {
  Fleet fleet;
  Cache tokyo = fleet.open("tokyo");
  auto script = std::make_shared<Script>();
  std::atomic<bool> once{true};
  script->before_append = [&](UpdateId) {
    if (!once.exchange(false)) return;
    tokyo.set("tokyo", "first");
    throw uncertain_error();  // this append was never sent
  };
  Cache berlin = fleet.open("berlin", script);

  EXPECT_EQ(berlin.set("berlin", "second"), 2U);

  EXPECT_EQ(set_counts_by_key(CacheInternal::log(berlin)),
            (std::map<std::string, int>{{"tokyo", 1}, {"berlin", 1}}));
  EXPECT_EQ(berlin.counters().append_conflicts, 1U);
  EXPECT_EQ(contents(berlin), (Contents{{"berlin", "second"}, {"tokyo", "first"}}));
}

TEST(WriteQueue, lost_answer_below_other_update_is_resolved) {
  Fleet fleet;
  Cache tokyo = fleet.open("tokyo");
  auto script = std::make_shared<Script>();
  std::atomic<bool> once{true};
  script->after_append = [&](UpdateId) {
    if (!once.exchange(false)) return;
    tokyo.set("tokyo", "second");
    throw uncertain_error();
  };
  Cache berlin = fleet.open("berlin", script);

  EXPECT_EQ(berlin.set("berlin", "first"), 1U);

  EXPECT_EQ(set_counts_by_key(CacheInternal::log(berlin)),
            (std::map<std::string, int>{{"tokyo", 1}, {"berlin", 1}}));
  berlin.update();
  EXPECT_EQ(berlin.digest(), tokyo.digest());
}

// The statement is still in transit when the writer reads the log, and is executed later.
TEST(WriteQueue, late_append_does_not_duplicate_write) {
  Fleet fleet;
  struct DelayingLog : testing::ForwardingLog {
    using ForwardingLog::ForwardingLog;
    std::string in_transit;
    int appends = 0;
    Appended append(UpdateId id, std::string_view bytes) override {
      if (++appends == 1) {
        in_transit = bytes;
        throw uncertain_error();
      }
      if (appends == 2) {
        target().append(id, in_transit);
      }
      return target().append(id, bytes);
    }
  };
  auto delaying = std::make_unique<DelayingLog>(fleet.log());
  Cache berlin(std::move(delaying), fleet.options("berlin"));

  EXPECT_EQ(berlin.set("a", "1"), 1U);

  EXPECT_EQ(set_counts_by_key(CacheInternal::log(berlin))["a"], 1);
  EXPECT_EQ(fleet.log()->extent().head, 1U);
}

TEST(WriteQueue, write_to_unavailable_log_throws_unavailable_without_write) {
  Fleet fleet;
  auto script = std::make_shared<Script>();
  Cache cache = fleet.open("berlin", script);
  cache.set("a", "1");
  script->before_append = [](UpdateId) { throw unavailable_error(); };

  expect_error(
      ErrorKind::unavailable, [&] { cache.set("a", "2", write_within(append_deadline)); },
      "the test's log is away");

  EXPECT_EQ(cache.get("a"), "1");
  EXPECT_EQ(fleet.log()->extent().head, 1U);
}

TEST(WriteQueue, unresolved_append_throws_uncertain) {
  Fleet fleet;
  auto script = std::make_shared<Script>();
  Cache cache = fleet.open("berlin", script);
  cache.set("a", "1");
  std::atomic<bool> away{false};
  script->after_append = [&](UpdateId) {
    away = true;
    throw uncertain_error();
  };
  script->before_read = [&] {
    if (away) throw unavailable_error();
  };

  expect_error(
      ErrorKind::uncertain, [&] { cache.set("a", "2", write_within(append_deadline)); },
      "may or may not", "id=2");

  away = false;
  script->after_append = nullptr;
  EXPECT_EQ(cache.update(), 2U) << "this time the append had succeeded";
  EXPECT_EQ(cache.get("a"), "2");
}

TEST(WriteQueue, unresolved_append_below_new_base_throws_uncertain) {
  Fleet fleet;
  Cache tokyo = fleet.open("tokyo");
  auto script = std::make_shared<Script>();
  std::atomic<bool> once{true};
  script->after_append = [&](UpdateId) {
    if (!once.exchange(false)) return;
    tokyo.set("tokyo", "1");
    tokyo.rewrite_history();
    throw uncertain_error();
  };
  Cache berlin = fleet.open("berlin", script);

  expect_error(
      ErrorKind::uncertain, [&] { berlin.set("berlin", "1"); }, "base=2");

  berlin.update();
  EXPECT_EQ(berlin.get("berlin"), "1");
}

TEST(WriteQueue, failed_append_behind_base_is_retried) {
  Fleet fleet;
  Cache tokyo = fleet.open("tokyo");
  auto script = std::make_shared<Script>();
  std::atomic<bool> once{true};
  script->before_append = [&](UpdateId) {
    if (!once.exchange(false)) return;
    tokyo.set("tokyo", "1");
    tokyo.set("tokyo", "2");
    tokyo.rewrite_history();
    throw unavailable_error();
  };
  Cache berlin = fleet.open("berlin", script);

  EXPECT_EQ(berlin.set("berlin", "1"), 3U);

  EXPECT_EQ(contents(berlin), (Contents{{"berlin", "1"}, {"tokyo", "2"}}));
}

TEST(WriteQueue, writer_behind_base_retries_from_head) {
  Fleet fleet;
  Cache tokyo = fleet.open("tokyo");
  auto script = std::make_shared<Script>();
  std::atomic<bool> once{true};
  script->before_append = [&](UpdateId) {
    if (!once.exchange(false)) return;
    for (int i = 0; i < 3; ++i) tokyo.set("tokyo", std::to_string(i));
    tokyo.rewrite_history();
  };
  Cache berlin = fleet.open("berlin", script);

  EXPECT_EQ(berlin.set("berlin", "1"), 4U);

  tokyo.update();
  EXPECT_EQ(berlin.digest(), tokyo.digest());
  EXPECT_EQ(berlin.counters().rebuilds_behind_base, 1U);
}

TEST(WriteQueue, permanent_error_is_not_retried) {
  Fleet fleet;
  auto script = std::make_shared<Script>();
  Cache cache = fleet.open("berlin", script);
  script->before_append = [](UpdateId) { throw Error(ErrorKind::limit, "max_allowed_packet"); };

  expect_error(
      ErrorKind::limit, [&] { cache.set("a", "1"); }, "max_allowed_packet");
  EXPECT_EQ(script->append_count, 1);
}

TEST(WriteQueue, log_always_answering_taken_fails_at_deadline) {
  Fleet fleet;
  struct NeverAppendingLog : testing::ForwardingLog {
    using ForwardingLog::ForwardingLog;
    Appended append(UpdateId, std::string_view) override { return Appended::taken; }
  };
  auto never_appending = std::make_unique<NeverAppendingLog>(fleet.log());
  Cache cache(std::move(never_appending), fleet.options("berlin"));

  expect_error(
      ErrorKind::unavailable, [&] { cache.set("a", "1", write_within(append_deadline)); },
      "nothing was written");
}

TEST(WriteQueue, appended_write_that_cannot_be_applied_throws_uncertain) {
  Fleet fleet;
  Options options;
  options.state_bytes_max = 4U << 20;
  options.deadline = std::chrono::seconds(2);
  Cache small = fleet.open("small", options);
  UpdateId written = 0;
  std::string message;
  for (int i = 0; i < 100 && message.empty(); ++i) {
    try {
      written = small.set("key" + std::to_string(i),
                          incompressible_bytes(100'000, static_cast<std::uint64_t>(i)));
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::uncertain);
      message = error.what();
    }
  }

  EXPECT_THAT(message, AllOf(HasSubstr("is in the log, but could not be applied"),
                             HasSubstr("state_bytes_max")));
  EXPECT_EQ(fleet.log()->extent().head, written + 1);
  EXPECT_EQ(small.applied_id(), written) << "no partial update";
  EXPECT_EQ(small.size(), written);
  EXPECT_EQ(small.get("key0"), incompressible_bytes(100'000, 0)) << "reads continue";
  expect_error(
      ErrorKind::limit, [&] { small.update(); }, "state_bytes_max");
  EXPECT_EQ(fleet.open("large").applied_id(), written + 1);
}

TEST(WriteQueue, batch_failing_midway_reports_written_changes) {
  Fleet fleet;
  auto script = std::make_shared<Script>();
  Options options;
  options.update_bytes_max = 4096;
  options.deadline = append_deadline;
  Cache cache = fleet.open("berlin", script, options);
  script->before_append = [](UpdateId id) {
    if (id > 2) throw unavailable_error();
  };
  std::vector<Item> items;
  const std::string value(1500, 'v');
  const std::vector<std::string> keys{"a", "b", "c", "d", "e", "f", "g", "h"};
  for (const std::string& key : keys) items.push_back({key, value});

  expect_error(
      ErrorKind::uncertain, [&] { cache.set_multi(items); }, "changes_written=4 of=8", "last_id=2",
      "unavailable: nothing of this update was written: ");

  EXPECT_EQ(cache.size(), 4U);
  EXPECT_TRUE(cache.contains("d"));
  EXPECT_FALSE(cache.contains("e"));
}

// --- Concurrent machines ---

TEST(WriteQueue, writers_on_several_machines_lose_no_write) {
  Fleet fleet;
  std::vector<Cache> machines;
  for (int i = 0; i < 3; ++i) machines.push_back(fleet.open("machine" + std::to_string(i)));
  std::vector<std::thread> writers;
  for (int i = 0; i < 3; ++i) {
    writers.emplace_back([&, i] {
      for (int j = 0; j < 200; ++j) {
        const std::string key = "key" + std::to_string(i) + "." + std::to_string(j);
        const UpdateId id = machines[static_cast<std::size_t>(i)].set(key, "value");
        ASSERT_GE(machines[static_cast<std::size_t>(i)].applied_id(), id);
        ASSERT_TRUE(machines[static_cast<std::size_t>(i)].contains(key));
      }
    });
  }
  for (std::thread& writer : writers) writer.join();

  const UpdateId head = fleet.log()->extent().head;
  EXPECT_EQ(head, 600U);
  for (Cache& machine : machines) EXPECT_EQ(machine.update(), head);
  EXPECT_EQ(machines[0].size(), 600U);
  EXPECT_EQ(machines[0].digest(), machines[1].digest());
  EXPECT_EQ(machines[0].digest(), machines[2].digest());
}

// --- Group commit ---

// Blocks the first append until other writes are queued behind it.
class GroupCommit : public ::testing::Test {
 protected:
  GroupCommit() {
    script->before_append = [this](UpdateId) {
      ++append_attempts;
      while (blocked) std::this_thread::sleep_for(milliseconds(1));
    };
  }
  // Makes every attempt at the second append fail while `away` is true.
  void fail_second_append_while(const std::atomic<bool>& away) {
    script->before_append = [this, &away](UpdateId id) {
      ++append_attempts;
      while (blocked) std::this_thread::sleep_for(milliseconds(1));
      if (id == 2 && away) throw unavailable_error();
    };
  }
  // Starts a write on a thread and waits until it is appending or queued.
  template <typename Write>
  void start_write(Write write) {
    std::promise<pid_t> began;
    std::future<pid_t> thread_id = began.get_future();
    threads.emplace_back([write = std::move(write), began = std::move(began)]() mutable {
      began.set_value(::gettid());
      write();
    });
    const pid_t writer = thread_id.get();
    if (threads.size() == 1) {
      while (append_attempts == 0) std::this_thread::yield();
    } else {
      // A sleeping thread waits in the queue. Check twice, because it may sleep elsewhere before.
      for (int seen = 0; seen < 2; std::this_thread::sleep_for(milliseconds(2)))
        seen = is_sleeping(writer) ? seen + 1 : 0;
    }
  }
  static bool is_sleeping(pid_t thread) {
    std::ifstream file("/proc/self/task/" + std::to_string(thread) + "/stat");
    std::string stat;
    std::getline(file, stat);
    return stat.empty() || stat.find(") S ") != std::string::npos;  // empty: the thread has exited
  }
  void release() {
    blocked = false;
    for (std::thread& thread : threads) {
      if (thread.joinable()) thread.join();
    }
  }

  Fleet fleet;
  std::shared_ptr<Script> script = std::make_shared<Script>();
  std::atomic<bool> blocked{true};
  std::atomic<int> append_attempts{0};
  std::vector<std::thread> threads;
};

TEST_F(GroupCommit, queued_writes_share_append_and_return_their_id) {
  Cache cache = fleet.open("berlin", script);
  std::vector<UpdateId> ids(20);
  for (std::size_t i = 0; i < ids.size(); ++i) {
    start_write([&, i] {
      ids[i] = cache.set_multi({{"a" + std::to_string(i), "1"}, {"b" + std::to_string(i), "1"}});
    });
  }
  release();

  EXPECT_EQ(script->append_count, 2);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 1U), 1);
  EXPECT_EQ(std::count(ids.begin(), ids.end(), 2U), 19);
  EXPECT_EQ(cache.size(), 40U);
  EXPECT_EQ(fleet.open("tokyo").digest(), cache.digest());
}

TEST_F(GroupCommit, later_write_of_key_in_group_wins) {
  Cache cache = fleet.open("berlin", script);
  start_write([&] { cache.set("first", "1"); });
  for (int i = 0; i < 5; ++i) start_write([&, i] { cache.set("key", std::to_string(i)); });
  release();
  EXPECT_EQ(cache.get("key"), "4");
  EXPECT_EQ(fleet.open("tokyo").get("key"), "4");
}

TEST_F(GroupCommit, batches_with_different_notes_are_appended_separately) {
  Cache cache = fleet.open("berlin", script);
  start_write([&] { cache.set("first", "1"); });
  start_write([&] { cache.set("a", "1", {.note = "one", .deadline = {}}); });
  start_write([&] { cache.set("b", "1", {.note = "one", .deadline = {}}); });
  start_write([&] { cache.set("c", "1", {.note = "two", .deadline = {}}); });
  release();
  EXPECT_EQ(script->append_count, 3);
}

TEST_F(GroupCommit, group_never_exceeds_update_bytes_max) {
  Options options;
  options.update_bytes_max = 4096;
  Cache cache = fleet.open("berlin", script, options);
  start_write([&] { cache.set("first", "1"); });
  for (int i = 0; i < 6; ++i)
    start_write([&, i] {
      cache.set("key" + std::to_string(i),
                incompressible_bytes(1500, static_cast<std::uint64_t>(i)));
    });
  release();
  EXPECT_EQ(script->append_count, 4);
  EXPECT_EQ(cache.size(), 7U);
  CacheInternal::log(cache).read(1, 100, [](UpdateId, std::string_view bytes) {
    EXPECT_LE(bytes.size(), 4096U);
    return true;
  });
}

TEST_F(GroupCommit, queued_write_fails_at_own_deadline) {
  Cache cache = fleet.open("berlin", script);
  start_write([&] { cache.set("first", "1"); });
  start_write([&] {
    expect_error(
        ErrorKind::unavailable, [&] { cache.set("hasty", "1", write_within(milliseconds(30))); },
        "nothing was written");
  });
  start_write([&] { cache.set("patient", "1"); });
  threads[1].join();
  release();
  EXPECT_FALSE(cache.contains("hasty"));
  EXPECT_TRUE(cache.contains("patient"));
}

TEST_F(GroupCommit, followers_continue_after_leader_reaches_deadline) {
  std::atomic<bool> away{true};
  fail_second_append_while(away);
  Cache cache = fleet.open("berlin", script);
  start_write([&] { cache.set("first", "1"); });
  start_write([&] {
    expect_error(ErrorKind::unavailable,
                 [&] { cache.set("hasty", "1", write_within(milliseconds(150))); });
  });
  start_write([&] { EXPECT_EQ(cache.set("patient", "1"), 2U); });
  blocked = false;
  threads[1].join();
  away = false;
  threads[0].join();
  threads[2].join();
  EXPECT_FALSE(cache.contains("hasty"));
  EXPECT_TRUE(cache.contains("patient"));
}

// The leader had included it in its group, which suspends its deadline; now it is queued again.
TEST_F(GroupCommit, follower_of_failed_leader_fails_at_own_deadline) {
  std::atomic<bool> away{true};
  fail_second_append_while(away);
  Cache cache = fleet.open("berlin", script);
  start_write([&] { cache.set("first", "1"); });
  start_write([&] {
    expect_error(ErrorKind::unavailable,
                 [&] { cache.set("hasty", "1", write_within(milliseconds(150))); });
  });
  start_write(
      [&] { EXPECT_EQ(cache.set("patient", "1", write_within(milliseconds(60'000))), 2U); });
  start_write([&] {
    expect_error(ErrorKind::unavailable,
                 [&] { cache.set("less patient", "1", write_within(milliseconds(600))); });
  });
  blocked = false;
  threads[1].join();
  threads[3].join();  // although the new leader has a deadline of a minute
  away = false;
  threads[0].join();
  threads[2].join();
  EXPECT_FALSE(cache.contains("less patient"));
}

// Closing makes the asynchronous writer fail its queued writes. A synchronous write queued between
// them leads meanwhile.
TEST_F(GroupCommit, close_completes_sync_write_queued_between_async_writes) {
  Cache cache = fleet.open("berlin", script);
  const auto noted = [](const char* note) {
    return WriteOptions{.note = note, .deadline = milliseconds(60'000)};
  };
  const auto began = std::chrono::steady_clock::now();
  start_write([&] { cache.set("first", "1", noted("first")); });
  std::future<UpdateId> before = cache.set_async("before", "1", noted("before"));
  std::atomic<bool> written{false};
  start_write([&] {
    cache.set("between", "1", noted("between"));
    written = true;
  });
  std::future<UpdateId> behind = cache.set_async("behind", "1", noted("behind"));
  start_write([&] { cache.close_shared_state(); });
  release();
  EXPECT_TRUE(written);
  for (std::future<UpdateId>* const future : {&before, &behind})
    expect_error(
        ErrorKind::unavailable, [&] { future->get(); }, "closed");
  EXPECT_LT(std::chrono::steady_clock::now() - began, milliseconds(30'000));
}

TEST_F(GroupCommit, invalid_write_does_not_fail_writes_of_same_group) {
  Cache cache = fleet.open("berlin", script);
  start_write([&] { cache.set("first", "1"); });
  start_write([&] { expect_error(ErrorKind::invalid, [&] { cache.set("", "1"); }); });
  start_write([&] {
    expect_error(ErrorKind::limit, [&] { cache.set("large", std::string(2U << 20, 'v')); });
  });
  start_write([&] { cache.set("good", "1"); });
  release();
  EXPECT_TRUE(cache.contains("good"));
}

// The store accepts less than update_bytes_max.
TEST_F(GroupCommit, batches_refused_as_group_are_appended_one_by_one) {
  struct SmallPacketLog final : testing::ForwardingLog {
    using ForwardingLog::ForwardingLog;
    std::shared_ptr<Script> script;
    Appended append(UpdateId id, std::string_view bytes) override {
      script->before_append(id);
      if (bytes.size() > 3000) throw Error(ErrorKind::limit, "packet too large");
      return target().append(id, bytes);
    }
  };
  auto log = std::make_unique<SmallPacketLog>(fleet.log());
  log->script = script;
  Cache cache(std::move(log), fleet.options("berlin"));
  start_write([&] { cache.set("first", "1"); });
  for (int i = 0; i < 4; ++i) {
    start_write([&, i] {
      cache.set("key" + std::to_string(i),
                incompressible_bytes(1000, static_cast<std::uint64_t>(i)));
    });
  }
  start_write([&] {
    expect_error(
        ErrorKind::limit, [&] { cache.set("large", incompressible_bytes(4000, 1)); },
        "packet too large");
  });
  release();
  EXPECT_EQ(cache.size(), 5U);
}

// Notes and short deadlines cut groups short, calling threads and the asynchronous writer lead
// them, and appends fail. A write that is not woken when it becomes leader, or when it completes,
// would wait until its deadline.
TEST(WriteQueue, every_waiting_write_completes_before_deadline) {
  Fleet fleet;
  const auto script = std::make_shared<Script>();
  std::atomic<std::uint64_t> appends{0};
  script->before_append = [&](UpdateId) {
    const std::uint64_t number = ++appends;
    std::this_thread::sleep_for(std::chrono::microseconds(100));
    if (number % 97 == 0)
      throw Error(ErrorKind::limit, "packet too large");  // the group is then appended one by one
    if (number % 89 == 0) throw Error(ErrorKind::unavailable, "the log is away");
    if (number % 83 == 0) throw Error(ErrorKind::corrupt, "the log is damaged");
  };
  Cache cache = fleet.open("berlin", script);
  constexpr milliseconds deadline{30'000};
  std::atomic<int> written{0};
  std::atomic<int> refused{0};
  std::atomic<std::int64_t> longest_ms{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 16; ++i) {
    threads.emplace_back([&, i] {
      for (int j = 0; j < 150; ++j) {
        const std::string key = "key" + std::to_string(i);
        const WriteOptions options{.note = (i + j) % 7 == 0 ? "release" : "", .deadline = deadline};
        const auto began = std::chrono::steady_clock::now();
        try {
          if (i % 4 == 0) {
            cache.set_async(key, std::to_string(j), options).get();
          } else if (i % 4 == 1 && j % 5 == 0) {
            WriteOptions hasty = options;
            hasty.deadline = milliseconds(1);
            cache.set(key, std::to_string(j), hasty);
          } else {
            cache.set(key, std::to_string(j), options);
          }
          ++written;
        } catch (const Error&) {
          ++refused;
        }
        const std::int64_t took_ms =
            std::chrono::duration_cast<milliseconds>(std::chrono::steady_clock::now() - began)
                .count();
        for (std::int64_t seen = longest_ms;
             took_ms > seen && !longest_ms.compare_exchange_weak(seen, took_ms);) {
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(written + refused, 16 * 150);
  EXPECT_GT(written, 16 * 100);
  EXPECT_GT(refused, 0);
  EXPECT_LT(longest_ms, deadline.count() / 3);
  EXPECT_EQ(fleet.open("tokyo").digest(), cache.digest());
}

TEST(WriteQueue, concurrent_threads_read_their_own_writes) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      for (int j = 0; j < 200; ++j) {
        const std::string key = "key" + std::to_string(i);
        const UpdateId id = cache.set(key, std::to_string(j));
        if (cache.get(key) != std::to_string(j) || cache.applied_id() < id) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_LE(cache.applied_id(), 1600U);
  EXPECT_EQ(fleet.open("tokyo").digest(), cache.digest());
}

}  // namespace
}  // namespace whycache::testing
