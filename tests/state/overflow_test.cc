// Keys chosen so that their hashes are alike: every user who may read the file knows its seed. The
// log accepts them, so every machine must apply them, and read them, if more slowly.
#include "state/overflow.h"

#include <gtest/gtest.h>

#include <chrono>
#include <map>
#include <memory>
#include <random>
#include <set>
#include <thread>

#include "state/btree/cursor.h"
#include "state/btree/mapped_nodes.h"
#include "state/colliding_keys.h"
#include "state/lookup_variant.h"
#include "state/test_state.h"
#include "support/child_process.h"
#include "support/seed.h"

namespace whycache {
namespace {

using testing::CollidingKeys;
using testing::TestChange;
using testing::TestState;
using Contents = std::map<std::string, std::string>;
using KeyMaker = std::string (*)(const CollidingKeys&, std::uint64_t number);

struct Attack {
  const char* name;
  KeyMaker key;
};

// Attacks with one hash each.
constexpr Attack attacks[] = {
    {"hash_zero",
     [](const CollidingKeys& keys, std::uint64_t i) { return keys.with_hash_zero(i); }},
    {"tag_and_home", [](const CollidingKeys& keys,
                        std::uint64_t i) { return keys.with_tag_and_home(0xabcdef, 4093, i); }},
    {"32_bytes", [](const CollidingKeys& keys, std::uint64_t i) { return keys.with_32_bytes(i); }},
    {"1024_bytes",
     [](const CollidingKeys& keys, std::uint64_t i) {
       return keys.with_1024_bytes(static_cast<std::uint32_t>(i));
     }},
};

class OverflowTest : public ::testing::TestWithParam<bool> {
 protected:
  CollidingKeys colliding_keys() const { return CollidingKeys(testing::hash_seed_of(path_)); }

  void set_all(const std::vector<std::string>& keys, const std::string& value,
               std::size_t keys_per_update = 500) {
    for (std::size_t first = 0; first < keys.size(); first += keys_per_update) {
      std::vector<TestChange> changes;
      for (std::size_t i = first; i < std::min(keys.size(), first + keys_per_update); ++i) {
        changes.push_back({keys[i], value + std::to_string(i)});
        expected_[keys[i]] = value + std::to_string(i);
      }
      state_.apply(changes);
    }
  }
  void set_all_one_by_one(const std::vector<std::string>& keys, const std::string& value) {
    set_all(keys, value, 1);
  }
  void erase_all(const std::vector<std::string>& keys) {
    std::vector<TestChange> changes;
    for (const std::string& key : keys) {
      changes.push_back({key, std::nullopt});
      expected_.erase(key);
    }
    state_.apply(changes);
  }

  std::size_t record_count() const {
    const Mapping mapping(open_file(path_, O_RDONLY), path_, std::uint64_t{1} << 30,
                          Mapping::Access::read);
    const MappedNodes nodes(mapping);
    BTreeCursor cursor(nodes);
    std::size_t count = 0;
    for (cursor.seek(mapping.header().overflow_root.load(), {}); !cursor.at_end(); cursor.next())
      ++count;
    return count;
  }

  // Every kind of read returns what is expected.
  void expect_contents() const {
    ASSERT_EQ(state_.check(), std::vector<std::string>());
    const View view = state_.view();
    ASSERT_EQ(TestState::contents(view), expected_);
    std::vector<std::string_view> keys;
    std::string value;
    for (const auto& [key, expected] : expected_) {
      ASSERT_TRUE(state_->get(key, value));
      ASSERT_EQ(value, expected);
      ASSERT_TRUE(state_->contains(key));
      ASSERT_EQ(view.get(key), expected);
      keys.push_back(key);
    }
    std::size_t found = 0;
    state_->pin()->get_many(keys, [&](std::size_t i, const LookupResult& read) {
      ++found;
      ASSERT_EQ(read.value, expected_.at(std::string(keys[i])));
    });
    ASSERT_EQ(found, keys.size());
  }
  void expect_absent(const std::vector<std::string>& keys) const {
    const View view = state_.view();
    std::string value;
    for (const std::string& key : keys) {
      ASSERT_FALSE(state_->get(key, value));
      ASSERT_FALSE(state_->contains(key));
      ASSERT_EQ(view.get(key), std::nullopt);
    }
  }

  testing::LookupVariant variant_{GetParam()};
  testing::TemporaryDirectory directory_{"/dev/shm"};
  std::string path_ = directory_.file("crowded.state");
  TestState state_{path_};
  Contents expected_;
};

INSTANTIATE_TEST_SUITE_P(Variants, OverflowTest, ::testing::Bool(), testing::variant_name);

std::vector<std::string> make_keys(const CollidingKeys& maker, const Attack& attack,
                                   std::uint64_t count, std::uint64_t first = 0) {
  std::vector<std::string> keys;
  for (std::uint64_t i = first; i < first + count; ++i) keys.push_back(attack.key(maker, i));
  return keys;
}

TEST_P(OverflowTest, keys_of_every_attack_have_the_same_tag_and_home) {
  const CollidingKeys maker = colliding_keys();
  for (const Attack& attack : attacks) {
    std::set<std::string> keys;
    std::set<std::pair<std::uint64_t, std::uint64_t>> places;
    for (std::uint64_t i = 0; i < 10'000; i += 7) {
      keys.insert(attack.key(maker, i));
      const std::uint64_t hash = maker.hash_of(attack.key(maker, i));
      places.emplace(tag_of(hash), home_bucket(hash));
    }
    EXPECT_EQ(keys.size(), 1429U) << attack.name;
    EXPECT_EQ(places.size(), 1U) << attack.name;
  }
}

TEST_P(OverflowTest, keys_with_one_hash_are_written_read_overwritten_and_erased) {
  const CollidingKeys maker = colliding_keys();
  for (const Attack& attack : attacks) {
    SCOPED_TRACE(attack.name);
    const std::vector<std::string> keys = make_keys(maker, attack, 3'000);
    const std::vector<std::string> absent = make_keys(maker, attack, 100, 10'000);
    set_all(keys, "a");
    expect_contents();
    expect_absent(absent);
    EXPECT_GE(record_count(), 2'900U);
    const View before = state_.view();
    const Contents contents_before = expected_;

    set_all_one_by_one({keys.begin() + 30, keys.begin() + 200}, "overwritten");
    erase_all({keys.begin() + 50, keys.begin() + 100});
    expect_contents();
    expect_absent({keys.begin() + 50, keys.begin() + 100});
    set_all({keys.begin() + 60, keys.begin() + 70}, "again");
    expect_contents();
    ASSERT_EQ(TestState::contents(before), contents_before);
    for (const std::string& key : keys) ASSERT_EQ(before.get(key), contents_before.at(key));
    state_.apply({}, true);
    expected_.clear();
    expect_contents();
    expect_absent(keys);
    ASSERT_EQ(TestState::contents(before), contents_before);
  }
}

// 65 keys took a state out of service for good.
TEST_P(OverflowTest, first_key_without_room_is_read_by_other_states) {
  const TestState other(path_);
  const std::vector<std::string> keys = make_keys(colliding_keys(), attacks[0], 66);
  set_all_one_by_one(keys, "v");
  expect_contents();
  for (std::size_t i = 0; i < keys.size(); ++i) EXPECT_EQ(other.get(keys[i]), expected_[keys[i]]);
  EXPECT_EQ(record_count(), 2U);
}

TEST_P(OverflowTest, keys_find_room_in_new_pages_while_the_index_grows) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  const CollidingKeys maker = colliding_keys();
  // One home bucket, and all tags that begin with five: the pages for five are split, and each has
  // room for some.
  constexpr std::uint64_t five = std::uint64_t{5} << 60;
  std::vector<std::string> crowded;
  for (int i = 0; i < 1'000; ++i)
    crowded.push_back(maker.with_tag_and_home((five | random() >> 4) >> 40, 7, random() >> 36));
  set_all(crowded, "c");
  const std::size_t records_before = record_count();
  EXPECT_EQ(records_before, 1'000U - 64);
  std::vector<std::string> others;
  for (int i = 0; i < 80'000; ++i) others.push_back(maker.with_hash(five | random() >> 4));
  set_all(others, "o", 5'000);
  EXPECT_LT(record_count(), records_before - 100);
  expect_contents();
}

// Entries of crowded keys move when their segments are cleaned, and erased ones disappear.
TEST_P(OverflowTest, cleaned_segments_keep_crowded_keys) {
  const std::vector<std::string> keys = make_keys(colliding_keys(), attacks[2], 1'000);
  set_all(keys, std::string(1'000, 'v'));
  for (int round = 0; round < 12; ++round) {
    std::vector<std::string> some;
    for (std::size_t i = round % 3; i < keys.size(); i += 3) some.push_back(keys[i]);
    set_all(some, std::string(1'000, static_cast<char>('a' + round)), 50);
  }
  expect_contents();
  // Segments in which only marks of erased keys are live.
  for (int i = 0; i < 900; ++i) {
    state_.apply(
        {{keys[i], std::nullopt}, {"filler" + std::to_string(i), std::string(3'000, 'f')}});
    expected_.erase(keys[i]);
  }
  for (int i = 0; i < 900; ++i) state_.apply({{"filler" + std::to_string(i), std::nullopt}});
  for (int i = 0; i < 900; ++i) state_.apply({{"filler", std::string(3'000, 'f')}});
  expected_["filler"] = std::string(3'000, 'f');
  expect_contents();
  EXPECT_LT(record_count(), 200U);
}

// One update with more changes than a hash table could tell apart in time.
TEST_P(OverflowTest, update_of_colliding_keys_takes_time_in_proportion_to_their_number) {
  const CollidingKeys maker = colliding_keys();
  std::vector<std::string> keys = make_keys(maker, attacks[0], 50'000);
  for (std::size_t i = 0; i < 1'000; ++i) keys.push_back(keys[i * 7]);
  const auto began = std::chrono::steady_clock::now();
  set_all(keys, "v", keys.size());
  const auto elapsed = std::chrono::steady_clock::now() - began;
  EXPECT_LT(elapsed, std::chrono::seconds(20));
  ASSERT_EQ(state_->info().item_count, 50'000U);
  for (std::size_t i = 0; i < keys.size(); i += 97)
    ASSERT_EQ(state_.get(keys[i]), expected_[keys[i]]);
  ASSERT_EQ(state_.check(), std::vector<std::string>());
  EXPECT_LE(state_->inspect().file_bytes, std::uint64_t{30} << 20);
}

// All in one page of the directory, however often it doubles.
TEST_P(OverflowTest, keys_with_one_hash_prefix_take_memory_in_proportion_to_their_number) {
  const CollidingKeys maker = colliding_keys();
  std::vector<std::string> keys;
  for (std::uint64_t i = 0; i < 50'000; ++i)
    keys.push_back(maker.with_tag_and_home(0x123456, i % 4096, i));
  set_all(keys, "v", 10'000);
  expect_contents();
  const StateInspection inspection = state_->inspect();
  EXPECT_LE(inspection.index_global_depth, 14U);
  EXPECT_LE(inspection.file_bytes, std::uint64_t{40} << 20);
  EXPECT_GE(record_count(), 17'000U);
  // Other keys are not crowded.
  std::vector<std::string> others;
  for (int i = 0; i < 10'000; ++i) others.push_back("other key " + std::to_string(i));
  const std::size_t before = record_count();
  set_all(others, "o", 1'000);
  EXPECT_LE(record_count(), before + 10);
  erase_all(keys);
  expect_contents();
}

// The attacker knows the seed of the file that is being built, too.
TEST_P(OverflowTest, base_of_colliding_keys_is_loaded) {
  const std::unique_ptr<StateBuilder> builder = state_->begin_build(testing::test_uuid, "test:");
  const CollidingKeys maker(testing::hash_seed_of(builder->path()));
  std::set<std::string> sorted;
  for (const Attack& attack : attacks) {
    for (const std::string& key : make_keys(maker, attack, 1'000)) sorted.insert(key);
  }
  for (const std::string& key : sorted) expected_[key] = "v" + std::to_string(key.size());
  std::vector<Item> items;
  for (const auto& [key, value] : expected_) items.push_back({key, value});
  const auto middle = static_cast<std::ptrdiff_t>(items.size() / 2);
  builder->load({items.begin(), items.begin() + middle}, 10);
  builder->load({items.begin() + middle, items.end()}, 10);
  builder->finish_load(10, 1);
  EXPECT_EQ(TestState::contents(View(builder->pin())), expected_);
  state_->install(*builder);
  expect_contents();
  EXPECT_GE(record_count(), 3'500U);
  set_all({sorted.begin(), sorted.end()}, "later");
  expect_contents();
}

// A file from elsewhere is verified completely: with its overflow tree.
TEST_P(OverflowTest, copy_of_a_crowded_state_is_adopted) {
  for (const Attack& attack : attacks) set_all(make_keys(colliding_keys(), attack, 300), "v");
  const std::string copy = directory_.file("copy.state");
  ASSERT_EQ(std::system(("cp " + path_ + " " + copy).c_str()), 0);  // NOLINT(cert-env33-c)
  const TestState adopted(copy);
  EXPECT_TRUE(adopted->adopted());
  EXPECT_EQ(adopted.contents(), expected_);
  EXPECT_EQ(adopted.check(), std::vector<std::string>());
}

// Readers, with and without views, beside a writer whose keys move between the tree and pages.
TEST_P(OverflowTest, reader_beside_growing_index_never_misses_a_crowded_key) {
  SCOPED_TRACE(testing::seed_note());
  const CollidingKeys maker = colliding_keys();
  std::mt19937_64 random(testing::test_seed());
  std::vector<std::string> crowded;
  for (int i = 0; i < 1'500; ++i)
    crowded.push_back(maker.with_tag_and_home(random() >> 40, 7, random() >> 36));
  set_all(crowded, "c");
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> reads{0};
  std::atomic<std::uint64_t> misses{0};
  std::vector<std::thread> readers;
  for (int reader = 0; reader < 2; ++reader) {
    readers.emplace_back([&, reader] {
      std::string value;
      while (!stop) {
        for (std::size_t i = 0; i < crowded.size() && !stop; ++i) {
          const bool found = reader == 0 || i % 20 != 0 ? state_->get(crowded[i], value)
                                                        : state_.view().contains(crowded[i]);
          misses += found ? 0 : 1;
          ++reads;
        }
      }
    });
  }
  for (int i = 0; i < 300; ++i) {
    std::vector<TestChange> changes;
    for (int k = 0; k < 700; ++k)
      changes.push_back({"other " + std::to_string(i * 700 + k), std::string(10, 'o')});
    for (int k = 0; k < 5; ++k) changes.push_back({crowded[random() % crowded.size()], "again"});
    state_.apply(changes);
  }
  stop = true;
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(misses, 0U) << "reads=" << reads;
  EXPECT_GT(reads, 1'000U);
  EXPECT_EQ(state_.check(), std::vector<std::string>());
}

TEST(OverflowRecord, bytes_are_those_of_the_document) {
  const std::string bytes = encode({0x0102030405060708, "key", 0x123456789 * 8});
  EXPECT_EQ(bytes,
            std::string("\x01\x02\x03\x04\x05\x06\x07\x08\x00\x03key\x01\x23\x45\x67\x89", 18));
  const std::optional<OverflowRecord> record = decode_overflow_record(bytes);
  ASSERT_TRUE(record);
  EXPECT_EQ(record->hash, 0x0102030405060708U);
  EXPECT_EQ(record->key, "key");
  EXPECT_EQ(record->offset, 0x123456789U * 8);
  for (std::size_t size = 0; size < bytes.size(); ++size)
    EXPECT_FALSE(decode_overflow_record(std::string_view(bytes).substr(0, size)));
  EXPECT_FALSE(decode_overflow_record(bytes + "x"));
}

}  // namespace
}  // namespace whycache
