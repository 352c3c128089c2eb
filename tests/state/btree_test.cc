#include "state/btree/writer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <iterator>
#include <map>
#include <random>
#include <set>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "state/btree/check.h"
#include "state/btree/cursor.h"
#include "state/btree/node.h"
#include "state/btree/reverse_cursor.h"
#include "state/memory_nodes.h"
#include "support/seed.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

using namespace std::string_literals;
using testing::expect_error;
using testing::MemoryNodes;

using KeySet = std::set<std::string>;

std::vector<std::string> scan(const NodeReader& nodes, NodeOffset root) {
  std::vector<std::string> keys;
  BTreeCursor cursor(nodes);
  for (cursor.seek(root, ""); !cursor.at_end(); cursor.next()) keys.emplace_back(cursor.key());
  return keys;
}

std::vector<std::string> scan_in_batches(const NodeReader& nodes, NodeOffset root,
                                         std::size_t count_max) {
  std::vector<std::string> keys;
  std::vector<std::string_view> batch;
  BTreeCursor cursor(nodes);
  cursor.seek(root, "");
  while (cursor.next_batch(batch, count_max) > 0)
    keys.insert(keys.end(), batch.begin(), batch.end());
  EXPECT_TRUE(cursor.at_end());
  return keys;
}

std::vector<std::string> scan_in_reverse(const NodeReader& nodes, NodeOffset root,
                                         std::size_t count_max,
                                         const std::optional<std::string>& end = std::nullopt) {
  std::vector<std::string> keys;
  std::vector<std::string_view> batch;
  ReverseBTreeCursor cursor(nodes);
  cursor.seek_before(root, end);
  while (cursor.next_batch(batch, count_max) > 0)
    keys.insert(keys.end(), batch.begin(), batch.end());
  EXPECT_TRUE(cursor.at_end());
  return keys;
}

// A tree, and the set of keys that it should contain.
class Tree {
 public:
  MemoryNodes nodes;
  NodeOffset root = 0;
  KeySet keys;

  void insert(const std::string& key) {
    const NodeOffset before = root;
    root = writer_.insert(root, key);
    const bool is_new = keys.insert(key).second;
    EXPECT_TRUE(is_new || root == before) << "inserting a present key changed the tree";
  }
  void erase(const std::string& key) {
    const NodeOffset before = root;
    root = writer_.erase(root, key);
    const bool was_present = keys.erase(key) > 0;
    EXPECT_TRUE(was_present || root == before) << "erasing an absent key changed the tree";
  }
  void insert_sorted(const KeySet& more) {
    root = writer_.insert_sorted(root, std::vector<std::string_view>(more.begin(), more.end()));
    keys.insert(more.begin(), more.end());
  }
  void erase_sorted(KeySet erased) {  // by value: the argument may be `keys`
    root = writer_.erase_sorted(root, std::vector<std::string_view>(erased.begin(), erased.end()));
    for (const std::string& key : erased) keys.erase(key);
  }

  // A root that readers may use while the writer continues.
  struct Pinned {
    std::uint64_t version;
    NodeOffset root;
    KeySet keys;
  };
  Pinned pin() { return {nodes.pin(), root, keys}; }

  BTreeShape shape() const {
    return visit_nodes(nodes, root, [](NodeOffset, std::size_t) {});
  }

  // Expects every kind of scan to return exactly `keys`.
  static void expect_keys(const NodeReader& nodes, NodeOffset root, const KeySet& keys) {
    ASSERT_TRUE(std::ranges::equal(scan(nodes, root), keys));
    ASSERT_TRUE(std::ranges::equal(scan_in_batches(nodes, root, SIZE_MAX), keys));
  }

  // Expects the tree to contain `keys`, and to consist of exactly the live nodes, each of the
  // smallest sufficient size class.
  void expect_sound() {
    expect_keys(nodes, root, keys);
    std::map<NodeOffset, std::size_t> reached;
    const BTreeShape shape = visit_nodes(nodes, root, [&](NodeOffset node, std::size_t size_class) {
      ASSERT_TRUE(reached.emplace(node, size_class).second) << "node reached twice: " << node;
    });
    ASSERT_EQ(shape.key_count, keys.size());
    ASSERT_EQ(reached, nodes.live());
    for (const auto& [offset, size_class] : reached) {
      const BTreeNode node = BTreeNode::root(nodes, offset);
      ASSERT_EQ(size_class, btree_node_size_class(node.bytes())) << node.bytes();
      ASSERT_TRUE(btree_node_fits(node.count(), node.bytes()))
          << node.count() << " keys, " << node.bytes() << " bytes";
      NodeHeader header;
      std::memcpy(&header, node.data(), sizeof header);
      ASSERT_EQ(header.next, 0xdd) << "the store's header was written";
      ASSERT_EQ(header.stamp, 0xdd) << "the store's header was written";
    }
  }

  double bytes_per_key() const {
    return static_cast<double>(nodes.live_bytes()) / static_cast<double>(keys.size());
  }

 private:
  BTreeWriter writer_{nodes};
};

std::string number_key(std::uint64_t number) {
  char key[32];
  std::snprintf(key, sizeof key, "user:%010llu", static_cast<unsigned long long>(number));
  return key;
}

std::vector<std::string> shuffled_numbers(std::size_t count, std::mt19937_64& random) {
  std::vector<std::string> keys;
  for (std::size_t i = 0; i < count; ++i) keys.push_back(number_key(i));
  std::shuffle(keys.begin(), keys.end(), random);
  return keys;
}

// --- Keys ---

TEST(BTree, empty_tree_has_no_root_and_no_keys) {
  Tree tree;
  EXPECT_EQ(tree.root, 0u);
  EXPECT_EQ(scan(tree.nodes, 0), std::vector<std::string>());
  EXPECT_EQ(tree.shape().height, 0u);
}

TEST(BTree, scan_returns_keys_in_byte_order) {
  Tree tree;
  for (const std::string& key : {"b"s, "a"s, "\xff"s, "\x00"s, "a\x00"s, "ab"s, "\x7f"s, "\x80"s})
    tree.insert(key);

  EXPECT_EQ(scan(tree.nodes, tree.root),
            (std::vector<std::string>{"\x00"s, "a", "a\x00"s, "ab", "b", "\x7f", "\x80", "\xff"}));
}

TEST(BTree, keys_of_every_valid_length_are_stored) {
  Tree tree;
  for (std::size_t bytes = 1; bytes <= key_bytes_max; ++bytes) tree.insert(std::string(bytes, 'x'));
  tree.expect_sound();
  for (std::size_t bytes = key_bytes_max; bytes >= 1; --bytes) tree.erase(std::string(bytes, 'x'));
  EXPECT_EQ(tree.root, 0u);
  tree.expect_sound();
}

TEST(BTree, empty_or_overlong_key_is_rejected) {
  Tree tree;
  tree.insert("a");
  expect_error(
      ErrorKind::invalid, [&] { tree.insert(""); }, "bytes=0");
  expect_error(
      ErrorKind::invalid, [&] { tree.insert(std::string(tree_key_bytes_max + 1, 'x')); },
      "bytes=1040");
  expect_error(
      ErrorKind::invalid, [&] { tree.erase(""); }, "bytes=0");
  tree.expect_sound();
}

TEST(BTree, sorted_insert_of_unsorted_keys_is_rejected) {
  MemoryNodes nodes;
  BTreeWriter writer(nodes);
  expect_error(
      ErrorKind::invalid,
      [&] {
        writer.insert_sorted(0, std::vector<std::string_view>{"b", "a"});
      },
      "index=1");
  expect_error(
      ErrorKind::invalid,
      [&] {
        writer.insert_sorted(0, std::vector<std::string_view>{"a", "a"});
      },
      "index=1");
  EXPECT_EQ(nodes.allocation_count(), 0u);
}

TEST(BTree, erasing_all_keys_frees_all_nodes) {
  Tree tree;
  std::mt19937_64 random(1);
  for (const std::string& key : shuffled_numbers(5000, random)) tree.insert(key);
  for (const std::string& key : shuffled_numbers(5000, random)) tree.erase(key);
  EXPECT_EQ(tree.root, 0u);
  EXPECT_TRUE(tree.nodes.live().empty());
}

// --- Cursor ---

TEST(BTreeCursorTest, seek_finds_first_key_at_or_after_target) {
  Tree tree;
  KeySet keys;
  for (std::uint64_t i = 0; i < 20'000; i += 2) keys.insert(number_key(i));
  tree.insert_sorted(keys);

  BTreeCursor cursor(tree.nodes);
  for (std::uint64_t i = 0; i + 1 < 20'000; ++i) {
    cursor.seek(tree.root, number_key(i));
    ASSERT_FALSE(cursor.at_end());
    ASSERT_EQ(cursor.key(), number_key(i + i % 2));
  }
  cursor.seek(tree.root, number_key(19'999));
  EXPECT_TRUE(cursor.at_end());
  cursor.seek(tree.root, "a");
  EXPECT_EQ(cursor.key(), number_key(0));
  cursor.seek(tree.root, "user:");
  EXPECT_EQ(cursor.key(), number_key(0));
  cursor.seek(tree.root, std::string(2 * key_bytes_max, 'a'));
  EXPECT_EQ(cursor.key(), number_key(0));
  cursor.seek(tree.root, "z");
  EXPECT_TRUE(cursor.at_end());
}

TEST(BTreeCursorTest, next_batch_ends_at_count_max_or_leaf_end) {
  Tree tree;
  KeySet keys;
  for (std::uint64_t i = 0; i < 1000; ++i) keys.insert(number_key(i));
  tree.insert_sorted(keys);

  for (const std::size_t count_max : {1u, 2u, 7u, 100u, 100'000u}) {
    EXPECT_TRUE(std::ranges::equal(scan_in_batches(tree.nodes, tree.root, count_max), keys))
        << count_max;
  }
  BTreeCursor cursor(tree.nodes);
  std::vector<std::string_view> batch;
  cursor.seek(tree.root, number_key(5));
  EXPECT_EQ(cursor.next_batch(batch, 0), 0u);
  EXPECT_EQ(cursor.next_batch(batch, 2), 2u);
  EXPECT_EQ(batch[0], number_key(5));
  EXPECT_EQ(batch[1], number_key(6));
  EXPECT_EQ(cursor.key(), number_key(7)) << "the cursor is after the batch";
  cursor.next();
  EXPECT_EQ(cursor.key(), number_key(8));
  EXPECT_GT(cursor.next_batch(batch), 100u);
  EXPECT_EQ(batch[0], number_key(8));
}

TEST(BTreeCursorTest, next_at_the_end_stays_at_the_end) {
  Tree tree;
  tree.insert("a");
  BTreeCursor cursor(tree.nodes);
  cursor.seek(tree.root, "");
  cursor.next();
  EXPECT_TRUE(cursor.at_end());
  cursor.next();
  EXPECT_TRUE(cursor.at_end());
  std::vector<std::string_view> batch{"left over"};
  EXPECT_EQ(cursor.next_batch(batch), 0u);
  EXPECT_TRUE(batch.empty());
}

TEST(BTreeCursorTest, reverse_cursor_returns_keys_in_descending_order) {
  Tree tree;
  EXPECT_TRUE(scan_in_reverse(tree.nodes, tree.root, 10).empty());
  KeySet keys;
  for (std::uint64_t i = 0; i < 20'000; i += 2) keys.insert(number_key(i));
  tree.insert_sorted(keys);

  for (const std::size_t count_max : {1u, 7u, 100'000u}) {
    EXPECT_TRUE(std::ranges::equal(scan_in_reverse(tree.nodes, tree.root, count_max),
                                   std::vector<std::string>(keys.rbegin(), keys.rend())))
        << count_max;
  }
  ReverseBTreeCursor cursor(tree.nodes);
  std::vector<std::string_view> batch;
  for (std::uint64_t i = 1; i <= 20'000; ++i) {
    cursor.seek_before(tree.root, number_key(i));
    ASSERT_EQ(cursor.next_batch(batch, 1), 1u);
    ASSERT_EQ(batch[0], number_key(i - 1 - (i - 1) % 2));
  }
  cursor.seek_before(tree.root, number_key(0));
  EXPECT_TRUE(cursor.at_end());
  cursor.seek_before(tree.root, "a");
  EXPECT_EQ(cursor.next_batch(batch), 0u);
  cursor.seek_before(tree.root, "z");
  EXPECT_EQ(cursor.next_batch(batch, 0), 0u);
  EXPECT_EQ(cursor.next_batch(batch, 1), 1u);
  EXPECT_EQ(batch[0], number_key(19'998));
}

TEST(BTreeCursorTest, count_before_counts_from_the_current_key) {
  Tree tree;
  KeySet keys;
  for (std::uint64_t i = 0; i < 5000; i += 2) keys.insert(number_key(i));
  tree.insert_sorted(keys);
  const auto count = [&](const std::string& begin, const std::optional<std::string>& end) {
    BTreeCursor cursor(tree.nodes);
    cursor.seek(tree.root, begin);
    const std::uint64_t counted = cursor.count_before(end);
    EXPECT_TRUE(cursor.at_end());
    return counted;
  };
  EXPECT_EQ(count("", std::nullopt), 2500u);
  EXPECT_EQ(count("", number_key(5000)), 2500u);
  EXPECT_EQ(count("z", std::nullopt), 0u);
  EXPECT_EQ(count(number_key(20), number_key(10)), 0u);
  for (std::uint64_t i = 0; i < 5000; i += 37) {
    EXPECT_EQ(count(number_key(i), std::nullopt), 2500u - (i + 1) / 2);
    EXPECT_EQ(count("", number_key(i)), (i + 1) / 2);
    EXPECT_EQ(count(number_key(i), number_key(i + 3)), i % 2 == 0 ? 2u : 1u) << i;
  }
}

// --- Against a std::set ---

enum class Shape { tiny, numbers, long_random, long_prefix, two_bytes, nested, mixed };

class KeyMaker {
 public:
  KeyMaker(Shape shape, std::mt19937_64& random) : shape_(shape), random_(random) {}

  std::string operator()() { return make(shape_); }

 private:
  std::uint64_t random_below(std::uint64_t end) { return random_() % end; }
  std::string bytes(std::size_t count) {
    std::string bytes;
    while (bytes.size() < count) bytes.push_back(static_cast<char>(random_below(256)));
    return bytes;
  }
  std::string make(Shape shape) {
    switch (shape) {
      case Shape::tiny: return bytes(1 + random_below(3));
      case Shape::numbers: return number_key(random_below(30'000));
      case Shape::long_random:
        return bytes(2) + std::string(key_bytes_max - 2 - random_below(200), 'x');
      case Shape::long_prefix:
        return std::string(300 + 200 * random_below(4), 'p') + bytes(1 + random_below(4));
      case Shape::two_bytes: {
        std::string key = random_below(2) == 0 ? "\x00"s : "\xff"s;
        for (std::size_t more = random_below(40); more > 0; --more)
          key.push_back(random_below(2) == 0 ? '\x00' : '\xff');
        return key;
      }
      case Shape::nested: return std::string(1 + random_below(key_bytes_max), 'n');
      case Shape::mixed: return make(static_cast<Shape>(random_below(6)));
    }
    return "?";
  }

  Shape shape_;
  std::mt19937_64& random_;
};

class BTreeModel : public ::testing::TestWithParam<Shape> {
 protected:
  // Returns a key of the tree, most of the time.
  std::string present_key(const Tree& tree) {
    const auto found = tree.keys.lower_bound(make_key_());
    return found == tree.keys.end() ? make_key_() : *found;
  }
  KeySet random_keys(const Tree& tree, bool mostly_present) {
    KeySet keys;
    for (std::size_t count = 1 + random_() % (random_() % 8 == 0 ? 400 : 20); count > 0; --count) {
      keys.insert(mostly_present && random_() % 4 != 0 ? present_key(tree) : make_key_());
    }
    if (random_() % 4 == 0 && !keys.empty()) {  // a run of adjacent keys
      auto next = tree.keys.lower_bound(*keys.begin());
      for (std::size_t count = random_() % 300; count > 0 && next != tree.keys.end(); --count)
        keys.insert(*next++);
    }
    return keys;
  }
  void expect_seeks_match(const Tree& tree) {
    BTreeCursor cursor(tree.nodes);
    for (int i = 0; i < 20; ++i) {
      const std::string key = make_key_();
      cursor.seek(tree.root, key);
      auto expected = tree.keys.lower_bound(key);
      for (int step = 0; step < 3; ++step) {
        ASSERT_EQ(cursor.at_end(), expected == tree.keys.end());
        if (cursor.at_end()) break;
        ASSERT_EQ(cursor.key(), *expected);
        ++expected;
        cursor.next();
      }
    }
  }

  void expect_reverse_seeks_match(const Tree& tree) {
    ReverseBTreeCursor cursor(tree.nodes);
    std::vector<std::string_view> batch;
    for (int i = 0; i < 20; ++i) {
      const std::string key = make_key_();
      cursor.seek_before(tree.root, key);
      auto expected = std::make_reverse_iterator(tree.keys.lower_bound(key));
      for (int step = 0; step < 3; ++step) {
        ASSERT_EQ(cursor.at_end(), expected == tree.keys.rend());
        if (cursor.at_end()) break;
        ASSERT_EQ(cursor.next_batch(batch, 1), 1u);
        ASSERT_EQ(batch[0], *expected);
        ++expected;
      }
      BTreeCursor counting(tree.nodes);
      counting.seek(tree.root, "");
      ASSERT_EQ(counting.count_before(key),
                std::distance(tree.keys.begin(), tree.keys.lower_bound(key)));
    }
  }

  std::mt19937_64 random_{testing::test_seed()};
  KeyMaker make_key_{GetParam(), random_};
};

TEST_P(BTreeModel, tree_matches_std_set_and_pinned_roots_never_change) {
  SCOPED_TRACE(testing::seed_note());
  Tree tree;
  std::vector<Tree::Pinned> pinned;
  for (int round = 0; round < 12; ++round) {
    // The tree grows for two rounds, then shrinks for two.
    const bool grows = round % 4 < 2;
    for (int step = 0; step < 600; ++step) {
      const std::uint64_t choice = random_() % 100;
      if (choice < 40) {
        grows ? tree.insert(make_key_()) : tree.erase(present_key(tree));
      } else if (choice < 60) {
        grows ? tree.erase(present_key(tree)) : tree.insert(make_key_());
      } else if (choice < 75) {
        grows ? tree.insert_sorted(random_keys(tree, false))
              : tree.erase_sorted(random_keys(tree, true));
      } else if (choice < 80) {
        grows ? tree.erase_sorted(random_keys(tree, true))
              : tree.insert_sorted(random_keys(tree, false));
      } else if (choice < 95) {
        tree.nodes.publish();
      } else if (choice < 97) {
        pinned.push_back(tree.pin());
      } else if (!pinned.empty()) {
        std::swap(pinned[random_() % pinned.size()], pinned.back());
        Tree::expect_keys(tree.nodes, pinned.back().root, pinned.back().keys);
        tree.nodes.unpin(pinned.back().version);
        pinned.pop_back();
      }
      if (HasFatalFailure()) return;
    }
    expect_seeks_match(tree);
    expect_reverse_seeks_match(tree);
    tree.expect_sound();
    if (HasFatalFailure()) return;
  }
  tree.erase_sorted(tree.keys);
  EXPECT_EQ(tree.root, 0u);
  tree.expect_sound();
  for (const Tree::Pinned& old : pinned) {
    Tree::expect_keys(tree.nodes, old.root, old.keys);
    tree.nodes.unpin(old.version);
  }
  tree.nodes.publish();
  EXPECT_EQ(tree.nodes.retired_count(), 0u);
}

std::string shape_name(const ::testing::TestParamInfo<Shape>& shape) {
  static constexpr const char* shapes[] = {"tiny",      "numbers", "long_random", "long_prefix",
                                           "two_bytes", "nested",  "mixed"};
  return shapes[static_cast<std::size_t>(shape.param)];
}

INSTANTIATE_TEST_SUITE_P(, BTreeModel,
                         ::testing::Values(Shape::tiny, Shape::numbers, Shape::long_random,
                                           Shape::long_prefix, Shape::two_bytes, Shape::nested,
                                           Shape::mixed),
                         shape_name);

// --- Copy on write ---

// A tree of three levels, published.
class PublishedTree : public Tree {
 public:
  explicit PublishedTree(std::size_t key_count = 20'000) {
    KeySet all;
    for (std::uint64_t i = 0; i < key_count; ++i) all.insert(number_key(2 * i));
    insert_sorted(all);
    nodes.publish();
  }
};

TEST(BTreeCopyOnWrite, change_copies_only_the_path_to_its_leaf) {
  PublishedTree tree;
  const std::size_t height = tree.shape().height;
  ASSERT_EQ(height, 3u);
  const std::size_t before = tree.nodes.allocation_count();

  tree.insert(number_key(10'001));

  EXPECT_EQ(tree.nodes.allocation_count() - before, height);
  EXPECT_EQ(tree.nodes.retired_count(), height);
}

TEST(BTreeCopyOnWrite, node_copied_since_last_publish_changes_in_place) {
  PublishedTree tree;
  tree.insert(number_key(10'001));
  const NodeOffset root = tree.root;
  const std::size_t before = tree.nodes.allocation_count();

  tree.insert(number_key(10'003));
  tree.erase(number_key(10'001));

  EXPECT_EQ(tree.root, root);
  EXPECT_EQ(tree.nodes.allocation_count(), before);
  tree.expect_sound();
}

TEST(BTreeCopyOnWrite, sorted_insert_and_erase_copy_each_node_once) {
  PublishedTree tree;
  const std::size_t nodes = tree.nodes.live().size();
  const std::size_t before = tree.nodes.allocation_count();

  KeySet keys;
  for (std::uint64_t i = 1; i < 40'000; i += 500) keys.insert(number_key(i));
  tree.insert_sorted(keys);
  EXPECT_LE(tree.nodes.allocation_count() - before, nodes);
  tree.expect_sound();

  const std::size_t between = tree.nodes.allocation_count();
  tree.nodes.publish();
  tree.erase_sorted(keys);
  EXPECT_LE(tree.nodes.allocation_count() - between, nodes);
  tree.expect_sound();
}

TEST(BTreeCopyOnWrite, change_without_effect_allocates_nothing) {
  PublishedTree tree;
  const std::size_t before = tree.nodes.allocation_count();

  tree.insert(number_key(10'000));
  tree.erase(number_key(10'001));
  tree.insert_sorted({number_key(0), number_key(5'000)});
  tree.erase_sorted({number_key(1), number_key(5'001), "a", "z"});

  EXPECT_EQ(tree.nodes.allocation_count(), before);
}

TEST(BTreeCopyOnWrite, full_store_leaves_published_tree_unchanged) {
  PublishedTree tree(5'000);
  const auto live = tree.nodes.live();
  KeySet many;
  KeySet erased;
  for (std::uint64_t i = 1; i < 10'000; i += 40) many.insert(number_key(i));
  for (std::uint64_t i = 2'000; i < 8'000; i += 2) erased.insert(number_key(i));
  const std::vector<std::string_view> many_views(many.begin(), many.end());
  const std::vector<std::string_view> erased_views(erased.begin(), erased.end());

  BTreeWriter writer(tree.nodes);
  for (std::size_t allocations = 0;; ++allocations) {
    tree.nodes.allow_allocations(allocations);
    const auto error = testing::thrown_error([&] {
      NodeOffset root = writer.insert_sorted(tree.root, many_views);
      root = writer.erase_sorted(root, erased_views);
      root = writer.insert(root, "z");
      writer.erase(root, number_key(0));
    });
    tree.nodes.roll_back();
    ASSERT_EQ(tree.nodes.live(), live);
    if (allocations % 16 == 0 || !error) tree.expect_sound();
    if (!error) break;
    ASSERT_EQ(error->kind(), ErrorKind::limit);
  }
}

TEST(BTreeCopyOnWrite, failed_insert_retires_nothing) {
  PublishedTree tree;
  tree.nodes.allow_allocations(2);
  expect_error(ErrorKind::limit, [&] { tree.insert(number_key(10'001)); });
  EXPECT_EQ(tree.nodes.retired_count(), 0u);
  Tree::expect_keys(tree.nodes, tree.root, PublishedTree().keys);
}

// --- Space ---

constexpr std::size_t million = 1'000'000;

TEST(BTreeSpace, random_numbers_take_at_most_9_bytes_each) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  MemoryNodes nodes;
  BTreeWriter writer(nodes);
  NodeOffset root = 0;
  for (const std::string& key : shuffled_numbers(million, random)) root = writer.insert(root, key);

  EXPECT_LE(nodes.live_bytes(), 9 * million);
  EXPECT_LE(visit_nodes(nodes, root, [](NodeOffset, std::size_t) {}).height, 4u);
}

TEST(BTreeSpace, sorted_numbers_take_at_most_7_bytes_at_any_batch_size) {
  std::vector<std::string> keys;
  for (std::size_t i = 0; i < million; ++i) keys.push_back(number_key(i));
  const std::vector<std::string_view> views(keys.begin(), keys.end());
  for (const std::size_t batch : {million, million / 1000, std::size_t{7}, std::size_t{1}}) {
    MemoryNodes nodes;
    BTreeWriter writer(nodes);
    NodeOffset root = 0;
    for (std::size_t i = 0; i < million; i += batch) {
      root = writer.insert_sorted(root, std::span(views).subspan(i, std::min(batch, million - i)));
    }
    EXPECT_LE(nodes.live_bytes(), 7 * million) << batch << " at a time";
    EXPECT_EQ(visit_nodes(nodes, root, [](NodeOffset, std::size_t) {}).key_count, million);
  }
}

TEST(BTreeSpace, descending_inserts_fill_leaves) {
  Tree tree;
  for (std::uint64_t i = 100'000; i-- > 0;) tree.insert(number_key(i));
  EXPECT_LE(tree.bytes_per_key(), 7);
  tree.expect_sound();
}

TEST(BTreeSpace, interleaved_ascending_inserts_fill_leaves) {
  Tree tree;
  for (std::uint64_t i = 0; i < 5'000; ++i) {
    for (std::uint64_t run = 0; run < 20; ++run) tree.insert(number_key(run * 1'000'000 + i));
  }
  EXPECT_LE(tree.bytes_per_key(), 7);
  tree.expect_sound();
}

TEST(BTreeSpace, erasing_keys_at_random_frees_nodes) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  for (const bool in_batches : {false, true}) {
    Tree tree;
    std::vector<std::string> keys = shuffled_numbers(100'000, random);
    for (const std::string& key : keys) tree.insert(key);
    const std::size_t full_height = tree.shape().height;

    for (std::size_t i = 0; i < 90'000; i += 1000) {
      const KeySet erased(keys.begin() + static_cast<std::ptrdiff_t>(i),
                          keys.begin() + static_cast<std::ptrdiff_t>(i + 1000));
      if (in_batches) {
        tree.erase_sorted(erased);
      } else {
        for (const std::string& key : erased) tree.erase(key);
      }
    }
    Tree fresh;
    for (std::size_t i = 90'000; i < keys.size(); ++i) fresh.insert(keys[i]);
    EXPECT_LE(tree.nodes.live_bytes(), fresh.nodes.live_bytes() * 3 / 2);
    EXPECT_LE(tree.shape().height, full_height);
    tree.expect_sound();

    for (std::size_t i = 90'000; i < keys.size() - 100; ++i) tree.erase(keys[i]);
    EXPECT_LE(tree.shape().height, 2u);
    EXPECT_LE(tree.nodes.live_bytes(), 3 * node_bytes_of(0));
    tree.expect_sound();
  }
}

TEST(BTreeSpace, erasing_nearly_all_keys_at_once_frees_nodes) {
  PublishedTree tree(100'000);
  KeySet erased = tree.keys;
  for (std::uint64_t i = 0; i < 10; ++i) erased.erase(number_key(i * 20'000));

  tree.erase_sorted(erased);

  EXPECT_EQ(tree.keys.size(), 10u);
  EXPECT_EQ(tree.nodes.live_bytes(), node_bytes_of(0)) << "one leaf is enough";
  tree.expect_sound();
}

TEST(BTreeSpace, long_keys_take_at_most_twice_their_bytes) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  for (const std::size_t bytes : {50u, 100u, 200u, 500u, 1024u}) {
    Tree tree;
    for (int i = 0; i < 4000; ++i) {
      std::string key(bytes, ' ');
      for (char& byte : key) byte = static_cast<char>(random());
      tree.insert(key);
    }
    EXPECT_LE(tree.bytes_per_key(), 1.9 * static_cast<double>(bytes) + 10) << bytes;
    EXPECT_LE(tree.shape().height, 6u) << bytes;
  }
}

// --- Bytes ---

std::string node_contents(const NodeReader& nodes, NodeOffset offset) {
  const BTreeNode node = BTreeNode::root(nodes, offset);
  return {node.data() + sizeof(NodeHeader), node.bytes() - sizeof(NodeHeader)};
}

TEST(BTreeFormat, leaf_bytes_match_the_document) {
  Tree tree;
  tree.insert_sorted({"user:1", "user:12", "user:3"});

  EXPECT_EQ(node_contents(tree.nodes, tree.root),
            "\x00\x00\x03\x00\x05\x00\x02\x00"  // level, -, 3 keys, 5 prefix bytes, last insert
            "\x01\x00\x03\x00\x04\x00"          // ends
            "user:"
            "1"
            "12"
            "3"s);
}

TEST(BTreeFormat, inner_node_bytes_match_the_document) {
  MemoryNodes nodes;
  const NodeOffset offset = nodes.allocate_node(0);
  const std::vector<std::string_view> keys{"aa", "ab"};
  const std::vector<NodeOffset> children{0x400, 0x800, 0x12345 * 0x400};
  write_btree_node(reinterpret_cast<char*>(nodes.writable_node(offset)), 1, keys, children, 1,
                   no_key_inserted);

  EXPECT_EQ(node_contents(nodes, offset),
            "\x01\x00\x02\x00\x01\x00\xff\xff"  // level, -, 2 keys, 1 byte of prefix, -
            "\x01\x00\x02\x00"                  // ends
            "\x01\x00\x00\x00\x02\x00\x00\x00\x45\x23\x01\x00"  // children
            "a"
            "a"
            "b"s);
}

// --- Damage ---

// Reads a tree by every call. Whatever its bytes are, a call returns ascending keys or throws
// Error(corrupt).
void read_everything(const NodeReader& nodes, NodeOffset root,
                     const std::vector<std::string>& sought) {
  const auto only_corrupt = [](const auto& read) {
    try {
      read();
    } catch (const Error& error) {
      ASSERT_EQ(error.kind(), ErrorKind::corrupt) << error.what();
    }
  };
  std::string last;
  BTreeCursor cursor(nodes);
  only_corrupt([&] {
    for (cursor.seek(root, ""); !cursor.at_end(); cursor.next()) {
      ASSERT_GT(cursor.key(), last);
      last = cursor.key();
    }
  });
  ASSERT_TRUE(cursor.at_end());
  std::vector<std::string_view> batch;
  only_corrupt([&] {
    last.clear();
    cursor.seek(root, "");
    while (cursor.next_batch(batch, 5) > 0) {
      for (const std::string_view key : batch) {
        ASSERT_GT(key, last);
        last = key;
      }
    }
  });
  ASSERT_TRUE(cursor.at_end());
  ReverseBTreeCursor reverse(nodes);
  only_corrupt([&] {
    last = std::string(key_bytes_max, '\xff') + "beyond all keys";
    reverse.seek_before(root, std::nullopt);
    while (reverse.next_batch(batch, 5) > 0) {
      for (const std::string_view key : batch) {
        ASSERT_LT(key, last);
        last = key;
      }
    }
  });
  ASSERT_TRUE(reverse.at_end());
  for (const std::string& key : sought) {
    only_corrupt([&] {
      cursor.seek(root, key);
      cursor.next();
      cursor.next_batch(batch);
    });
    only_corrupt([&] {
      cursor.seek(root, "");
      cursor.count_before(key);
    });
    only_corrupt([&] {
      reverse.seek_before(root, key);
      reverse.next_batch(batch);
    });
  }
  only_corrupt([&] { visit_nodes(nodes, root, [](NodeOffset, std::size_t) {}); });
}

// Changes a tree by every call, and rolls each change back. A call may throw Error(corrupt).
void change_everything(MemoryNodes& nodes, NodeOffset root,
                       const std::vector<std::string>& sought) {
  const std::vector<std::string_view> views(sought.begin(), sought.end());
  const auto only_corrupt = [&](const auto& change) {
    try {
      BTreeWriter writer(nodes);
      change(writer);
    } catch (const Error& error) {
      ASSERT_EQ(error.kind(), ErrorKind::corrupt) << error.what();
    }
    nodes.roll_back();
  };
  only_corrupt([&](BTreeWriter& writer) { writer.insert_sorted(root, views); });
  only_corrupt([&](BTreeWriter& writer) { writer.erase_sorted(root, views); });
  only_corrupt([&](BTreeWriter& writer) {
    NodeOffset changed = root;
    for (const std::string& key : sought) {
      changed = writer.erase(changed, key);
      if (key.size() < key_bytes_max) changed = writer.insert(changed, key + "+");
    }
  });
}

class BTreeDamage : public ::testing::Test {
 protected:
  // A tree of three levels, much smaller than the writer would build it, so that each of its bytes
  // can be damaged.
  BTreeDamage() {
    std::vector<NodeOffset> inner;
    for (int i = 0; i < 3; ++i) {
      std::vector<NodeOffset> leaves;
      for (int j = 0; j < 4; ++j)
        leaves.push_back(leaf("user:" + std::string(1, digit(i)) + digit(j), i == 1 && j == 2));
      inner.push_back(node(1, {separator(i, 1), separator(i, 2), separator(i, 3)}, leaves, 6));
    }
    tree_.root = node(2, {separator(1, 0), separator(2, 0)}, inner, 5);
    tree_.nodes.publish();
    tree_.expect_sound();
    for (const std::string& key : tree_.keys) {
      if (probe_keys_.empty() || key.back() == '3') probe_keys_.push_back(key);
    }
    probe_keys_.push_back("user:22222");
    probe_keys_.push_back("z");
    std::sort(probe_keys_.begin(), probe_keys_.end());
  }

  static char digit(int number) { return static_cast<char>('0' + number); }
  static std::string separator(int i, int j) {
    return {'u', 's', 'e', 'r', ':', digit(i), digit(j)};
  }

  NodeOffset leaf(const std::string& prefix, bool with_long_key) {
    std::vector<std::string> keys{prefix, prefix + '\0', prefix + '\xff'};
    for (int i = 0; i < 5; ++i) keys.push_back(prefix + "0123456" + digit(i));
    if (with_long_key) keys.push_back(prefix + std::string(key_bytes_max - prefix.size(), 'x'));
    std::sort(keys.begin(), keys.end());
    tree_.keys.insert(keys.begin(), keys.end());
    return node(0, keys, {}, prefix.size());
  }
  NodeOffset node(unsigned level, const std::vector<std::string>& keys,
                  const std::vector<NodeOffset>& children, std::size_t prefix_bytes) {
    std::size_t suffix_bytes = 0;
    for (const std::string& key : keys) suffix_bytes += key.size() - prefix_bytes;
    const std::size_t bytes = btree_node_bytes(level, keys.size(), prefix_bytes, suffix_bytes);
    const NodeOffset offset = tree_.nodes.allocate_node(btree_node_size_class(bytes));
    write_btree_node(reinterpret_cast<char*>(tree_.nodes.writable_node(offset)), level,
                     std::vector<std::string_view>(keys.begin(), keys.end()), children,
                     prefix_bytes, 1);
    nodes_.push_back(offset);
    return offset;
  }

  std::size_t bytes_of_node(NodeOffset offset) const {
    std::size_t bytes = 0;
    tree_.nodes.node(offset, bytes);
    return bytes;
  }
  // The bytes of a node that have a meaning.
  std::size_t used_bytes_of_node(NodeOffset offset) const {
    return BTreeNode::root(tree_.nodes, offset).bytes();
  }

  void use() {
    read_everything(tree_.nodes, tree_.root, probe_keys_);
    if (!HasFatalFailure()) change_everything(tree_.nodes, tree_.root, probe_keys_);
  }

  void damage_use_and_repair(std::mt19937_64& random) {
    std::vector<std::vector<std::byte>> pristine;
    for (const NodeOffset node : nodes_) {
      const std::byte* bytes = tree_.nodes.bytes_of(node);
      pristine.emplace_back(bytes, bytes + bytes_of_node(node));
    }
    for (std::uint64_t count = 1 + random() % 8; count > 0; --count) {
      const std::size_t which = random() % nodes_.size();
      std::byte* const bytes = tree_.nodes.bytes_of(nodes_[which]);
      const std::size_t first =
          sizeof(NodeHeader) + random() % (pristine[which].size() - sizeof(NodeHeader));
      std::size_t size = 1 + random() % (random() % 4 == 0 ? 300 : 4);
      size = std::min(size, pristine[which].size() - first);
      if (random() % 3 == 0) {
        // Bytes of another node: well formed, but wrong here.
        const std::vector<std::byte>& other = pristine[random() % pristine.size()];
        std::memcpy(bytes + first, other.data() + std::min(first, other.size() - size), size);
      } else {
        for (std::size_t i = first; i < first + size; ++i)
          bytes[i] = static_cast<std::byte>(random());
      }
    }
    use();
    for (std::size_t i = 0; i < nodes_.size(); ++i) {
      std::copy(pristine[i].begin(), pristine[i].end(), tree_.nodes.bytes_of(nodes_[i]));
    }
  }

  Tree tree_;
  std::vector<std::string> probe_keys_;
  std::vector<NodeOffset> nodes_;
};

TEST_F(BTreeDamage, one_damaged_byte_gives_error_or_ascending_keys) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  for (const NodeOffset node : nodes_) {
    const std::size_t bytes = used_bytes_of_node(node);
    for (std::size_t i = offsetof(NodeHeader, size_class); i < bytes; ++i) {
      std::byte& byte = tree_.nodes.bytes_of(node)[i];
      const std::byte pristine = byte;
      for (int pattern = 0; pattern < 4; ++pattern) {
        byte = pristine ^ static_cast<std::byte>(pattern == 0   ? 1 + random() % 255
                                                 : pattern == 1 ? 0xff
                                                 : pattern == 2 ? 0x01
                                                                : 0x80);
        use();
        byte = pristine;
        ASSERT_FALSE(HasFatalFailure())
            << "node " << node << " byte " << i << " pattern " << pattern;
      }
    }
  }
  tree_.expect_sound();
}

TEST_F(BTreeDamage, many_damaged_bytes_give_error_or_ascending_keys) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  for (int round = 0; round < 5000; ++round) {
    damage_use_and_repair(random);
    ASSERT_FALSE(HasFatalFailure()) << "round " << round;
  }
  tree_.expect_sound();
}

TEST_F(BTreeDamage, damaged_grown_tree_gives_error_or_ascending_keys) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  KeyMaker make_key(Shape::mixed, random);
  while (tree_.keys.size() < 1500) tree_.insert(make_key());
  tree_.nodes.publish();
  nodes_.clear();
  for (const auto& [offset, size_class] : tree_.nodes.live()) nodes_.push_back(offset);
  for (int i = 0; i < 30; ++i) probe_keys_.push_back(make_key());
  std::sort(probe_keys_.begin(), probe_keys_.end());
  probe_keys_.erase(std::unique(probe_keys_.begin(), probe_keys_.end()), probe_keys_.end());

  for (int round = 0; round < 300; ++round) {
    damage_use_and_repair(random);
    ASSERT_FALSE(HasFatalFailure()) << "round " << round;
  }
  tree_.expect_sound();
}

TEST_F(BTreeDamage, wrong_child_offset_gives_error_corrupt) {
  for (const NodeOffset node : nodes_) {
    const BTreeNode inner = BTreeNode::root(tree_.nodes, node);
    if (inner.is_leaf()) continue;
    for (unsigned i = 0; i <= inner.count(); ++i) {
      char* const field = reinterpret_cast<char*>(tree_.nodes.bytes_of(node)) +
                          inner.children_offset() + i * sizeof(ChildNumber);
      const auto pristine = load_little_endian<ChildNumber>(field);
      // No node, the node itself, its parent, another child, another level.
      std::vector<NodeOffset> wrong{0, child_unit_bytes * 1'000'000, UINT32_MAX * child_unit_bytes};
      wrong.insert(wrong.end(), nodes_.begin(), nodes_.end());
      for (const NodeOffset child : wrong) {
        if (child / child_unit_bytes == pristine) continue;
        store_little_endian(field, static_cast<ChildNumber>(child / child_unit_bytes));
        expect_error(ErrorKind::corrupt,
                     [&] { visit_nodes(tree_.nodes, tree_.root, [](NodeOffset, std::size_t) {}); });
        expect_error(ErrorKind::corrupt, [&] { scan(tree_.nodes, tree_.root); });
        use();
        ASSERT_FALSE(HasFatalFailure()) << "node " << node << " child " << i << " offset " << child;
      }
      store_little_endian(field, pristine);
    }
  }
  tree_.expect_sound();
}

// A tree of the maximum height in which every node has the same child forty times. A walk to its
// end would take forever.
TEST(DamagedBTree, exponential_walk_is_abandoned_immediately) {
  MemoryNodes nodes;
  std::vector<std::string> separators;
  for (int i = 0; i < 40; ++i) separators.push_back(number_key(static_cast<std::uint64_t>(i)));
  const std::vector<std::string_view> keys(separators.begin(), separators.end());
  NodeOffset node = nodes.allocate_node(0);
  write_btree_node(reinterpret_cast<char*>(nodes.writable_node(node)), 0, keys, {}, 0,
                   no_key_inserted);
  for (unsigned level = 1; level <= btree_level_max; ++level) {
    const std::vector<NodeOffset> children(keys.size() + 1, node);
    node = nodes.allocate_node(0);
    write_btree_node(reinterpret_cast<char*>(nodes.writable_node(node)), level, keys, children, 5,
                     no_key_inserted);
  }
  nodes.publish();

  expect_error(
      ErrorKind::corrupt, [&] { scan(nodes, node); }, "keys out of order");
  expect_error(
      ErrorKind::corrupt, [&] { scan_in_batches(nodes, node, 3); }, "keys out of order");
  expect_error(
      ErrorKind::corrupt, [&] { scan_in_reverse(nodes, node, 3); }, "keys out of order");
  expect_error(
      ErrorKind::corrupt,
      [&] {
        BTreeCursor cursor(nodes);
        cursor.seek(node, "");
        cursor.count_before(std::nullopt);
      },
      "keys out of order");
  expect_error(ErrorKind::corrupt,
               [&] { visit_nodes(nodes, node, [](NodeOffset, std::size_t) {}); });
  change_everything(nodes, node, separators);
}

// A root whose only child is the root itself.
TEST(DamagedBTree, root_that_is_its_own_child_gives_error_corrupt) {
  MemoryNodes nodes;
  const NodeOffset node = nodes.allocate_node(0);
  write_btree_node(reinterpret_cast<char*>(nodes.writable_node(node)), 1, {}, std::vector{node}, 0,
                   no_key_inserted);
  nodes.publish();

  expect_error(
      ErrorKind::corrupt, [&] { scan(nodes, node); }, "a wrong level",
      "offset=" + std::to_string(node));
  change_everything(nodes, node, {"a", "b"});
}

}  // namespace
}  // namespace whycache
