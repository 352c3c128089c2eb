// Faults of the predecessor of whycache. One test per fault shows that whycache does not have it;
// the comment above the test describes the fault.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "client/cache_internal.h"
#include "client/fleet.h"
#include "support/mappings.h"
#include "update/update.h"

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;
using ::testing::HasSubstr;
using ::testing::Not;

// Returns the values that updates set for `key`, in log order.
std::vector<std::string> values_in_log(Log& log, std::string_view key) {
  std::vector<std::string> values;
  Update update;
  log.read(1, ~UpdateId{0}, [&](UpdateId, std::string_view bytes) {
    decode_update(bytes, update);
    for (const Change& change : update.changes) {
      if (change.key == key) values.emplace_back(change.value);
    }
    return true;
  });
  return values;
}

class Faults : public ::testing::Test {
 protected:
  Fleet fleet;
};

// Ids commit out of order: a reader passes 11, then 10 commits, and 10 is never read.
TEST_F(Faults, reader_never_skips_update_committed_later) {
  std::vector<std::thread> writers;
  for (int i = 0; i < 3; ++i) {
    writers.emplace_back([this, i] {
      Cache cache = fleet.open("writer" + std::to_string(i));
      for (int j = 0; j < 150; ++j)
        cache.set("key" + std::to_string(i) + "." + std::to_string(j), "value");
    });
  }
  Cache reader = fleet.open("reader");
  const UpdateId before = reader.applied_id();
  UpdateId applied = before;
  while (applied < 450) {
    const UpdateId now = reader.update();
    ASSERT_GE(now, applied);
    applied = now;
  }
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(reader.size(), 450U);
  EXPECT_EQ(reader.counters().updates_applied, 450 - before) << "each once, none skipped";
}

// A rewrite deletes a row that was committed between its read and its delete.
TEST_F(Faults, rewrite_keeps_concurrent_writes) {
  Cache rewriter = fleet.open("rewriter");
  std::atomic<bool> end{false};
  std::map<std::string, std::string> written;
  std::thread writer([&] {
    Cache cache = fleet.open("writer");
    for (int i = 0; !end; ++i) {
      const std::string key = "key" + std::to_string(i);
      cache.set(key, std::to_string(i));
      written[key] = std::to_string(i);
    }
  });
  for (int i = 0; i < 25; ++i) rewriter.rewrite_history();
  end = true;
  writer.join();
  EXPECT_EQ(contents(fleet.open("new")), written);
}

// A machine behind a rewrite silently keeps keys that were deleted in between, and loses the
// updates in between.
TEST_F(Faults, machine_behind_rewrite_drops_erased_and_gains_missed_keys) {
  Cache writer = fleet.open("writer");
  Cache behind = fleet.open("behind");
  writer.set_multi({{"ghost", "1"}, {"a", "1"}});
  behind.update();
  writer.erase("ghost");
  writer.set("hole", "1");
  writer.rewrite_history();
  writer.set("after", "1");

  behind.update();

  EXPECT_EQ(contents(behind), (Contents{{"a", "1"}, {"after", "1"}, {"hole", "1"}}));
  EXPECT_EQ(behind.counters().rebuilds_behind_base, 1U) << "and it is counted";
}

// A bootstrap copy older than the last rewrite has the same faults, and nothing checks for them.
TEST_F(Faults, bootstrap_copy_older_than_rewrite_is_rebuilt) {
  Cache writer = fleet.open("writer");
  writer.set_multi({{"ghost", "1"}, {"a", "1"}});
  writer.close_shared_state();
  std::filesystem::copy_file(fleet.state_path("writer"), fleet.state_path("copy"));
  Cache again = fleet.open("writer");
  again.erase("ghost");
  again.rewrite_history();

  EXPECT_EQ(contents(fleet.open("copy")), (Contents{{"a", "1"}}));
}

// Deleting an absent key skips the rest of the batch, and the next update never returns to it.
TEST_F(Faults, erase_of_absent_key_keeps_rest_of_batch) {
  Cache writer = fleet.open("writer");
  Cache reader = fleet.open("reader");
  writer.write({Change::set("a", "1"), Change::erase("absent"), Change::set("b", "2")});
  writer.set("c", "3");
  reader.update();
  EXPECT_EQ(contents(reader), (Contents{{"a", "1"}, {"b", "2"}, {"c", "3"}}));
  EXPECT_EQ(contents(writer), contents(reader));
}

// A write changes the local state out of log order: readers on that machine see 2, 1, 2.
TEST_F(Faults, concurrent_writers_read_values_in_log_order) {
  Cache berlin = fleet.open("berlin");
  Cache tokyo = fleet.open("tokyo");
  std::atomic<int> writing{2};
  std::vector<std::string> seen_in_berlin;
  std::vector<std::string> seen_in_tokyo;
  const auto watch = [&](Cache& cache, std::vector<std::string>& seen) {
    std::string value;
    while (writing > 0) {
      if (cache.get("key", value) && (seen.empty() || seen.back() != value)) seen.push_back(value);
    }
  };
  const auto write = [&](Cache& cache, const std::string& name) {
    for (int i = 0; i < 300; ++i) cache.set("key", name + std::to_string(i));
    --writing;
  };
  std::vector<std::thread> threads;
  threads.emplace_back([&] { watch(berlin, seen_in_berlin); });
  threads.emplace_back([&] { watch(tokyo, seen_in_tokyo); });
  threads.emplace_back([&] { write(berlin, "berlin"); });
  threads.emplace_back([&] { write(tokyo, "tokyo"); });
  for (std::thread& thread : threads) thread.join();

  const std::vector<std::string> order = values_in_log(CacheInternal::log(berlin), "key");
  EXPECT_EQ(order.size(), 600U);
  for (const auto* seen : {&seen_in_berlin, &seen_in_tokyo}) {
    auto at = order.begin();
    for (const std::string& value : *seen) {
      at = std::find(at, order.end(), value);
      ASSERT_NE(at, order.end()) << value << " was seen after a newer value";
    }
  }
}

// There is one lock per key: readers see half of an update.
TEST_F(Faults, multi_key_update_is_never_seen_partially) {
  Cache cache = fleet.open("berlin");
  Cache follower = fleet.open("tokyo");
  cache.set_multi({{"a", "0"}, {"b", "0"}, {"c", "0"}});
  follower.update();
  std::atomic<bool> end{false};
  std::atomic<int> torn_reads{0};
  std::atomic<int> read_count{0};
  std::vector<std::thread> readers;
  for (const Cache* reader : {&cache, &follower}) {
    readers.emplace_back([&, reader] {
      while (!end) {
        const auto values = reader->get_multi({"a", "b", "c"});
        if (values[0] != values[1] || values[1] != values[2]) ++torn_reads;
        const View view = reader->view();
        if (view.get("a") != view.get("c")) ++torn_reads;
        ++read_count;
      }
    });
  }
  // On a busy machine the readers may begin late.
  for (int i = 0; i < 500 || read_count < 100; ++i) {
    const std::string value = std::to_string(i);
    cache.set_multi({{"a", value}, {"b", value}, {"c", value}});
    if (i % 5 == 0) follower.update();
  }
  end = true;
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(torn_reads, 0);
}

// A large multi-set fails midway: part of it is written, and no error says which part.
TEST_F(Faults, set_multi_failing_midway_reports_written_changes) {
  auto script = std::make_shared<Script>();
  Options options;
  options.update_bytes_max = 4096;
  options.deadline = milliseconds(50);
  Cache cache = fleet.open("berlin", script, options);
  script->before_append = [](UpdateId id) {
    if (id == 3) throw unavailable_error();
  };
  const std::string value(2500, 'v');
  expect_error(
      ErrorKind::uncertain,
      [&] {
        cache.set_multi({{"a", value}, {"b", value}, {"c", value}});
      },
      "changes_written=2 of=3", "last_id=2");
  EXPECT_TRUE(cache.contains("b"));
  EXPECT_FALSE(cache.contains("c"));
}

// Keys longer than the column are truncated, so two keys replace each other.
TEST_F(Faults, long_keys_with_common_prefix_stay_distinct) {
  Cache cache = fleet.open("berlin");
  const std::string stem(1023, 'k');
  cache.set_multi({{stem + "a", "1"}, {stem + "b", "2"}});
  EXPECT_EQ(cache.get(stem + "a"), "1");
  EXPECT_EQ(fleet.open("tokyo").get(stem + "b"), "2");
  expect_error(
      ErrorKind::invalid, [&] { cache.set(stem + "aa", "1"); }, "key_bytes_max=1024");
  EXPECT_EQ(cache.size(), 2U);
}

// A delete is encoded as an empty value: setting an empty value deletes the key on other machines.
TEST_F(Faults, empty_value_differs_from_absent_key) {
  Cache writer = fleet.open("writer");
  Cache reader = fleet.open("reader");
  writer.set("a", "");
  reader.update();
  EXPECT_EQ(reader.get("a"), "");
  EXPECT_TRUE(reader.contains("a"));
  writer.rewrite_history();
  EXPECT_EQ(fleet.open("new").get("a"), "");
  writer.erase("a");
  reader.update();
  EXPECT_FALSE(reader.contains("a"));
}

// A rewrite up to the newest id lowers the head (20 -> 1): every machine fails, and old ids are
// assigned again.
TEST_F(Faults, ids_continue_after_rewrite_up_to_head) {
  Cache writer = fleet.open("writer");
  Cache reader = fleet.open("reader");
  for (int i = 0; i < 20; ++i) writer.set("a", std::to_string(i));
  reader.update();
  EXPECT_EQ(writer.rewrite_history(), 20U);
  EXPECT_EQ(reader.update(), 20U);
  EXPECT_EQ(CacheInternal::log(writer).extent().head, 20U);
  EXPECT_EQ(fleet.open("new").set("a", "20"), 21U);
  EXPECT_EQ(reader.update(), 21U);
  EXPECT_EQ(reader.get("a"), "20");
}

// In the file store two processes append the same id, and one update overwrites the other.
TEST(FaultsOfFiles, concurrent_processes_never_append_same_id) {
  Fleet fleet("file");
  std::vector<std::unique_ptr<TestProcess>> writers;
  for (int process = 0; process < 3; ++process) {
    writers.push_back(std::make_unique<TestProcess>([&, process] {
      Cache cache = fleet.open("machine" + std::to_string(process));
      for (int i = 0; i < 30; ++i)
        cache.set("key" + std::to_string(process) + "." + std::to_string(i), "value");
    }));
  }
  for (auto& writer : writers) EXPECT_EQ(writer->wait(), 0);
  Cache cache = fleet.open("new");
  EXPECT_EQ(cache.applied_id(), 90U);
  EXPECT_EQ(cache.size(), 90U);
}

// Deleting the whole history leaves every other machine with old data and without notice.
TEST_F(Faults, delete_all_history_empties_every_machine) {
  Cache writer = fleet.open("writer");
  Cache reader = fleet.open("reader");
  Cache behind = fleet.open("behind");
  writer.set("a", "1");
  reader.update();
  writer.set("b", "1");
  writer.delete_all_history();
  reader.update();
  behind.update();
  EXPECT_EQ(reader.size(), 0U);
  EXPECT_EQ(behind.size(), 0U);
  EXPECT_EQ(reader.digest(), writer.digest());
}

// A value that one codec can encode and another cannot store is committed. It then stops every
// machine at that id forever.
TEST_F(Faults, every_accepted_value_is_applied_by_reader) {
  Options options;
  options.update_bytes_max = 20U << 20;
  Cache writer = fleet.open("writer", options);
  Cache reader = fleet.open("reader");
  std::string all_bytes;
  for (int i = 0; i < 256; ++i) all_bytes += static_cast<char>(i);
  std::string row;
  writer.set("looks like an update", "x");
  CacheInternal::log(writer).read(1, 1, [&](UpdateId, std::string_view bytes) {
    row = bytes;
    return true;
  });
  const std::vector<std::string> values{"",
                                        std::string(1, '\0'),
                                        all_bytes,
                                        row,
                                        "\x28\xb5\x2f\xfd",
                                        std::string(value_bytes_max, 'v'),
                                        incompressible_bytes(1 << 20, 1),
                                        "{\"json\": [1, 2",
                                        "\x80\x04\x95pickle"};
  for (std::size_t i = 0; i < values.size(); ++i) writer.set("key" + std::to_string(i), values[i]);
  expect_error(ErrorKind::limit,
               [&] { writer.set("too large", std::string(value_bytes_max + 1, 'v')); });

  EXPECT_EQ(reader.update(), values.size() + 1);
  for (std::size_t i = 0; i < values.size(); ++i)
    EXPECT_EQ(reader.get("key" + std::to_string(i)), values[i]) << i;
}

// A rewrite needs gaps in the ids, and fails if a key was set and later deleted on its own. A
// multi-key load can never be rewritten.
TEST_F(Faults, history_with_sets_erases_and_batches_is_rewritten) {
  Cache cache = fleet.open("berlin");
  cache.set("a", "1");
  cache.erase("a");
  cache.erase("never set");
  std::map<std::string, std::string> batch;
  for (int i = 0; i < 1000; ++i) batch["key" + std::to_string(i)] = std::to_string(i);
  cache.set_multi(batch);
  EXPECT_EQ(cache.rewrite_history({.limit = 1, .keep = {}}), 1U);
  EXPECT_EQ(cache.rewrite_history({.limit = 2, .keep = {}}), 2U);
  EXPECT_EQ(cache.rewrite_history(), 4U);
  EXPECT_EQ(fleet.open("tokyo").digest(), cache.digest());
}

// An erase of an absent key at the tail is fetched again on every update: the id never advances.
TEST_F(Faults, erase_of_absent_key_advances_id_and_is_applied_once) {
  Cache writer = fleet.open("writer");
  auto script = std::make_shared<Script>();
  Cache reader = fleet.open("reader", script);
  writer.set("a", "1");
  EXPECT_EQ(writer.erase("absent"), 2U);
  EXPECT_EQ(reader.update(), 2U);
  reader.update();
  reader.update();
  EXPECT_EQ(reader.counters().updates_applied, 2U);
}

// A lost connection is not retried, the outcome of a commit stays unknown, and there is no timeout.
TEST_F(Faults, lost_connection_is_retried_until_deadline) {
  auto script = std::make_shared<Script>();
  std::atomic<int> lost{0};
  script->after_append = [&](UpdateId) {
    if (lost++ % 2 == 0) throw uncertain_error();
  };
  Options options;
  options.deadline = milliseconds(1000);
  Cache cache = fleet.open("berlin", script, options);
  for (int i = 0; i < 10; ++i) cache.set("key", std::to_string(i));
  EXPECT_EQ(values_in_log(CacheInternal::log(cache), "key").size(), 10U);

  script->before_append = [](UpdateId) { throw unavailable_error(); };
  const auto began = std::chrono::steady_clock::now();
  expect_error(ErrorKind::unavailable, [&] { cache.set("key", "10"); });
  EXPECT_LT(std::chrono::steady_clock::now() - began, std::chrono::seconds(10));
}

// Two rewrites run at once, and each reads pages without a consistent snapshot of the rows.
TEST_F(Faults, concurrent_rewrites_leave_complete_history) {
  Cache berlin = fleet.open("berlin");
  std::map<std::string, std::string> batch;
  for (int i = 0; i < 3000; ++i)
    batch["key" + std::to_string(i)] = incompressible_bytes(500, static_cast<std::uint64_t>(i));
  berlin.set_multi(batch);
  std::vector<std::thread> rewriters;
  for (int i = 0; i < 3; ++i) {
    rewriters.emplace_back([this, i] {
      Cache cache = fleet.open("machine" + std::to_string(i));
      for (int j = 0; j < 5; ++j) {
        cache.set("more" + std::to_string(i), std::to_string(j));
        cache.rewrite_history();
      }
    });
  }
  for (std::thread& rewriter : rewriters) rewriter.join();
  berlin.update();
  EXPECT_EQ(berlin.size(), 3003U);
  EXPECT_EQ(fleet.open("new").digest(), berlin.digest());
}

// set_multi({}) writes an empty row. delete_multi commits but never deletes locally. A delete of an
// absent key commits, then raises.
TEST_F(Faults, empty_batch_appends_nothing_and_erase_applies_locally) {
  Cache cache = fleet.open("berlin");
  cache.set_multi({{"a", "1"}, {"b", "2"}});
  EXPECT_EQ(cache.set_multi(std::vector<Item>{}), 1U);
  EXPECT_EQ(CacheInternal::log(cache).extent().head, 1U);
  const std::vector<std::string> erased{"a", "absent"};
  cache.erase_multi(erased);
  EXPECT_EQ(contents(cache), (Contents{{"b", "2"}}));
  EXPECT_EQ(cache.erase("absent"), 3U);
}

// The empty key secretly holds the applied id.
TEST_F(Faults, no_key_is_reserved) {
  Cache cache = fleet.open("berlin");
  expect_error(ErrorKind::invalid, [&] { cache.set("", "17"); });
  EXPECT_EQ(cache.get(""), std::nullopt);
  for (const std::string& key : {std::string(1, '\0'), std::string("applied_id"),
                                 std::string(8, '\xff'), std::string("\0id", 3)}) {
    cache.set(key, "mine");
    EXPECT_EQ(cache.get(key), "mine");
  }
  EXPECT_EQ(cache.applied_id(), 4U);
  EXPECT_EQ(cache.size(), 4U);
}

// get() cannot say how old its data is, and nothing bounds the age.
TEST_F(Faults, staleness_is_reported_and_bounded_by_update) {
  Cache writer = fleet.open("writer");
  Cache reader = fleet.open("reader");
  reader.update();
  std::this_thread::sleep_for(milliseconds(20));
  EXPECT_GE(reader.staleness(), milliseconds(20));
  writer.set("a", "1");
  EXPECT_EQ(reader.update({.staleness_max = milliseconds(10), .at_least = 0, .deadline = {}}), 1U);
  EXPECT_LT(reader.staleness(), milliseconds(5'000));
  EXPECT_EQ(reader.get("a"), "1");
}

// The state has a predictable name in /tmp, is opened through symlinks, and has mode 0666.
TEST_F(Faults, state_files_are_private_to_user) {
  Cache cache = fleet.open("berlin");
  struct stat status;
  ASSERT_EQ(::stat(cache.state_path().c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600U);
  ASSERT_EQ(::stat((cache.state_path() + ".lock").c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0600U);
  Cache anonymous("memory:");
  EXPECT_THAT(anonymous.state_path(), Not(HasSubstr("/tmp/")));
}

// Every reader maps the file writable.
TEST_F(Faults, idle_writer_and_follower_map_state_read_only) {
  Cache cache = fleet.open("berlin");
  const auto all_read_only = [](const Cache& reader) {
    const std::vector<std::string> mappings = mappings_of(reader.state_path());
    return !mappings.empty() && writable_mappings_of(reader.state_path()) == 0;
  };
  cache.set("a", "1");
  const View view = cache.view();
  EXPECT_TRUE(all_read_only(cache));
  // A frequent writer keeps its writable mapping until it stops writing.
  const auto write_until_mapping_is_kept = [&] {
    for (int i = 0; i < 1000 && all_read_only(cache); ++i) cache.set("a", std::to_string(i));
    EXPECT_EQ(writable_mappings_of(cache.state_path()), 1);
  };
  write_until_mapping_is_kept();
  std::this_thread::sleep_for(milliseconds(130));
  cache.update({.staleness_max = std::chrono::minutes(1)});
  EXPECT_TRUE(all_read_only(cache));
  // A follower never maps the state writable.
  Cache tokyo = fleet.open("tokyo");
  for (int i = 0; i < 20; ++i) {
    cache.set("a", std::to_string(i));
    tokyo.update();
    EXPECT_TRUE(all_read_only(tokyo));
  }
  // Closing the cache while another thread writes removes the writable mapping.
  write_until_mapping_is_kept();
  std::thread other([&] {
    try {
      for (int i = 0;; ++i) cache.set("b", std::to_string(i));
    } catch (const Error&) {  // the cache is closed
    }
  });
  std::this_thread::sleep_for(milliseconds(20));
  cache.delete_shared_state();
  other.join();
  EXPECT_TRUE(all_read_only(cache));
}

// A writer that dies with the lock held stalls every reader for a second; then the whole pool is
// scanned.
TEST(FaultsOfProcesses, killed_writer_does_not_block_other_processes) {
  Fleet fleet("file");
  Cache cache = fleet.open("berlin");
  cache.set("a", "0");
  for (int round = 0; round < 5; ++round) {
    TestProcess writer([&] {
      Cache other = fleet.open("berlin");
      for (int i = 0;; ++i)
        other.set("a", incompressible_bytes(2000, static_cast<std::uint64_t>(i)));
    });
    std::this_thread::sleep_for(milliseconds(30));
    writer.kill_and_wait();
    const auto began = std::chrono::steady_clock::now();
    EXPECT_TRUE(cache.contains("a"));
    EXPECT_LT(std::chrono::steady_clock::now() - began, milliseconds(100));
    cache.set("b", std::to_string(round));
    EXPECT_EQ(cache.get("b"), std::to_string(round));
  }
}

// One row at a high id costs a SELECT per page of the id space.
TEST_F(Faults, update_at_high_id_needs_at_most_two_reads) {
  Cache writer = fleet.open("writer");
  for (int i = 0; i < 3000; ++i) writer.set("a", std::to_string(i));
  writer.rewrite_history({.limit = 2999, .keep = {}});
  auto script = std::make_shared<Script>();
  const Cache reader = fleet.open("reader", script);
  EXPECT_EQ(reader.applied_id(), 3000U);
  EXPECT_LE(script->read_count, 2);
}

// Every process of a machine asks the primary for the newest id and decodes the same rows.
TEST_F(Faults, one_log_read_serves_all_processes_of_machine) {
  Cache writer = fleet.open("writer");
  auto script = std::make_shared<Script>();
  std::vector<Cache> caches;
  for (int i = 0; i < 5; ++i) {
    caches.push_back(fleet.open("berlin", script));
    caches.back().update();  // the first one of each verifies that the state is of its log
  }
  writer.set("a", "1");
  script->read_count = 0;
  for (Cache& cache : caches)
    EXPECT_EQ(
        cache.update({.staleness_max = std::chrono::seconds(60), .at_least = 1, .deadline = {}}),
        1U);
  EXPECT_EQ(script->read_count, 1);
  for (Cache& cache : caches) EXPECT_EQ(cache.get("a"), "1");
}

}  // namespace
}  // namespace whycache::testing
