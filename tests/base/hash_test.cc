// The hashes are part of the formats. If one of these numbers changes, no existing log or state can
// be read.
#include "base/hash.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "support/seed.h"

namespace whycache {
namespace {

TEST(Hash, hash_never_changes) {
  EXPECT_EQ(hash64(""), 0x2d06800538d394c2U);
  EXPECT_EQ(hash64("whycache"), 0x8bf5fc305ef8020bU);
  EXPECT_EQ(hash64("whycache", 7), 0x3fdc774d4f42d4e0U);
  EXPECT_EQ(hash64(std::string(1000, 'x'), 7), 0xa6b046c257309584U);
}

TEST(Digest, digest_of_an_item_never_changes) {
  EXPECT_EQ(to_string(item_digest("key", "value")), "e84582f5c8fe2c1351ad8f295ea71283");
  EXPECT_EQ(to_string(item_digest("key", "")), "643fb0b5caecb864ec75ec88e4086935");
}

TEST(Digest, digest_is_independent_of_order_and_removed_items) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  std::vector<std::pair<std::string, std::string>> items;
  for (int i = 0; i < 100; ++i)
    items.emplace_back("key" + std::to_string(i), std::to_string(random()));

  Digest in_order;
  for (const auto& [key, value] : items) add(in_order, item_digest(key, value));
  std::shuffle(items.begin(), items.end(), random);
  Digest shuffled;
  add(shuffled, item_digest("removed", "later"));
  for (const auto& [key, value] : items) add(shuffled, item_digest(key, value));
  EXPECT_NE(shuffled, in_order);
  subtract(shuffled, item_digest("removed", "later"));

  EXPECT_EQ(shuffled, in_order);
}

TEST(Digest, digest_distinguishes_where_the_key_ends) {
  EXPECT_NE(item_digest("ab", "c"), item_digest("a", "bc"));
  EXPECT_NE(item_digest("a", "b"), item_digest("b", "a"));
  EXPECT_NE(item_digest("a", ""), item_digest("b", ""));
}

}  // namespace
}  // namespace whycache
