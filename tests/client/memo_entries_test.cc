// MemoEntries against a map, with hashes that collide.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/spin_lock.h"
#include "client/memo_entries.h"

namespace whycache::testing {
namespace {

using detail::MemoEntries;
using detail::MemoEntry;

std::unique_ptr<MemoEntry> entry_of(const std::string& key) {
  auto entry = std::make_unique<MemoEntry>();
  entry->key = key;
  return entry;
}

struct HashSpread {
  std::string name;
  std::uint64_t distinct_hashes = 0;  // 1: all keys collide
};

class MemoEntriesTest : public ::testing::TestWithParam<HashSpread> {};

INSTANTIATE_TEST_SUITE_P(Hashes, MemoEntriesTest,
                         ::testing::Values(HashSpread{"one", 1}, HashSpread{"few", 7},
                                           HashSpread{"slots", 64},
                                           HashSpread{"many", 0xffff'ffff'ffff}),
                         [](const auto& parameter) { return parameter.param.name; });

TEST_P(MemoEntriesTest, finds_what_a_map_finds_after_any_insertions_and_removals) {
  std::mt19937_64 random(7);
  const std::uint64_t factor = random() | 1;
  const auto hash_of = [&](int key) {
    return (static_cast<std::uint64_t>(key) * factor) % GetParam().distinct_hashes;
  };
  MemoEntries entries;
  std::map<std::string, MemoEntry*> expected;
  for (int step = 0; step < 20'000; ++step) {
    const int number = static_cast<int>(random() % 150);
    const std::string key = std::to_string(number);
    const std::uint64_t hash = hash_of(number);
    const auto known = expected.find(key);
    ASSERT_EQ(entries.find(hash, key), known == expected.end() ? nullptr : known->second) << step;
    const auto choice = random() % 8;
    if (choice == 0) {
      const std::unique_ptr<MemoEntry> taken = entries.take_unused();
      ASSERT_EQ(taken == nullptr, expected.empty());
      ASSERT_EQ(taken == nullptr ? 0U : expected.erase(taken->key), taken == nullptr ? 0U : 1U);
    } else if (choice <= 3) {
      const std::unique_ptr<MemoEntry> taken = entries.take(hash, key);
      ASSERT_EQ(taken.get(), known == expected.end() ? nullptr : known->second);
      if (known != expected.end()) expected.erase(known);
    } else if (known == expected.end()) {
      std::unique_ptr<MemoEntry> entry = entry_of(key);
      expected[key] = entry.get();
      entries.insert(hash, std::move(entry));
    }
    ASSERT_EQ(entries.size(), expected.size());
  }
}

TEST_P(MemoEntriesTest, entry_that_was_used_since_the_hand_passed_stays) {
  MemoEntries entries;
  const auto hash_of = [&](int key) {
    return static_cast<std::uint64_t>(key) % GetParam().distinct_hashes;
  };
  for (int key = 0; key < 50; ++key) entries.insert(hash_of(key), entry_of(std::to_string(key)));
  // Each was used when it was inserted; the hand goes around once.
  static_cast<void>(entries.take_unused());
  const std::string in_use = entries.find(hash_of(20), "20") != nullptr ? "20" : "21";
  while (entries.size() > 1) {
    ASSERT_NE(entries.find(hash_of(std::stoi(in_use)), in_use), nullptr);
    ASSERT_NE(entries.take_unused()->key, in_use);
  }
  ASSERT_NE(entries.find(hash_of(std::stoi(in_use)), in_use), nullptr);
}

TEST(SpinLock, sections_of_threads_exclude_each_other) {
  SpinLock lock;
  int count = 0;  // guarded by `lock`
  std::vector<std::jthread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&] {
      for (int round = 0; round < 20'000; ++round) {
        const SpinLockGuard guard(lock);
        const int before = count;
        if (round % 1'000 == 0) std::this_thread::yield();  // others find it taken
        count = before + 1;
      }
    });
  }
  threads.clear();
  EXPECT_EQ(count, 80'000);
}

}  // namespace
}  // namespace whycache::testing
