// Reads of absent keys. After some misses, a thread probes the filter of an index page first. No
// read may miss a present key because of that.
#include <gtest/gtest.h>

#include <atomic>
#include <cstddef>
#include <fstream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "state/file/layout.h"
#include "state/lookup_variant.h"
#include "state/read/rcu.h"
#include "state/test_state.h"
#include "support/seed.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

using testing::TestChange;
using testing::TestState;

class FilterTest : public ::testing::TestWithParam<bool> {
 protected:
  // Another test of this process may have left the thread probing the filter.
  FilterTest() {
    if (probes_filter_first()) stop_probing_filter(state_);
  }
  ~FilterTest() override { stop_probing_filter(state_); }

  static bool probes_filter_first() {
    return this_reader.thread != nullptr && this_reader.fast_thread == nullptr;
  }
  static void start_probing_filter(const TestState& state) {
    for (int i = 0; i < 1000 && !probes_filter_first(); ++i) EXPECT_FALSE(state.get("no such key"));
    EXPECT_TRUE(probes_filter_first());
  }
  static void stop_probing_filter(TestState& state) {
    state.apply({{"present key", "yes"}});
    for (int i = 0; i < 1000 && probes_filter_first(); ++i) EXPECT_TRUE(state.get("present key"));
    EXPECT_FALSE(probes_filter_first());
  }

  // Keys of all sizes that reads treat differently.
  static std::string key(std::size_t number) {
    const std::string digits = std::to_string(number);
    switch (number % 5) {
      case 0: return "k" + digits;
      case 1: return "key:0000" + digits;
      case 2: return "a longer key, of more than 16 bytes: " + digits;
      case 3: return digits + std::string(300, 'x');
      default: return "user:0000000" + digits;
    }
  }

  // Expects one filter per index page, except for a few pages that were replaced recently.
  void expect_filters_of_pages_only() {
    const StateInspection inspection = state_->inspect();
    std::uint64_t filters = 0;
    for (const SegmentKindUsage& use : inspection.segments_by_kind) {
      if (use.kind == "filters") filters = use.live_bytes / filter_bytes;
    }
    EXPECT_GE(filters, inspection.index_pages);
    EXPECT_LE(filters, inspection.index_pages + 2);
  }

  std::uint64_t word_at(std::uint64_t offset) const {
    std::ifstream file(path_, std::ios::binary);
    std::uint64_t word = 0;
    file.seekg(static_cast<std::streamoff>(offset));
    file.read(reinterpret_cast<char*>(&word), sizeof word);
    return word;
  }
  void write_at(std::uint64_t offset, const std::string& bytes) const {
    std::fstream file(path_, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(static_cast<std::streamoff>(offset));
    file << bytes << std::flush;
  }
  std::uint64_t first_filter() const {
    return index_page_filter_offset(
        word_at(index_directory_offset(word_at(offsetof(Header, index_directory)))));
  }

  testing::LookupVariant variant_{GetParam()};
  testing::TemporaryDirectory directory_{"/dev/shm"};
  std::string path_ = directory_.file("filtered.state");
  TestState state_{path_};
};

INSTANTIATE_TEST_SUITE_P(Variants, FilterTest, ::testing::Bool(), testing::variant_name);

TEST_P(FilterTest, filter_is_probed_first_while_most_reads_miss) {
  state_.apply({{"present", "yes"}, {"present, and longer", "yes"}});
  EXPECT_TRUE(state_.get("present"));
  EXPECT_FALSE(probes_filter_first());
  start_probing_filter(state_);
  // A few hits in between change nothing.
  for (int round = 0; round < 10; ++round) {
    for (int i = 0; i < 3; ++i) EXPECT_TRUE(state_.get("present"));
    EXPECT_FALSE(state_.get("absent"));
    EXPECT_TRUE(probes_filter_first());
  }
  stop_probing_filter(state_);
  for (int i = 0; i < 1000 && !probes_filter_first(); ++i)
    EXPECT_FALSE(state_->contains("no such key"));
  EXPECT_TRUE(probes_filter_first());
  for (int i = 0; i < 1000 && probes_filter_first(); ++i)
    EXPECT_TRUE(state_->contains("present, and longer"));
  EXPECT_FALSE(probes_filter_first());
}

TEST_P(FilterTest, each_thread_decides_by_its_own_misses) {
  start_probing_filter(state_);
  std::thread([&] {
    EXPECT_FALSE(state_.get("no such key"));
    EXPECT_FALSE(probes_filter_first());
  }).join();
  EXPECT_TRUE(probes_filter_first());
}

TEST_P(FilterTest, written_key_is_found_immediately) {
  for (std::size_t number = 0; number < 200; ++number) {
    start_probing_filter(state_);
    EXPECT_FALSE(state_.get(key(number)));
    EXPECT_FALSE(state_->contains(key(number)));
    state_.apply({{key(number), "value " + std::to_string(number)}});
    EXPECT_TRUE(probes_filter_first());
    EXPECT_EQ(state_.get(key(number)), "value " + std::to_string(number));
    EXPECT_TRUE(state_->contains(key(number)));
    state_.apply({{key(number), std::nullopt}});
    start_probing_filter(state_);
    EXPECT_FALSE(state_.get(key(number)));
  }
  EXPECT_EQ(state_.check(), std::vector<std::string>());
}

// The index grows from one page to several, its directory doubles, and the file grows.
TEST_P(FilterTest, keys_are_found_after_index_pages_split) {
  constexpr std::size_t count = 120'000;
  const std::string value(40, 'v');
  for (std::size_t first = 0; first < count; first += 1000) {
    std::vector<TestChange> changes;
    for (std::size_t number = first; number < first + 1000; ++number)
      changes.push_back({key(number), value});
    state_.apply(changes);
  }
  EXPECT_GE(state_->inspect().index_pages, 4U);
  expect_filters_of_pages_only();
  for (std::size_t number = 0; number < count; ++number) {
    for (int i = 0; i < 2; ++i) ASSERT_FALSE(state_.get("absent " + key(number)));
    ASSERT_TRUE(state_.get(key(number))) << number;
    ASSERT_TRUE(state_->contains(key(number))) << number;
    ASSERT_FALSE(state_->contains("absent " + key(number)));
  }
  EXPECT_TRUE(probes_filter_first());
  EXPECT_EQ(state_.check(), std::vector<std::string>());
}

// Pages split and filters are reused while threads that probe filters first read the keys that were
// just written.
TEST_P(FilterTest, probing_threads_miss_no_key_during_page_splits) {
  const TestState other(path_);
  SCOPED_TRACE(testing::seed_note());
  constexpr std::size_t rounds = 1000;
  constexpr std::size_t keys_per_round = 250;
  std::atomic<std::size_t> written{0};
  std::atomic<std::size_t> not_found{0};
  std::atomic<std::size_t> reads{0};
  const auto read_until_end = [&](const TestState& state) {
    std::size_t random = testing::test_seed();
    std::string value;
    for (;;) {
      const std::size_t round = written.load(std::memory_order_acquire);
      if (round == rounds) return;
      random = random * 6364136223846793005U + 1442695040888963407U;
      for (int i = 0; i < 8; ++i) state.get("absent " + key(random >> 40));
      if (round == 0) continue;
      if (!state->get(key(round * keys_per_round - 1 - (random >> 33) % keys_per_round), value))
        ++not_found;
      if (!state->contains(key((random >> 20) % (round * keys_per_round)))) ++not_found;
      ++reads;
    }
  };
  std::thread local_reader([&] { read_until_end(state_); });
  std::thread other_reader([&] { read_until_end(other); });
  for (std::size_t round = 0; round < rounds; ++round) {
    std::vector<TestChange> changes;
    for (std::size_t i = 0; i < keys_per_round; ++i)
      changes.push_back({key(round * keys_per_round + i), "v"});
    state_.apply(changes);
    written.store(round + 1, std::memory_order_release);
    while (reads.load() < round) std::this_thread::yield();
  }
  local_reader.join();
  other_reader.join();
  EXPECT_EQ(not_found, 0U);
  expect_filters_of_pages_only();
  EXPECT_EQ(state_.check(), std::vector<std::string>());
}

// A page is rebuilt when too many of its words are tombstones.
TEST_P(FilterTest, keys_are_found_after_an_index_page_was_rebuilt) {
  constexpr std::size_t keys_per_round = 5000;
  for (std::size_t round = 0; round < 40; ++round) {
    std::vector<TestChange> changes;
    for (std::size_t i = 0; i < keys_per_round; ++i) {
      changes.push_back({key(round * keys_per_round + i), "v"});
      if (round > 0) changes.push_back({key((round - 1) * keys_per_round + i), std::nullopt});
    }
    state_.apply(changes);
    for (std::size_t i = 0; i < keys_per_round; i += 7) {
      ASSERT_TRUE(state_.get(key(round * keys_per_round + i)));
      for (int miss = 0; miss < 2 && round > 0; ++miss)
        ASSERT_FALSE(state_.get(key((round - 1) * keys_per_round + i)));
    }
  }
  expect_filters_of_pages_only();
  EXPECT_EQ(state_.check(), std::vector<std::string>());
}

// The filters of the replaced file do not contain the key.
TEST_P(FilterTest, probing_thread_finds_key_of_an_installed_file) {
  const TestState other(path_);
  for (int round = 1; round <= 3; ++round) {
    const std::string added = key(static_cast<std::size_t>(round));
    start_probing_filter(state_);
    EXPECT_FALSE(state_.get(added));
    const std::unique_ptr<StateBuilder> builder = other->begin_build(testing::test_uuid, "test:");
    const std::vector<Item> items{{added, "value"}};
    builder->load(items, static_cast<UpdateId>(round));
    builder->finish_load(static_cast<UpdateId>(round), 1);
    other->install(*builder);
    EXPECT_TRUE(probes_filter_first());
    EXPECT_TRUE(round % 2 == 0 ? state_->contains(added) : state_.get(added).has_value()) << added;
  }
}

TEST_P(FilterTest, check_reports_a_key_that_its_filter_excludes) {
  state_.apply({{"key", "value"}});
  EXPECT_EQ(state_.check(), std::vector<std::string>());
  write_at(first_filter(), std::string(filter_bytes, '\0'));
  const std::vector<std::string> faults = state_.check();
  ASSERT_EQ(faults.size(), 1U);
  EXPECT_TRUE(faults[0].starts_with("key missing from its filter")) << faults[0];
}

// Otherwise the allocator would give the filter to another page as well.
TEST_P(FilterTest, filter_missing_from_allocator_state_is_reported) {
  state_.apply({{"key", "value"}});
  const std::uint64_t filter = first_filter();
  const std::uint64_t used = descriptor_offset(filter / segment_bytes) +
                             offsetof(SegmentDescriptor, filters) +
                             offsetof(SegmentDescriptor::FilterCounts, in_use_bits);
  EXPECT_EQ(word_at(used) & 0xffffffff, std::uint64_t{1} << filter % segment_bytes / filter_bytes);
  write_at(used, std::string("\2\0\0\0", 4));
  const std::vector<std::string> faults = state_.check();
  ASSERT_EQ(faults.size(), 1U);
  EXPECT_TRUE(faults[0].starts_with("index filter not recorded")) << faults[0];
  testing::expect_error(
      ErrorKind::corrupt,
      [&] {
        state_.apply({{"another key", "value"}});
      },
      "index filter");
}

}  // namespace
}  // namespace whycache
