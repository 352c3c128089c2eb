#include "state/write/key_sort.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <vector>

#include "support/seed.h"

namespace whycache {
namespace {

// Sorts changes of these keys, in random order, and compares with the order of the keys.
void expect_sorted(KeySort& key_sort, const std::vector<std::string>& keys,
                   std::mt19937_64& random) {
  std::vector<KeyChange> changes;
  for (const std::string& key : keys) changes.push_back({key, key.back() % 2 == 0});
  std::shuffle(changes.begin(), changes.end(), random);
  key_sort.sort(changes);
  std::vector<std::string> expected = keys;
  std::sort(expected.begin(), expected.end());
  ASSERT_EQ(changes.size(), expected.size());
  for (std::size_t i = 0; i < changes.size(); ++i) {
    ASSERT_EQ(changes[i].key, expected[i]) << "place " << i;
    EXPECT_EQ(changes[i].is_insertion, expected[i].back() % 2 == 0) << "place " << i;
  }
}

// Keys of few different bytes, so that many begin alike: some with zeros at the end, which look
// like the padding of a short key.
std::string random_key(std::mt19937_64& random, std::size_t bytes_max) {
  constexpr char bytes[] = {'\0', '\1', 'a', '\x7f', '\x80', '\xff'};
  std::string key(1 + random() % bytes_max, '\0');
  for (char& byte : key) byte = bytes[random() % sizeof bytes];
  return key;
}

TEST(KeySort, random_keys_of_any_bytes_are_sorted) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  KeySort key_sort;  // one object for all rounds: nothing of a round may appear in the next
  for (int round = 0; round < 300; ++round) {
    const std::string prefix = random_key(random, 30);
    const std::size_t bytes_max = 1 + random() % 20;
    std::vector<std::string> keys;
    for (std::size_t i = random() % 400; i > 0; --i)
      keys.push_back((random() % 100 == 0 ? "" : prefix) + random_key(random, bytes_max));
    if (round % 2 == 0) keys.push_back(prefix);
    std::sort(keys.begin(), keys.end());
    keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
    expect_sorted(key_sort, keys, random);
  }
}

TEST(KeySort, numbered_keys_are_sorted) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  KeySort key_sort;
  std::vector<std::string> keys;
  for (int i = 0; i < 1000; ++i) keys.push_back("user:" + std::to_string(random() % 1'000'000'000));
  std::sort(keys.begin(), keys.end());
  keys.erase(std::unique(keys.begin(), keys.end()), keys.end());
  expect_sorted(key_sort, keys, random);
}

}  // namespace
}  // namespace whycache
