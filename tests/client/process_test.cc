// Several processes on one machine, and fork(): every process sees each write, and a dead process
// blocks no other.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <atomic>
#include <cstdint>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "base/file.h"
#include "base/process_lock.h"
#include "client/fleet.h"
#include "support/child_process.h"
#include "support/sanitizers.h"
#include "support/seed.h"

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;

class Processes : public ::testing::TestWithParam<const char*> {
 protected:
  Fleet fleet{GetParam()};
};
INSTANTIATE_TEST_SUITE_P(Logs, Processes, ::testing::Values("sqlite", "file"),
                         [](const auto& log) { return std::string(log.param); });

TEST_P(Processes, completed_set_is_visible_to_other_process) {
  Cache here = fleet.open("berlin");
  for (int i = 0; i < 5; ++i) {
    expect_success_in_child([&] {
      EXPECT_EQ(fleet.open("berlin").set("key", std::to_string(i)), static_cast<UpdateId>(i) + 1);
    });
    EXPECT_EQ(here.get("key"), std::to_string(i));
    EXPECT_EQ(here.applied_id(), static_cast<UpdateId>(i) + 1);
  }
}

TEST_P(Processes, processes_read_completed_writes_monotonically) {
  struct Progress {
    std::atomic<std::uint64_t> written{0};  // of key "n": the last value whose set() returned
    std::atomic<bool> end{false};
    std::atomic<std::uint64_t> violations{0};
    std::atomic<std::uint64_t> reads{0};
  };
  SharedWithChildren<Progress> progress;
  { fleet.open("berlin").set_multi({{"n", "0"}, {"m", "0"}}); }
  const auto read = [&] {
    Cache cache = fleet.open("berlin");
    std::uint64_t last = 0;
    std::string value;
    while (!progress->end) {
      const std::uint64_t at_least = progress->written;
      static_cast<void>(cache.get("n", value));
      const std::uint64_t seen = std::stoull(value);
      if (seen < at_least || seen < last) ++progress->violations;
      last = seen;
      const auto both = cache.get_multi({"n", "m"});
      if (both[0] != both[1]) ++progress->violations;
      ++progress->reads;
    }
  };
  TestProcess reader_1(read);
  TestProcess reader_2(read);
  expect_success_in_child([&] {
    Cache cache = fleet.open("berlin");
    for (std::uint64_t i = 1; i <= 300; ++i) {
      cache.set_multi({{"n", std::to_string(i)}, {"m", std::to_string(i)}});
      progress->written = i;
    }
  });
  progress->end = true;
  EXPECT_EQ(reader_1.wait(), 0);
  EXPECT_EQ(reader_2.wait(), 0);
  EXPECT_EQ(progress->violations, 0U);
  EXPECT_GT(progress->reads, 100U);
}

TEST_P(Processes, concurrent_writer_processes_lose_no_write) {
  {
    std::vector<std::unique_ptr<TestProcess>> writers;
    for (int process = 0; process < 4; ++process) {
      writers.push_back(std::make_unique<TestProcess>([&, process] {
        Cache cache = fleet.open(process % 2 == 0 ? "berlin" : "tokyo");
        for (int i = 0; i < 40; ++i) {
          const std::string key = "key" + std::to_string(process) + "." + std::to_string(i);
          cache.set(key, "value");
          ASSERT_TRUE(cache.contains(key));
        }
      }));
    }
    for (auto& writer : writers) EXPECT_EQ(writer->wait(), 0);
  }
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  EXPECT_EQ(berlin.update(), 160U);
  EXPECT_EQ(tokyo.update(), 160U);
  EXPECT_EQ(berlin.size(), 160U);
  EXPECT_EQ(berlin.digest(), tokyo.digest());
}

TEST_P(Processes, killed_writer_leaves_complete_updates_and_free_lock) {
  { fleet.open("berlin").set("n", "0"); }
  Cache observer = fleet.open("berlin");
  std::mt19937 random(11);
  for (int round = 0; round < 15; ++round) {
    TestProcess writer([&] {
      Cache cache = fleet.open("berlin");
      for (int i = 0;; ++i) {
        const std::string value = std::to_string(::getpid()) + "." + std::to_string(i);
        cache.set_multi({{"n", value},
                         {"m", value},
                         {"large" + std::to_string(i % 50),
                          incompressible_bytes(5000, static_cast<std::uint64_t>(i))}});
      }
    });
    std::this_thread::sleep_for(milliseconds(20 + random() % 60));
    writer.kill_and_wait();
    const View view = observer.view();
    ASSERT_EQ(view.get("n").value_or(""), view.get("m").value_or(view.get("n").value_or("")));
    const UpdateId id = observer.set("survivor", std::to_string(round));
    ASSERT_GE(observer.applied_id(), id);
  }
  observer.update();
  EXPECT_EQ(fleet.open("tokyo").digest(), observer.digest());
}

TEST(ProcessesKilled, half_applied_update_is_rolled_back_and_reported) {
  Fleet fleet("file");
  Events events;
  Options options;
  options.on_event = events.listener();
  options.update_bytes_max = 8U << 20;
  Cache observer = fleet.open("berlin", options);
  observer.set("n", "0");
  std::mt19937 random(static_cast<unsigned>(test_seed()));
  SCOPED_TRACE(seed_note());
  int rounds = 0;
  while (observer.counters().recoveries == 0 && rounds < 150) {
    ++rounds;
    TestProcess follower([&] {
      Cache cache = fleet.open("berlin", options);
      std::map<std::string, std::string> batch;
      for (int i = 0; i < 20000; ++i) batch["key" + std::to_string(i)] = std::to_string(rounds);
      cache.set_multi(batch);
    });
    std::this_thread::sleep_for(std::chrono::microseconds(5000 + random() % 50000));
    follower.kill_and_wait();
    const View view = observer.view();
    const auto first = view.get("key0");
    for (int i = 0; i < 20000; i += 97)
      ASSERT_EQ(view.get("key" + std::to_string(i)), first) << "half of an update is visible";
    observer.set("n", std::to_string(rounds));
  }
  std::printf("rounds=%d recoveries=%llu\n", rounds,
              static_cast<unsigned long long>(observer.counters().recoveries));
  EXPECT_EQ(events.count(Event::Kind::recovered), static_cast<int>(observer.counters().recoveries));
  EXPECT_EQ(fleet.open("tokyo").digest(), observer.digest());
}

// --- fork() ---

TEST_P(Processes, cache_opened_before_fork_works_in_both_processes) {
  Cache cache = fleet.open("berlin");
  cache.set("before", "1");

  TestProcess child([&] {
    EXPECT_EQ(cache.get("before"), "1");
    EXPECT_GE(cache.size(), 1U);  // the parent keeps writing
    for (int i = 0; i < 20; ++i) cache.set("child" + std::to_string(i), "1");
    cache.update();
    EXPECT_TRUE(cache.contains("child19"));
    cache.rewrite_history();
  });
  for (int i = 0; i < 20; ++i) cache.set("parent" + std::to_string(i), "1");
  EXPECT_EQ(child.wait(), 0);

  cache.update();
  EXPECT_EQ(cache.size(), 41U);
  EXPECT_EQ(fleet.open("tokyo").digest(), cache.digest());
}

TEST_P(Processes, fork_during_writes_leaves_child_unblocked) {
  SKIP_WITHOUT_THREADS_IN_CHILD();
  Cache cache = fleet.open("berlin");
  std::atomic<bool> end{false};
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) {
    threads.emplace_back([&, i] {
      for (int j = 0; !end; ++j) {
        cache.set("parent" + std::to_string(i), std::to_string(j));
        cache.update();
      }
    });
  }
  for (int round = 0; round < 20; ++round) {
    std::this_thread::sleep_for(milliseconds(3));
    TestProcess child([&] {
      const std::string key = "child" + std::to_string(round);
      const UpdateId id = cache.set(key, "1");
      EXPECT_EQ(cache.get(key), "1");
      EXPECT_GE(cache.update(), id);
      const View view = cache.view();
      EXPECT_EQ(view.get(key), "1");
    });
    ASSERT_EQ(child.wait(), 0) << "round " << round;
  }
  end = true;
  for (std::thread& thread : threads) thread.join();

  cache.update();
  for (int round = 0; round < 20; ++round)
    EXPECT_TRUE(cache.contains("child" + std::to_string(round)));
  EXPECT_EQ(fleet.open("tokyo").digest(), cache.digest());
}

TEST_P(Processes, threads_of_child_and_grandchild_write) {
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  expect_success_in_child([&] {
    std::vector<std::thread> threads;
    for (int i = 0; i < 4; ++i)
      threads.emplace_back([&, i] { cache.set("child" + std::to_string(i), "1"); });
    for (std::thread& thread : threads) thread.join();
    expect_success_in_child([&] {
      cache.set("grandchild", "1");
      EXPECT_EQ(cache.get("child3"), "1");
    });
    EXPECT_EQ(cache.get("grandchild"), "1");
  });
  EXPECT_EQ(cache.size(), 6U);
}

TEST_P(Processes, view_from_before_fork_is_invalid_in_child) {
  Cache cache = fleet.open("berlin");
  // Keys of each kind that the fast path tells apart.
  const std::vector<std::string> keys{"a", "checkout.on", std::string(40, 'k')};
  for (const std::string& key : keys) cache.set(key, "1");
  const View view = cache.view();
  const View second = cache.view();
  for (const std::string& key : keys) EXPECT_EQ(view.get(key), "1");
  const auto expect_invalid = [&](const View& inherited) {
    for (const std::string& key : keys) {
      expect_error(
          ErrorKind::invalid, [&] { static_cast<void>(inherited.get(key)); }, "before fork");
      expect_error(ErrorKind::invalid, [&] { static_cast<void>(inherited.contains(key + '?')); });
    }
  };
  expect_success_in_child([&] {
    expect_invalid(view);
    expect_invalid(second);
    const View of_child = cache.view();
    for (const std::string& key : keys) EXPECT_EQ(of_child.get(key), "1");
    expect_success_in_child([&] {
      expect_invalid(view);
      expect_invalid(of_child);
    });
    for (const std::string& key : keys) EXPECT_EQ(of_child.get(key), "1");
  });
  for (const std::string& key : keys) EXPECT_EQ(view.get(key), "1");
}

TEST_P(Processes, cache_closed_before_fork_is_opened_by_next_read_of_each_process) {
  Cache cache = fleet.open("berlin");
  cache.set("checkout.on", "1");
  cache.close_shared_state();
  expect_success_in_child([&] {
    EXPECT_EQ(cache.get("checkout.on"), "1");
    EXPECT_EQ(cache.set("checkout.on", "2"), 2U);
  });
  EXPECT_TRUE(cache.contains("checkout.on"));
  EXPECT_EQ(cache.get("checkout.on"), "2");
  cache.delete_shared_state();
  expect_success_in_child([&] {
    expect_error(
        ErrorKind::invalid, [&] { static_cast<void>(cache.get("checkout.on")); }, "closed");
    expect_error(
        ErrorKind::invalid, [&] { static_cast<void>(cache.contains("checkout.on")); }, "closed");
  });
}

TEST_P(Processes, close_in_child_leaves_parent_cache_open) {
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  expect_success_in_child([&] {
    cache.close_shared_state();
    EXPECT_EQ(cache.get("a"), "1");
    cache.close_shared_state();
  });
  EXPECT_EQ(cache.set("a", "2"), 2U);
}

TEST_P(Processes, concurrent_openers_create_one_state) {
  { fleet.open("berlin").set("a", "1"); }
  std::vector<std::unique_ptr<TestProcess>> openers;
  for (int i = 0; i < 8; ++i) {
    openers.push_back(std::make_unique<TestProcess>([&] {
      Cache cache = fleet.open("tokyo");
      EXPECT_EQ(cache.get("a"), "1");
      EXPECT_EQ(cache.counters().rebuilds_damaged, 0U);
    }));
  }
  for (auto& opener : openers) EXPECT_EQ(opener->wait(), 0);
  EXPECT_EQ(fleet.open("tokyo").get("a"), "1");
}

TEST_P(Processes, child_forked_while_no_descriptor_was_free_writes_once_one_is) {
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  struct rlimit all {};
  ASSERT_EQ(::getrlimit(RLIMIT_NOFILE, &all), 0);
  struct rlimit few = all;
  few.rlim_cur = 64;
  ASSERT_EQ(::setrlimit(RLIMIT_NOFILE, &few), 0);
  std::vector<int> used;
  for (int number; (number = ::open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0;)
    used.push_back(number);
  const auto free_descriptors = [&] {
    for (const int number : used) ::close(number);
    EXPECT_EQ(::setrlimit(RLIMIT_NOFILE, &all), 0);
  };

  TestProcess child([&] {
    free_descriptors();
    EXPECT_EQ(cache.set("b", "1"), 2U);
    EXPECT_EQ(cache.get("b"), "1");
  });
  free_descriptors();

  EXPECT_EQ(child.wait(), 0);
  EXPECT_EQ(cache.set("a", "2"), 3U);
}

void wait_until(const std::function<bool()>& is_true) {
  for (int i = 0; i < 60'000 && !is_true(); ++i) std::this_thread::sleep_for(milliseconds(1));
  ASSERT_TRUE(is_true());
}

// SQLite counts the locks of files for the whole process, and a child has the parent's count.
TEST(SqliteProcesses, child_forked_while_commit_waits_for_a_reader_uses_the_log) {
  const Fleet fleet("sqlite");
  Options options;
  options.deadline = milliseconds(60'000);
  Cache cache = fleet.open("berlin", options);
  cache.set("a", "1");
  const std::string database = fleet.directory().file("log.db");
  const std::string has_begun = fleet.directory().file("begun");
  FILE* const reader = ::popen(("sqlite3 '" + database + "' >/dev/null").c_str(), "w");
  ASSERT_NE(reader, nullptr);
  std::fprintf(reader, "BEGIN; SELECT count(*) FROM sqlite_schema;\n.shell touch '%s'\n",
               has_begun.c_str());
  std::fflush(reader);
  wait_until([&] { return std::filesystem::exists(has_begun); });

  std::thread writer([&] { cache.set("b", "1"); });
  // Locked while a transaction that commits waits for readers. Closing this descriptor would drop
  // the locks that SQLite has in this process.
  const FileDescriptor locks = open_file(database, O_RDWR);
  constexpr std::uint64_t pending_byte = 0x40000000;
  wait_until([&] { return is_byte_locked(locks.number(), pending_byte); });
  TestProcess child([&] {
    cache.set("c", "1");
    EXPECT_EQ(cache.get("c"), "1");
  });
  std::fputs("ROLLBACK;\n.quit\n", reader);
  EXPECT_EQ(::pclose(reader), 0);
  writer.join();

  EXPECT_EQ(child.wait(), 0);
  EXPECT_EQ(cache.update(), 3U);
  EXPECT_EQ(cache.get("b"), "1");
  EXPECT_EQ(cache.get("c"), "1");
}

// A memory log lives in the process that created it.
TEST(MemoryLogProcesses, child_reads_memory_log_state_but_write_throws) {
  Fleet fleet;
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  expect_success_in_child([&] {
    EXPECT_EQ(cache.get("a"), "1");
    expect_error(
        ErrorKind::invalid, [&] { cache.set("a", "2"); }, "memory");
  });
  EXPECT_EQ(cache.set("a", "2"), 2U);
}

}  // namespace
}  // namespace whycache::testing
