// The point index with artificial hashes. With real keys, directories this deep and files this
// large would take hours to build.
#include "state/write/point_index.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <set>

#include "state/index/lookup.h"
#include "state/test_state.h"
#include "state/write/applier.h"
#include "state/write/recovery.h"
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
    entry_ = word_offset(index().find(mapping_->hash_of("x"), "x")->load());
  }

  PointIndex& index() { return applier_->point_index(); }
  Allocator& allocator() { return applier_->allocator(); }
  unsigned global_depth() const {
    return whycache::global_depth(mapping_->header().index_directory.load());
  }

  // Looks `hash` up as a reader does.
  bool reader_finds(std::uint64_t hash) const {
    const MappedBytes bytes(*mapping_);
    const IndexWord* const page =
        find_index_page(bytes, mapping_->header().index_directory.load(), hash);
    return page != nullptr && look_up(bytes, page, hash, "x", 1).status == LookupStatus::found;
  }

  // Hashes with one home bucket and equal first `bits` bits. Pages split until the next bit
  // separates them.
  static std::vector<std::uint64_t> colliding_hashes(unsigned bits, std::uint64_t top) {
    std::vector<std::uint64_t> hashes;
    const std::uint64_t begin = bits == 0 ? 0 : top << (64 - bits);
    for (std::uint64_t i = 0; i < 65; ++i)
      hashes.push_back(begin | (i & 1) << (63 - bits) | i << 20 | 4093 << 6);
    return hashes;
  }

  TemporaryDirectory directory_{"/dev/shm"};
  std::string path_ = directory_.file("index.state");
  std::unique_ptr<Mapping> mapping_;
  std::unique_ptr<Applier> applier_;
  std::uint64_t entry_ = 0;
};

TEST_F(PointIndexTest, directory_larger_than_a_segment_is_recovered) {
  std::vector<std::uint64_t> all;
  for (const unsigned bits : {0U, 5U, 13U, 14U, 15U, 16U, 18U}) {
    for (const std::uint64_t hash :
         colliding_hashes(bits, bits == 0 ? 0 : (std::uint64_t{1} << bits) - bits)) {
      all.push_back(hash);
      index().insert(hash, entry_);
    }
    EXPECT_EQ(global_depth(), bits + 1);
    for (const std::uint64_t hash : all) {
      ASSERT_NE(index().find_offset(hash, entry_), nullptr) << bits;
      ASSERT_TRUE(reader_finds(hash)) << bits;
    }
    ASSERT_TRUE(reader_finds(mapping_->hash_of("x")));
    EXPECT_EQ(recover(allocator(), index()), 0U) << bits;
    for (const std::uint64_t hash : all)
      ASSERT_NE(index().find_offset(hash, entry_), nullptr) << bits;
  }
}

TEST_F(PointIndexTest, too_many_equal_hashes_give_error_limit) {
  const auto flood = [&] {
    for (std::uint64_t i = 0; i < 100; ++i)
      index().insert(std::uint64_t{0xabcdef} << 40 | i << 20 | 7, entry_);
  };
  testing::expect_error(ErrorKind::limit, flood);
  EXPECT_EQ(recover(allocator(), index()), 0U);
  for (std::uint64_t i = 0; i < 64; ++i)
    EXPECT_TRUE(reader_finds(std::uint64_t{0xabcdef} << 40 | i << 20 | 7));
}

// Recovery finds a page from each of its directory slots, whichever of them a dead writer had
// already changed.
TEST_F(PointIndexTest, interrupted_split_is_rolled_back_or_completed) {
  for (const std::uint64_t hash : colliding_hashes(6, 3)) index().insert(hash, entry_);  // depth 7
  std::vector<std::uint64_t> others;
  for (std::uint64_t i = 0; i < 64; ++i) others.push_back(std::uint64_t{1} << 63 | i << 30 | 99);
  for (const std::uint64_t hash : others) index().insert(hash, entry_);
  const std::uint64_t directory = index_directory_offset(mapping_->header().index_directory.load());
  auto* const slots = reinterpret_cast<IndexWord*>(mapping_->writable_base() + directory);
  const std::uint64_t count = std::uint64_t{1} << global_depth();
  const std::vector<std::uint64_t> before(reinterpret_cast<std::uint64_t*>(slots),
                                          reinterpret_cast<std::uint64_t*>(slots) + count);
  index().insert(std::uint64_t{1} << 63 | std::uint64_t{1} << 62 | 99,
                 entry_);  // splits a page of 64 slots
  const std::vector<std::uint64_t> after(reinterpret_cast<std::uint64_t*>(slots),
                                         reinterpret_cast<std::uint64_t*>(slots) + count);
  ASSERT_NE(before, after);

  for (std::uint64_t done = 0; done < count; ++done) {
    for (std::uint64_t slot = 0; slot < count; ++slot)
      slots[slot].store(slot < done ? after[slot] : before[slot]);
    ASSERT_EQ(recover(allocator(), index()), 0U) << done;
    const std::vector<std::uint64_t> recovered(reinterpret_cast<std::uint64_t*>(slots),
                                               reinterpret_cast<std::uint64_t*>(slots) + count);
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
    index().remove(*index().find_offset(hashes[i], entry_));
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
