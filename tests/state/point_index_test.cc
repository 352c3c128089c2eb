// The point index with artificial hashes. With real keys, directories this deep and files this
// large would take hours to build.
#include "state/write/point_index.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <optional>
#include <random>
#include <vector>

#include "state/overflow.h"
#include "state/test_state.h"
#include "state/write/applier.h"
#include "state/write/recovery.h"
#include "support/seed.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

using testing::TemporaryDirectory;
using testing::TestState;

class PointIndexTest : public ::testing::Test {
 protected:
  PointIndexTest() {
    {
      TestState state(path_);
      state.apply({{"x", "1"}});
    }
    mapping_ = std::make_unique<Mapping>(open_file(path_, O_RDWR), path_, std::uint64_t{1} << 30,
                                         Mapping::Access::write);
    applier_ = std::make_unique<Applier>(*mapping_, Readers::none, std::uint64_t{1} << 30);
    applier_->allocator().begin_update(2);
    index().begin_update();
    entry_ = index().find(mapping_->hash_of("x"), "x")->offset;
  }

  PointIndex& index() { return applier_->point_index(); }
  Allocator& allocator() { return applier_->allocator(); }
  unsigned global_depth() const {
    return whycache::global_depth(mapping_->header().index_directory.load());
  }

  // Looks `hash` up as a reader does.
  bool reader_finds(std::uint64_t hash) {
    index().publish_overflow();
    return look_up_everywhere(*mapping_, hash, "x", 1).status == LookupStatus::found;
  }

  // As many random hashes with these first `bits` bits as fill an index page, and one more.
  std::vector<std::uint64_t> hashes_of_full_page(unsigned bits, std::uint64_t top) {
    std::vector<std::uint64_t> hashes;
    for (std::uint64_t i = 0; i <= index_page_words * 8 / 10; ++i) {
      const std::uint64_t rest = random_();
      hashes.push_back(bits == 0 ? rest : top << (64 - bits) | rest >> bits);
    }
    return hashes;
  }
  void insert(const std::vector<std::uint64_t>& hashes) {
    for (const std::uint64_t hash : hashes) index().insert(hash, entry_);
  }
  bool index_has(std::uint64_t hash) { return index().find_offset(hash, entry_).has_value(); }

  TemporaryDirectory directory_{"/dev/shm"};
  std::string path_ = directory_.file("index.state");
  std::unique_ptr<Mapping> mapping_;
  std::unique_ptr<Applier> applier_;
  std::uint64_t entry_ = 0;
  std::mt19937_64 random_{testing::test_seed()};
};

TEST_F(PointIndexTest, directory_larger_than_a_segment_is_recovered) {
  SCOPED_TRACE(testing::seed_note());
  std::vector<std::uint64_t> all;
  for (const unsigned bits : {0U, 5U, 13U, 14U, 15U, 16U, 17U, 18U}) {
    const std::vector<std::uint64_t> hashes =
        hashes_of_full_page(bits, bits == 0 ? 0 : (std::uint64_t{1} << bits) - bits);
    insert(hashes);
    all.insert(all.end(), hashes.begin(), hashes.end());
    EXPECT_EQ(global_depth(), bits + 1);
    for (const std::uint64_t hash : all) {
      ASSERT_TRUE(index_has(hash)) << bits;
      ASSERT_TRUE(reader_finds(hash)) << bits;
    }
    ASSERT_TRUE(reader_finds(mapping_->hash_of("x")));
    EXPECT_EQ(recover(allocator(), index()), 0U) << bits;
    for (const std::uint64_t hash : all) ASSERT_TRUE(index_has(hash)) << bits;
  }
  EXPECT_EQ(index().overflow_root(), 0U);
}

// An update prefetches it, so nothing else shows whether it is right.
TEST_F(PointIndexTest, likely_entry_is_that_of_the_key) {
  const std::uint64_t hash = mapping_->hash_of("x");
  EXPECT_EQ(index().likely_entry(hash), mapping_->base() + entry_);
  EXPECT_EQ(index().likely_entry(~hash), nullptr);
}

// A directory whose last doubling hardly divided a page would be doubled again for the next key.
TEST_F(PointIndexTest, hashes_with_one_prefix_do_not_double_a_large_directory) {
  SCOPED_TRACE(testing::seed_note());
  std::vector<std::uint64_t> all;
  for (int i = 0; i < 3; ++i) {
    const std::vector<std::uint64_t> hashes = hashes_of_full_page(24, 0xabcdef);
    insert(hashes);
    all.insert(all.end(), hashes.begin(), hashes.end());
  }
  EXPECT_EQ(global_depth(), small_index_directory_depth_max);
  for (const std::uint64_t hash : all) ASSERT_TRUE(reader_finds(hash));
  EXPECT_NE(index().overflow_root(), 0U);

  // The directory grows for other keys, and the full page stays.
  for (const unsigned bits : {14U, 15U, 16U}) {
    const std::vector<std::uint64_t> hashes = hashes_of_full_page(bits, 1);
    insert(hashes);
    all.insert(all.end(), hashes.begin(), hashes.end());
  }
  EXPECT_EQ(global_depth(), 17U);
  EXPECT_EQ(recover(allocator(), index()), 0U);
  for (const std::uint64_t hash : all) ASSERT_TRUE(reader_finds(hash));
}

TEST_F(PointIndexTest, hashes_with_one_tag_and_bucket_take_few_pages) {
  std::vector<std::uint64_t> hashes;
  for (std::uint64_t i = 0; i < 20'000; ++i)
    hashes.push_back(std::uint64_t{0xabcdef} << 40 | i << 20 | 7);
  insert(hashes);
  EXPECT_LE(global_depth(), 4U);
  EXPECT_LE(mapping_->header().file_bytes.load(), std::uint64_t{8} << 20);
  for (const std::uint64_t hash : hashes) ASSERT_TRUE(reader_finds(hash));
  EXPECT_EQ(recover(allocator(), index()), 0U);
  for (const std::uint64_t hash : hashes) ASSERT_TRUE(reader_finds(hash));
}

// Their keys could not be told apart by any page.
TEST_F(PointIndexTest, hashes_in_one_bucket_move_to_pages_that_have_room) {
  SCOPED_TRACE(testing::seed_note());
  std::vector<std::uint64_t> hashes;
  for (std::uint64_t i = 0; i < 2'000; ++i)
    hashes.push_back((random_() & ~std::uint64_t{0x3ffff}) | 4093 << 6);
  insert(hashes);
  EXPECT_NE(index().overflow_root(), 0U);
  EXPECT_LE(global_depth(), 4U);
  std::vector<std::uint64_t> others;
  while (global_depth() < 6) {
    others.push_back(random_());
    insert({others.back()});
  }
  for (const std::uint64_t hash : hashes) ASSERT_TRUE(reader_finds(hash));
  for (const std::uint64_t hash : others) ASSERT_TRUE(reader_finds(hash));
  std::size_t in_words = 0;
  for (const std::uint64_t hash : hashes)
    in_words += index().find_offset(hash, entry_)->word != nullptr;
  EXPECT_GT(in_words, 1'200U);  // of 1,024 words at most before
}

// Recovery finds a page from each of its directory slots, whichever of them a dead writer had
// already changed.
TEST_F(PointIndexTest, interrupted_split_is_rolled_back_or_completed) {
  SCOPED_TRACE(testing::seed_note());
  insert(hashes_of_full_page(6, 3));  // depth 7
  const std::uint64_t directory = index_directory_offset(mapping_->header().index_directory.load());
  auto* const slots = reinterpret_cast<IndexWord*>(mapping_->writable_base() + directory);
  const std::uint64_t count = std::uint64_t{1} << global_depth();
  const auto directory_words = [&] {
    return std::vector<std::uint64_t>(reinterpret_cast<std::uint64_t*>(slots),
                                      reinterpret_cast<std::uint64_t*>(slots) + count);
  };
  const std::vector<std::uint64_t> before = directory_words();
  std::vector<std::uint64_t> others;
  while (directory_words() == before) {  // until a page of 64 slots is split
    others.push_back(std::uint64_t{1} << 63 | random_() >> 1);
    index().insert(others.back(), entry_);
  }
  const std::vector<std::uint64_t> after = directory_words();
  // The last one is not in the old page.
  index().remove(*index().find_offset(others.back(), entry_), others.back());
  others.pop_back();

  for (std::uint64_t done = 0; done < count; ++done) {
    for (std::uint64_t slot = 0; slot < count; ++slot)
      slots[slot].store(slot < done ? after[slot] : before[slot]);
    ASSERT_EQ(recover(allocator(), index()), 0U) << done;
    const std::vector<std::uint64_t> recovered = directory_words();
    ASSERT_TRUE(recovered == before || recovered == after) << done;
    for (const std::uint64_t hash : others) ASSERT_TRUE(reader_finds(hash)) << done;
  }
}

TEST_F(PointIndexTest, removed_word_does_not_hide_words_after_it) {
  std::vector<std::uint64_t> hashes;
  for (std::uint64_t i = 0; i < 40; ++i)
    hashes.push_back(i << 42 | 4094);  // overflows the end of the page
  for (const std::uint64_t hash : hashes) index().insert(hash, entry_);
  for (std::size_t i = 0; i < hashes.size(); i += 2)
    index().remove(*index().find_offset(hashes[i], entry_), hashes[i]);
  for (std::size_t i = 0; i < hashes.size(); ++i)
    EXPECT_EQ(reader_finds(hashes[i]), i % 2 == 1) << i;
  for (std::size_t i = 0; i < hashes.size(); i += 2) index().insert(hashes[i], entry_);
  for (const std::uint64_t hash : hashes) EXPECT_TRUE(reader_finds(hash));
}

// The descriptors of segments from 8064 on are in a second table.
TEST(PointIndexLong, file_with_two_descriptor_tables_is_written_and_recovered) {
  const TemporaryDirectory directory("/dev/shm");
  const std::string path = directory.file("large.state");
  StateOptions options;
  options.bytes_max = std::uint64_t{3} << 30;
  TestState state(path, options);
  const std::string large(value_bytes_max - 1000, 'l');
  int count = 0;
  for (; state->inspect().file_bytes <= segments_per_table * segment_bytes; ++count)
    state.apply({{"large" + std::to_string(count), large}});
  // All small entries are behind the second table, too.
  for (int i = 0; i < 200; ++i) {
    std::vector<testing::TestChange> changes;
    for (int k = 0; k < 200; ++k)
      changes.push_back({"small" + std::to_string(i * 200 + k), std::string(100, 's')});
    state.apply(changes);
  }
  ASSERT_EQ(state.check(), std::vector<std::string>{});
  for (int i = 0; i < count; ++i)
    ASSERT_EQ(state.get("large" + std::to_string(i))->size(), large.size());

  // An update that exceeds the maximum size is rolled back.
  testing::expect_error(ErrorKind::limit, [&] {
    std::vector<testing::TestChange> changes{{"small7", "other"}, {"large0", std::nullopt}};
    for (int k = 0; k < 80; ++k) changes.push_back({"too much" + std::to_string(k), large});
    state.apply(changes);
  });
  ASSERT_EQ(state.check(), std::vector<std::string>{});
  EXPECT_EQ(state.get("small7"), std::string(100, 's'));
  for (int i = 0; i < count; ++i) state.apply({{"large" + std::to_string(i), std::nullopt}});
  for (int i = 0; i < 20; ++i) state.apply({{"large" + std::to_string(i), large}});
  EXPECT_EQ(state.check(), std::vector<std::string>{});
  EXPECT_EQ(state->info().item_count, 40'020U);
}

}  // namespace
}  // namespace whycache
