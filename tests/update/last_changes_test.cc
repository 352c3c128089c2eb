#include "update/last_changes.h"

#include <gtest/gtest.h>

#include <map>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "base/hash.h"
#include "support/seed.h"

namespace whycache {
namespace {

std::vector<std::uint64_t> key_hashes(const std::vector<Change>& changes) {
  std::vector<std::uint64_t> hashes;
  for (const Change& change : changes) hashes.push_back(hash64(change.key));
  return hashes;
}

void expect_last_of_each_key(const LastChanges& found, const std::vector<Change>& changes) {
  std::map<std::string_view, std::size_t> last;
  for (std::size_t i = 0; i < changes.size(); ++i) last[changes[i].key] = i;
  EXPECT_EQ(found.count(), last.size());
  for (std::size_t i = 0; i < changes.size(); ++i)
    ASSERT_EQ(found.is_last(i), last[changes[i].key] == i) << "change " << i;
}

// Changes of keys that are drawn from `keys`.
std::vector<Change> random_changes(std::mt19937_64& random, const std::vector<std::string>& keys,
                                   std::size_t count) {
  std::vector<Change> changes;
  for (std::size_t i = 0; i < count; ++i) {
    const std::string& key = keys[random() % keys.size()];
    changes.push_back(random() % 4 == 0 ? Change::erase(key) : Change::set(key, "value"));
  }
  return changes;
}

std::vector<std::string> numbered_keys(std::size_t count) {
  std::vector<std::string> keys;
  for (std::size_t i = 0; i < count; ++i) keys.push_back("key " + std::to_string(i));
  return keys;
}

TEST(LastChanges, last_change_of_each_key_is_found_in_random_batches) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  LastChanges found;  // one object for all rounds: nothing of a round may appear in the next
  for (int round = 0; round < 300; ++round) {
    const std::vector<std::string> keys = numbered_keys(1 + random() % 500);
    const std::vector<Change> changes = random_changes(random, keys, random() % 500);
    found.find(changes, key_hashes(changes));
    expect_last_of_each_key(found, changes);
  }
}

TEST(LastChanges, keys_with_one_hash_are_told_apart_without_comparing_each_with_all) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  // Comparing each with all would compare 10^12 pairs, and take longer than a test may.
  const std::vector<std::string> keys = numbered_keys(1'000'000);
  const std::vector<Change> changes = random_changes(random, keys, 1'000'000);
  LastChanges found;
  found.find(changes, std::vector<std::uint64_t>(changes.size(), 7));
  expect_last_of_each_key(found, changes);
}

}  // namespace
}  // namespace whycache
