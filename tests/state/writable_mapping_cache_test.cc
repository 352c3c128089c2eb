// A process that writes repeatedly caches the writable mapping of the state between writes. These
// tests show for how long, and that writes have the same results with a cached mapping.
#include "state/write/writable_mapping_cache.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdlib>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "base/file.h"
#include "state/file/mapping.h"
#include "state/test_state.h"
#include "support/child_process.h"
#include "support/mappings.h"
#include "support/temporary_directory.h"

namespace whycache::testing {
namespace {

using std::chrono::milliseconds;
using ::testing::IsEmpty;

constexpr milliseconds longer_than_cached{130};

class WritableMappingCacheTest : public ::testing::Test {
 protected:
  // Writes until the mapping is cached. On a busy machine, the pause between two writes may be too
  // long for that.
  void write_until_cached(TestState& state) {
    for (int i = 0; i < 1000; ++i) {
      state.apply({{"key" + std::to_string(i % 10), std::to_string(i)}});
      if (writable_mappings() > 0) return;
    }
    FAIL() << "the mapping is never cached";
  }
  // Writes 48 values under one hold of the writer lock, soon after another write, and waits until
  // the cached mapping is idle.
  void touch_many_pages(TestState& state, const std::string& value) {
    write_until_cached(state);
    {
      const std::unique_ptr<StateWriter> writer =
          state->begin_write(TestState::deadline(), MappingPolicy::cache);
      for (int i = 0; i < 48; ++i)
        TestState::apply(*writer, {{"large" + std::to_string(i), value}});
    }
    std::this_thread::sleep_for(longer_than_cached);
  }
  int writable_mappings() const { return writable_mappings_of(path()); }
  std::string path() const { return directory_.file("a.state"); }

  TemporaryDirectory directory_;
};

TEST_F(WritableMappingCacheTest, single_write_caches_no_mapping) {
  TestState state(path());
  state.apply({{"a", "1"}});
  EXPECT_EQ(writable_mappings(), 0);
  std::this_thread::sleep_for(longer_than_cached);
  state.apply({{"a", "2"}});
  EXPECT_EQ(writable_mappings(), 0);
}

TEST_F(WritableMappingCacheTest, mapping_is_cached_between_writes_and_dropped_afterwards) {
  TestState state(path());
  write_until_cached(state);
  EXPECT_EQ(writable_mappings(), 1);
  std::this_thread::sleep_for(longer_than_cached);
  state->unmap_if_idle();
  EXPECT_EQ(writable_mappings(), 0);

  write_until_cached(state);
  std::this_thread::sleep_for(longer_than_cached);
  { const View view = state.view(); }
  EXPECT_EQ(writable_mappings(), 0);

  write_until_cached(state);
  std::this_thread::sleep_for(longer_than_cached);
  state.apply({{"a", "2"}});  // the first write after a pause
  EXPECT_EQ(writable_mappings(), 0);

  write_until_cached(state);
  state->disable_mapping_cache();
  EXPECT_EQ(writable_mappings(), 0);
  for (int i = 0; i < 20; ++i) state.apply({{"b", "1"}});
  EXPECT_EQ(writable_mappings(), 0);
  EXPECT_EQ(state.get("a"), "2");
  EXPECT_THAT(state.check(), IsEmpty());
}

TEST_F(WritableMappingCacheTest, only_a_write_with_policy_cache_caches_the_mapping) {
  TestState state(path());
  for (int i = 0; i < 20; ++i) {
    const std::unique_ptr<StateWriter> writer = state->begin_write(TestState::deadline());
    TestState::apply(*writer, {{"a", std::to_string(i)}});
  }
  EXPECT_EQ(writable_mappings(), 0);
  for (int i = 0; i < 20; ++i) state->begin_write(TestState::deadline(), MappingPolicy::cache);
  EXPECT_EQ(writable_mappings(), 0);
}

TEST_F(WritableMappingCacheTest, large_updates_keep_the_mapping_cached_too) {
  TestState state(path());
  std::vector<TestChange> changes;
  for (int i = 0; i < 3000; ++i) changes.push_back({"key" + std::to_string(i), "value"});
  int cached_writes = 0;
  for (int i = 0; i < 100; ++i) {
    state.apply(changes);
    cached_writes += writable_mappings();
  }
  // On a busy machine, some pauses between two writes may be too long.
  EXPECT_GE(cached_writes, 50);
}

// No call that finds the mapping idle has to wait until thousands of pages are unmapped.
TEST_F(WritableMappingCacheTest, mapping_of_a_large_file_is_unmapped_part_by_part) {
  TestState state(path());
  const std::string large(std::size_t{1} << 20, 'v');
  const auto write_much = [&] { touch_many_pages(state, large); };
  write_much();
  const std::uint64_t parts = state->inspect().file_bytes / (std::uint64_t{2} << 20) + 1;
  std::uint64_t calls = 0;
  for (; writable_mappings() > 0 && calls <= parts; ++calls) state->unmap_if_idle();
  EXPECT_EQ(writable_mappings(), 0) << calls;
  EXPECT_GT(calls, 1U);

  // A write finds a mapping of which a part is missing, and maps the file again.
  write_much();
  state->unmap_if_idle();
  state.apply({{"large7", "small"}});
  EXPECT_EQ(state.get("large7"), "small");
  EXPECT_EQ(state.get("large8"), large);
  EXPECT_LE(writable_mappings(), 1);

  // It ends with the cache.
  write_much();
  state->unmap_if_idle();
  state->disable_mapping_cache();
  EXPECT_EQ(writable_mappings(), 0);
  EXPECT_THAT(state.check(), IsEmpty());
}

// The first write after a pause does not unmap thousands of pages at once either.
TEST_F(WritableMappingCacheTest, first_write_after_a_pause_leaves_most_of_a_large_mapping) {
  TestState state(path());
  bool was_left = false;
  for (int i = 0; i < 20 && !was_left; ++i) {  // see write_until_cached()
    touch_many_pages(state, std::string(std::size_t{1} << 20, 'v'));
    state.apply({{"a", "1"}});
    was_left = writable_mappings() == 1;
  }
  EXPECT_TRUE(was_left);
  std::this_thread::sleep_for(longer_than_cached);
  state->unmap_whole_if_idle();
  EXPECT_EQ(writable_mappings(), 0);
}

// A write of more than 100 ms is no pause.
TEST_F(WritableMappingCacheTest, writes_that_take_long_keep_the_mapping_cached) {
  TestState state(path());
  bool was_cached = false;
  for (int i = 0; i < 100 && !was_cached; ++i) {  // the pause between two may be long by accident
    {
      const std::unique_ptr<StateWriter> writer =
          state->begin_write(TestState::deadline(), MappingPolicy::cache);
      TestState::apply(*writer, {{"a", std::to_string(i)}});
      std::this_thread::sleep_for(longer_than_cached);
    }
    was_cached = writable_mappings() > 0;
  }
  EXPECT_TRUE(was_cached);
}

// Uses the cache directly: take() alone has to check the mapping, as no switch of files drops it.
TEST_F(WritableMappingCacheTest, take_returns_only_a_mapping_of_the_same_whole_file) {
  const std::string other_path = directory_.file("other.state");
  constexpr std::uint64_t bytes_max = std::uint64_t{64} << 20;
  TestState state(path());
  const TestState other(other_path);
  const Mapping current(open_file(path(), O_RDONLY), path(), bytes_max, Mapping::Access::read);
  const Mapping other_current(open_file(other_path, O_RDONLY), other_path, bytes_max,
                              Mapping::Access::read);
  WritableMappingCache cache;
  const auto fill_cache = [&](std::uint64_t bytes) {
    for (int i = 0; i < 1000; ++i) {
      EXPECT_EQ(cache.take(current), nullptr);
      cache.put(std::make_unique<WritableMapping>(path(), bytes));
      if (writable_mappings() > 0) return;
    }
  };
  fill_cache(bytes_max);
  EXPECT_NE(cache.take(current), nullptr);
  EXPECT_EQ(cache.take(current), nullptr) << "the mapping is taken already";
  fill_cache(bytes_max);
  EXPECT_EQ(cache.take(other_current), nullptr);
  EXPECT_EQ(writable_mappings(), 0);

  // Another state with a larger maximum has grown the file beyond what the cached mapping reserved.
  fill_cache(current.usable_bytes());
  for (int i = 0; i < 40; ++i)
    state.apply({{"key" + std::to_string(i), std::string(100'000, 'v')}});
  ASSERT_GT(state->inspect().file_bytes, current.usable_bytes());
  state->disable_mapping_cache();
  ASSERT_EQ(writable_mappings(), 1);
  EXPECT_EQ(cache.take(current), nullptr);
  EXPECT_EQ(writable_mappings(), 0);
}

// A backup is copied into the same file. The next open adopts it, with the hash seed of the backup.
TEST_F(WritableMappingCacheTest, state_copied_over_ours_is_written_by_its_own_seed) {
  const auto key = [](int i) { return "a key that is longer than two words " + std::to_string(i); };
  const std::string other_path = directory_.file("other.state");
  {
    TestState other(other_path);
    for (int i = 0; i < 50; ++i) other.apply({{key(i), "other"}});
  }
  {
    TestState state(path());
    for (int i = 0; i < 20; ++i) state.apply({{key(i), "old"}});
    write_until_cached(state);
    ASSERT_EQ(std::system(("cp " + other_path + " " + path()).c_str()), 0);
    for (int i = 0; i < 5; ++i) state.apply({{key(i), "new"}});
  }
  const TestState opened(path());
  for (int i = 0; i < 5; ++i) EXPECT_EQ(opened.get(key(i)), "new");
  EXPECT_EQ(opened->info().item_count, 50U);
  EXPECT_THAT(opened.check(), IsEmpty());
}

// Each process grows the file, and writes to the space that the other one added.
TEST_F(WritableMappingCacheTest, writers_in_two_processes_alternate_while_the_file_grows) {
  TestState state(path());
  write_until_cached(state);
  const std::uint64_t items_before = state->info().item_count;
  struct Turns {
    std::atomic<int> next{0};
  };
  const SharedWithChildren<Turns> turns;
  constexpr int rounds = 40;
  const auto take_turns = [&](int number) {
    TestState child_state(path());
    for (int round = number; round < rounds; round += 2) {
      while (turns->next != round) std::this_thread::yield();
      for (int i = 0; i < 20; ++i) {
        child_state.apply({{"item" + std::to_string(round * 100 + i), std::string(20'000, 'v')}});
        child_state.apply({{"round", std::to_string(round)}});
      }
      ++turns->next;
    }
    return std::string();
  };
  ChildProcess first([&] { return take_turns(0); });
  ChildProcess second([&] { return take_turns(1); });
  EXPECT_EQ(first.wait(), "");
  EXPECT_EQ(second.wait(), "");
  state.apply({{"last", "1"}});
  EXPECT_EQ(state.get("round"), std::to_string(rounds - 1));
  EXPECT_EQ(state->info().item_count, items_before + rounds * 20 + 2);
  EXPECT_THAT(state.check(), IsEmpty());
}

TEST_F(WritableMappingCacheTest, cached_mapping_of_a_replaced_file_is_not_written) {
  TestState state(path());
  write_until_cached(state);
  {
    TestState other(path());
    const std::unique_ptr<StateBuilder> builder = other->begin_build(test_uuid, "test:");
    builder->finish_load(1000, 1000);
    other->install(*builder);
    other.apply({{"new", "1"}});
  }
  state.apply({{"a", "1"}});
  EXPECT_EQ(state->info().applied_id, 1002U);
  EXPECT_EQ(state.get("new"), "1");
  EXPECT_EQ(state->info().item_count, 2U);
  EXPECT_THAT(state.check(), IsEmpty());

  write_until_cached(state);
  {
    const TestState other(path());
    const std::unique_ptr<StateBuilder> builder = other->begin_build(test_uuid, "test:");
    builder->finish_load(2000, 2000);
    other->install(*builder);
  }
  EXPECT_EQ(state->info().applied_id,
            2000U);  // a reader switches files, and so drops the old mapping
  EXPECT_EQ(writable_mappings(), 0);
}

TEST_F(WritableMappingCacheTest, forked_child_caches_a_mapping_of_its_own) {
  TestState state(path());
  write_until_cached(state);
  const UpdateId before = state->info().applied_id;
  EXPECT_EQ(run_in_child([&]() -> std::string {
              if (writable_mappings() != 0) return "the parent's mapping is still cached";
              state.apply({{"child", "first"}});
              if (writable_mappings() != 0) return "the mapping is cached after one write";
              for (int i = 0; i < 20; ++i) state.apply({{"child", std::to_string(i)}});
              if (state.get("child") != "19") return "the child's write is lost";
              const std::vector<std::string> faults = state.check();
              return faults.empty() ? "" : faults.front();
            }),
            "");
  state.apply({{"parent", "1"}});
  EXPECT_EQ(state.get("child"), "19");
  EXPECT_EQ(state->info().applied_id, before + 22);
  EXPECT_THAT(state.check(), IsEmpty());
}

TEST_F(WritableMappingCacheTest, failed_update_drops_the_mapping_and_forces_recovery) {
  TestState state(path());
  write_until_cached(state);
  {
    const std::unique_ptr<StateWriter> writer = state->begin_write(TestState::deadline());
    Update update;
    update.id = writer->info().applied_id + 7;
    EXPECT_THROW(writer->apply(update), Error);
  }
  EXPECT_EQ(writable_mappings(), 0);
  {
    const std::unique_ptr<StateWriter> writer = state->begin_write(TestState::deadline());
    EXPECT_FALSE(writer->recovered()) << "no writer died";
    TestState::apply(*writer, {{"a", "1"}});
  }
  EXPECT_EQ(state.get("a"), "1");
  EXPECT_THAT(state.check(), IsEmpty());
}

TEST_F(WritableMappingCacheTest, limited_address_space_disables_the_cache) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers need more address space than the limit";
#endif
  { TestState created(path()); }
  EXPECT_EQ(run_in_child([&]() -> std::string {
              rlimit limit{};
              ::getrlimit(RLIMIT_AS, &limit);
              limit.rlim_cur = std::uint64_t{256} << 30;
              if (::setrlimit(RLIMIT_AS, &limit) != 0) return "cannot limit address space";
              TestState state(path());
              for (int i = 0; i < 50; ++i) {
                state.apply({{"a", std::to_string(i)}});
                if (writable_mappings() != 0) return "the mapping is cached";
              }
              return state.get("a") == "49" ? "" : "the write is lost";
            }),
            "");
}

TEST_F(WritableMappingCacheTest, limit_on_address_space_set_later_ends_caching) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers need more address space than the limit";
#endif
  { TestState created(path()); }
  EXPECT_EQ(run_in_child([&]() -> std::string {
              TestState state(path());
              write_until_cached(state);
              rlimit limit{};
              ::getrlimit(RLIMIT_AS, &limit);
              limit.rlim_cur = std::uint64_t{256} << 30;
              if (::setrlimit(RLIMIT_AS, &limit) != 0) return "cannot limit address space";
              while (writable_mappings() != 0) state.apply({{"a", "1"}});
              for (int i = 0; i < 50; ++i) {
                state.apply({{"a", std::to_string(i)}});
                if (writable_mappings() != 0) return "the mapping is cached";
              }
              return state.get("a") == "49" ? "" : "the write is lost";
            }),
            "");
}

}  // namespace
}  // namespace whycache::testing
