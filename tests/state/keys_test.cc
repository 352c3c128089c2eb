#include "state/keys.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <iterator>
#include <map>
#include <random>
#include <set>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "state/key_node.h"
#include "state/memory_nodes.h"
#include "support/seed.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

using namespace std::string_literals;
using testing::expect_error;
using testing::MemoryNodes;

using Keys = std::set<std::string>;

std::vector<std::string> scan(const NodeReader& nodes, NodeOffset root) {
  std::vector<std::string> keys;
  KeysCursor cursor(nodes);
  for (cursor.seek(root, ""); !cursor.at_end(); cursor.next()) keys.emplace_back(cursor.key());
  return keys;
}

std::vector<std::string> scan_in_batches(const NodeReader& nodes, NodeOffset root, std::size_t count_max) {
  std::vector<std::string> keys;
  std::vector<std::string_view> batch;
  KeysCursor cursor(nodes);
  cursor.seek(root, "");
  while (cursor.next_batch(batch, count_max) > 0) keys.insert(keys.end(), batch.begin(), batch.end());
  EXPECT_TRUE(cursor.at_end());
  return keys;
}

// A tree, and beside it the set of keys it should hold.
class Tree {
 public:
  MemoryNodes nodes;
  NodeOffset root = 0;
  Keys keys;

  void insert(const std::string& key) {
    const NodeOffset before = root;
    root = writer_.insert(root, key);
    const bool is_new = keys.insert(key).second;
    EXPECT_TRUE(is_new || root == before) << "inserting a key that is there changed the tree";
  }
  void erase(const std::string& key) {
    const NodeOffset before = root;
    root = writer_.erase(root, key);
    const bool was_there = keys.erase(key) > 0;
    EXPECT_TRUE(was_there || root == before) << "erasing a key that is not there changed the tree";
  }
  void insert_sorted(const Keys& more) {
    root = writer_.insert_sorted(root, std::vector<std::string_view>(more.begin(), more.end()));
    keys.insert(more.begin(), more.end());
  }
  void erase_sorted(const Keys& gone) {
    root = writer_.erase_sorted(root, std::vector<std::string_view>(gone.begin(), gone.end()));
    for (const std::string& key : gone) keys.erase(key);
  }

  // A root that others look at while the writer goes on.
  struct Pinned {
    std::uint64_t version;
    NodeOffset root;
    Keys keys;
  };
  Pinned pin() { return {nodes.pin(), root, keys}; }

  KeysShape shape() const {
    return visit_nodes(nodes, root, [](NodeOffset, std::size_t) {});
  }

  // The tree shows exactly the keys, whichever way it is read.
  static void expect_keys(const NodeReader& nodes, NodeOffset root, const Keys& keys) {
    ASSERT_TRUE(std::ranges::equal(scan(nodes, root), keys));
    ASSERT_TRUE(std::ranges::equal(scan_in_batches(nodes, root, SIZE_MAX), keys));
  }

  // It consists of exactly the nodes that are neither retired nor free, and each is as large as need be.
  void expect_sound() {
    expect_keys(nodes, root, keys);
    std::map<NodeOffset, std::size_t> reached;
    const KeysShape shape = visit_nodes(nodes, root, [&](NodeOffset node, std::size_t size_class) {
      ASSERT_TRUE(reached.emplace(node, size_class).second) << "node reached twice: " << node;
    });
    ASSERT_EQ(shape.key_count, keys.size());
    ASSERT_EQ(reached, nodes.live());
    for (const auto& [offset, size_class] : reached) {
      const KeyNode node = KeyNode::root(nodes, offset);
      ASSERT_EQ(size_class, key_node_class(node.bytes())) << node.bytes();
      ASSERT_TRUE(key_node_fits(node.count(), node.bytes())) << node.count() << " keys, " << node.bytes() << " bytes";
      NodeHeader header;
      std::memcpy(&header, node.data(), sizeof header);
      ASSERT_EQ(header.next, 0xdd) << "the store's header was written";
      ASSERT_EQ(header.stamp, 0xdd) << "the store's header was written";
    }
  }

  double bytes_per_key() const { return static_cast<double>(nodes.live_bytes()) / static_cast<double>(keys.size()); }

 private:
  KeysWriter writer_{nodes};
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

// --- What a tree is ---

TEST(Keys, an_empty_tree_has_no_root_and_no_keys) {
  Tree tree;
  EXPECT_EQ(tree.root, 0u);
  EXPECT_EQ(scan(tree.nodes, 0), std::vector<std::string>());
  EXPECT_EQ(tree.shape().height, 0u);
}

TEST(Keys, come_back_in_the_order_of_their_bytes) {
  Tree tree;
  for (const std::string& key : {"b"s, "a"s, "\xff"s, "\x00"s, "a\x00"s, "ab"s, "\x7f"s, "\x80"s}) tree.insert(key);

  EXPECT_EQ(scan(tree.nodes, tree.root),
            (std::vector<std::string>{"\x00"s, "a", "a\x00"s, "ab", "b", "\x7f", "\x80", "\xff"}));
}

TEST(Keys, of_all_lengths_from_1_to_the_maximum_are_kept) {
  Tree tree;
  for (std::size_t bytes = 1; bytes <= key_bytes_max; ++bytes) tree.insert(std::string(bytes, 'x'));
  tree.expect_sound();
  for (std::size_t bytes = key_bytes_max; bytes >= 1; --bytes) tree.erase(std::string(bytes, 'x'));
  EXPECT_EQ(tree.root, 0u);
  tree.expect_sound();
}

TEST(Keys, without_a_byte_or_with_too_many_are_refused) {
  Tree tree;
  tree.insert("a");
  expect_error(ErrorKind::invalid, [&] { tree.insert(""); }, "bytes=0");
  expect_error(ErrorKind::invalid, [&] { tree.insert(std::string(key_bytes_max + 1, 'x')); }, "bytes=1025");
  expect_error(ErrorKind::invalid, [&] { tree.erase(""); }, "bytes=0");
  tree.expect_sound();
}

TEST(Keys, that_are_not_in_ascending_order_are_refused) {
  MemoryNodes nodes;
  KeysWriter writer(nodes);
  expect_error(ErrorKind::invalid, [&] { writer.insert_sorted(0, std::vector<std::string_view>{"b", "a"}); }, "index=1");
  expect_error(ErrorKind::invalid, [&] { writer.insert_sorted(0, std::vector<std::string_view>{"a", "a"}); }, "index=1");
  EXPECT_EQ(nodes.allocation_count(), 0u);
}

TEST(Keys, that_are_all_erased_leave_no_node_behind) {
  Tree tree;
  std::mt19937_64 random(1);
  for (const std::string& key : shuffled_numbers(5000, random)) tree.insert(key);
  for (const std::string& key : shuffled_numbers(5000, random)) tree.erase(key);
  EXPECT_EQ(tree.root, 0u);
  EXPECT_TRUE(tree.nodes.live().empty());
}

// --- Cursor ---

TEST(KeysCursor, seeks_the_first_key_at_or_after_the_one_given) {
  Tree tree;
  Keys keys;
  for (std::uint64_t i = 0; i < 20'000; i += 2) keys.insert(number_key(i));
  tree.insert_sorted(keys);

  KeysCursor cursor(tree.nodes);
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

TEST(KeysCursor, gives_as_many_keys_at_a_time_as_are_asked_for_and_left_in_the_leaf) {
  Tree tree;
  Keys keys;
  for (std::uint64_t i = 0; i < 1000; ++i) keys.insert(number_key(i));
  tree.insert_sorted(keys);

  for (const std::size_t count_max : {1u, 2u, 7u, 100u, 100'000u}) {
    EXPECT_TRUE(std::ranges::equal(scan_in_batches(tree.nodes, tree.root, count_max), keys)) << count_max;
  }
  KeysCursor cursor(tree.nodes);
  std::vector<std::string_view> batch;
  cursor.seek(tree.root, number_key(5));
  EXPECT_EQ(cursor.next_batch(batch, 0), 0u);
  EXPECT_EQ(cursor.next_batch(batch, 2), 2u);
  EXPECT_EQ(batch[0], number_key(5));
  EXPECT_EQ(batch[1], number_key(6));
  EXPECT_EQ(cursor.key(), number_key(7)) << "the cursor stands behind the batch";
  cursor.next();
  EXPECT_EQ(cursor.key(), number_key(8));
  EXPECT_GT(cursor.next_batch(batch), 100u);
  EXPECT_EQ(batch[0], number_key(8));
}

TEST(KeysCursor, at_the_end_stays_there) {
  Tree tree;
  tree.insert("a");
  KeysCursor cursor(tree.nodes);
  cursor.seek(tree.root, "");
  cursor.next();
  EXPECT_TRUE(cursor.at_end());
  cursor.next();
  EXPECT_TRUE(cursor.at_end());
  std::vector<std::string_view> batch{"left over"};
  EXPECT_EQ(cursor.next_batch(batch), 0u);
  EXPECT_TRUE(batch.empty());
}

// --- Against a std::set ---

enum class Shape { tiny, numbers, long_random, long_prefix, two_bytes, nested, mixed };

class KeyMaker {
 public:
  KeyMaker(Shape shape, std::mt19937_64& random) : shape_(shape), random_(random) {}

  std::string operator()() { return make(shape_); }

 private:
  std::uint64_t below(std::uint64_t end) { return random_() % end; }
  std::string bytes(std::size_t count) {
    std::string bytes;
    while (bytes.size() < count) bytes.push_back(static_cast<char>(below(256)));
    return bytes;
  }
  std::string make(Shape shape) {
    switch (shape) {
      case Shape::tiny:
        return bytes(1 + below(3));
      case Shape::numbers:
        return number_key(below(30'000));
      case Shape::long_random:
        return bytes(2) + std::string(key_bytes_max - 2 - below(200), 'x');
      case Shape::long_prefix:
        return std::string(300 + 200 * below(4), 'p') + bytes(1 + below(4));
      case Shape::two_bytes: {
        std::string key = below(2) == 0 ? "\x00"s : "\xff"s;
        for (std::size_t more = below(40); more > 0; --more) key.push_back(below(2) == 0 ? '\x00' : '\xff');
        return key;
      }
      case Shape::nested:
        return std::string(1 + below(key_bytes_max), 'n');
      case Shape::mixed:
        return make(static_cast<Shape>(below(6)));
    }
    return "?";
  }

  Shape shape_;
  std::mt19937_64& random_;
};

class KeysModel : public ::testing::TestWithParam<Shape> {
 protected:
  std::string some_key(const Tree& tree) {
    const auto at = tree.keys.lower_bound(make_key_());
    return at == tree.keys.end() ? make_key_() : *at;
  }
  Keys some_keys(const Tree& tree, bool there) {
    Keys keys;
    for (std::size_t count = 1 + random_() % (random_() % 8 == 0 ? 400 : 20); count > 0; --count) {
      keys.insert(there && random_() % 4 != 0 ? some_key(tree) : make_key_());
    }
    if (random_() % 4 == 0 && !keys.empty()) {  // a stretch of neighbours
      auto at = tree.keys.lower_bound(*keys.begin());
      for (std::size_t count = random_() % 300; count > 0 && at != tree.keys.end(); --count) keys.insert(*at++);
    }
    return keys;
  }
  void expect_seeks_right(const Tree& tree) {
    KeysCursor cursor(tree.nodes);
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

  std::mt19937_64 random_{testing::test_seed()};
  KeyMaker make_key_{GetParam(), random_};
};

TEST_P(KeysModel, a_tree_holds_what_a_set_holds_and_pinned_roots_stand_still) {
  SCOPED_TRACE(testing::seed_note());
  Tree tree;
  std::vector<Tree::Pinned> pinned;
  for (int round = 0; round < 12; ++round) {
    // The tree grows and shrinks in turns.
    const bool grows = round % 4 < 2;
    for (int step = 0; step < 600; ++step) {
      const std::uint64_t what = random_() % 100;
      if (what < 40) {
        grows ? tree.insert(make_key_()) : tree.erase(some_key(tree));
      } else if (what < 60) {
        grows ? tree.erase(some_key(tree)) : tree.insert(make_key_());
      } else if (what < 75) {
        grows ? tree.insert_sorted(some_keys(tree, false)) : tree.erase_sorted(some_keys(tree, true));
      } else if (what < 80) {
        grows ? tree.erase_sorted(some_keys(tree, true)) : tree.insert_sorted(some_keys(tree, false));
      } else if (what < 95) {
        tree.nodes.publish();
      } else if (what < 97) {
        pinned.push_back(tree.pin());
      } else if (!pinned.empty()) {
        std::swap(pinned[random_() % pinned.size()], pinned.back());
        Tree::expect_keys(tree.nodes, pinned.back().root, pinned.back().keys);
        tree.nodes.unpin(pinned.back().version);
        pinned.pop_back();
      }
      if (HasFatalFailure()) return;
    }
    expect_seeks_right(tree);
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

std::string name_of(const ::testing::TestParamInfo<Shape>& shape) {
  static constexpr const char* shapes[] = {"tiny",      "numbers", "long_random", "long_prefix",
                                           "two_bytes", "nested",  "mixed"};
  return shapes[static_cast<std::size_t>(shape.param)];
}

INSTANTIATE_TEST_SUITE_P(, KeysModel,
                         ::testing::Values(Shape::tiny, Shape::numbers, Shape::long_random, Shape::long_prefix,
                                           Shape::two_bytes, Shape::nested, Shape::mixed),
                         name_of);

}  // namespace
}  // namespace whycache
