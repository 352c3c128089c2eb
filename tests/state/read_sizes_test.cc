// Reads of keys and values of many sizes, by both searches: copies into a string that is kept and
// into new ones, views, and several keys at once.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <new>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "state/index/fast_lookup_avx2.h"
#include "state/lookup_variant.h"
#include "state/test_state.h"

namespace whycache::testing {
namespace {

class OwnerOfAnOpenState final : public StateOwner {
 public:
  void before_slow_read() override {}
  void note_damage() noexcept override { ADD_FAILURE() << "a read found damage"; }
};

class ReadSizesTest : public ::testing::TestWithParam<bool> {
 protected:
  ReadSizesTest() : variant_(GetParam()) {
    state_->set_owner(owner_);
    std::vector<TestChange> changes;
    for (const std::size_t key_bytes :
         {1,  2,  3,  4,  5,   7,   8,   9,   15,  16,  17,  31,  32,  33,  47,  63,  64,
          65, 95, 96, 97, 127, 128, 129, 160, 161, 191, 192, 193, 200, 253, 254, 255, 300}) {
      for (const std::size_t value_bytes :
           {0,   1,   8,   15,  16,  63,  64,   65,   100,    127,    128,
            129, 242, 243, 250, 251, 500, 1000, 4095, 65'535, 65'536, 100'000}) {
        // Keys of one byte have to differ, too.
        if (key_bytes < 4 && value_bytes > 1000) continue;
        std::string key(key_bytes, 'k');
        key[key_bytes / 2] = static_cast<char>(changes.size() % 251);
        key[0] = static_cast<char>('A' + changes.size() / 251 * 30);
        std::string value(value_bytes, static_cast<char>('a' + changes.size() % 26));
        if (value_bytes > 1) value.back() = static_cast<char>(key_bytes);
        if (items_.emplace(key, value).second) changes.push_back({key, value});
      }
    }
    for (const auto& [key, value] : items_) keys_.push_back(key);
    std::shuffle(keys_.begin(), keys_.end(), random_);
    for (std::size_t i = 0; i < changes.size(); i += 100) {
      state_.apply(
          {changes.begin() + static_cast<std::ptrdiff_t>(i),
           changes.begin() + static_cast<std::ptrdiff_t>(std::min(i + 100, changes.size()))});
    }
  }

  // Calls with each key, and with keys that differ from it in one byte, at most 40 of them. Most of
  // these are absent.
  template <typename Use>
  void for_each_similar_key(const Use& use) {
    for (const std::string& key : keys_) {
      use(key);
      std::string other = key;
      for (std::size_t i = 0; i < key.size(); i += 1 + key.size() / 40) {
        other[i] = static_cast<char>(other[i] ^ 0x55);
        use(other);
        other[i] = key[i];
        // A thread that misses often probes the filter first, until some hits in a row.
        for (int hits = 0; hits < 5; ++hits) use(key);
      }
    }
  }
  std::optional<std::string> expected(std::string_view key) const {
    const auto found = items_.find(std::string(key));
    return found == items_.end() ? std::nullopt : std::optional(found->second);
  }

  LookupVariant variant_;
  OwnerOfAnOpenState owner_;
  TemporaryDirectory directory_;
  TestState state_{directory_.file("a.state")};
  std::mt19937_64 random_{1};
  std::map<std::string, std::string> items_;
  std::vector<std::string> keys_;
};

TEST_P(ReadSizesTest, kept_string_gets_values_of_any_size) {
  std::string kept;
  for_each_similar_key([&](const std::string& key) {
    const bool found = state_->get(key, kept);
    ASSERT_EQ(found, expected(key).has_value()) << key.size();
    if (found) {
      ASSERT_EQ(kept, expected(key)) << key.size();
      ASSERT_EQ(kept.c_str()[kept.size()], '\0');
    }
  });
}

TEST_P(ReadSizesTest, new_string_takes_at_most_twice_the_size_of_its_value) {
  for (int repetition = 0; repetition < 3; ++repetition) {
    for (const std::string& key : keys_) {
      // Twice, so that the same size is expected the third time.
      for (int i = 0; i < 3; ++i) {
        const std::optional<std::string> got = state_->get(key);
        ASSERT_EQ(got, expected(key));
        ASSERT_EQ(got->c_str()[got->size()], '\0');
        ASSERT_LE(got->capacity(), std::max<std::size_t>(15, 2 * got->size() + 1));
      }
    }
  }
  for_each_similar_key([&](const std::string& key) { ASSERT_EQ(state_->get(key), expected(key)); });
}

TEST_P(ReadSizesTest, contains_and_views_agree) {
  const View view = state_.view();
  for_each_similar_key([&](const std::string& key) {
    ASSERT_EQ(state_->contains(key), expected(key).has_value()) << key.size();
    ASSERT_EQ(view.get(key), expected(key)) << key.size();
  });
}

TEST_P(ReadSizesTest, several_keys_at_once_reuse_the_strings) {
  std::vector<std::string> similar;
  for_each_similar_key([&](const std::string& key) { similar.push_back(key); });
  std::shuffle(similar.begin(), similar.end(), random_);
  std::vector<std::optional<std::string>> values;
  for (std::size_t first = 0; first < similar.size();) {
    const std::size_t count = std::min<std::size_t>(random_() % 70, similar.size() - first);
    const std::vector<std::string_view> keys(
        similar.begin() + static_cast<std::ptrdiff_t>(first),
        similar.begin() + static_cast<std::ptrdiff_t>(first + count));
    values.resize(count);
    std::size_t present = 0;
    const std::size_t found = state_->get_multi(keys, values);
    for (std::size_t i = 0; i < count; ++i) {
      ASSERT_EQ(values[i], expected(keys[i])) << keys[i].size();
      present += values[i] ? 1 : 0;
    }
    ASSERT_EQ(found, present);
    first += count;
    if (count == 0) ++first;
  }
}

#if WHYCACHE_AVX2
[[gnu::noinline, WHYCACHE_TARGET_AVX2]] bool equal_keys_avx2(const char* a, const char* b,
                                                             std::size_t bytes) {
  const bool equal = avx2::equal_keys(a, b, bytes);
  avx2::zero_upper_vectors();
  return equal;
}
[[gnu::noinline, WHYCACHE_TARGET_AVX2]] std::uint64_t hash_avx2(const DirectoryCache& cache,
                                                                std::string_view key) {
  return avx2::hash_any_size(cache, key);
}

// A page between two that cannot be touched.
class GuardedPage {
 public:
  GuardedPage() {
    void* const mapped =
        ::mmap(nullptr, 3 * page_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<char*>(mapped);
    ::mprotect(base_, page_bytes, PROT_NONE);
    ::mprotect(base_ + 2 * page_bytes, page_bytes, PROT_NONE);
  }
  ~GuardedPage() { ::munmap(base_, 3 * page_bytes); }
  GuardedPage(const GuardedPage&) = delete;
  GuardedPage& operator=(const GuardedPage&) = delete;
  char* first() const { return base_ + page_bytes; }
  char* last(std::size_t bytes) const { return base_ + 2 * page_bytes - bytes; }

 private:
  static constexpr std::size_t page_bytes = 4096;
  char* base_;
};

// Reads of keys that are not there seldom get as far: the tag in the index differs.
TEST(KeysByAvx2, differ_by_any_byte_and_hash_as_the_others) {
  if (!has_avx2()) GTEST_SKIP() << "this processor has no AVX2";
  const DirectoryCache cache = DirectoryCache::empty(nullptr, KeyHash(12'345));
  const GuardedPage pages[2];
  std::mt19937_64 random(1);
  for (std::size_t bytes = 0; bytes <= 254; ++bytes) {
    for (const bool at_end : {false, true}) {
      char* const a = at_end ? pages[0].last(bytes) : pages[0].first();
      char* const b = at_end ? pages[1].last(bytes) : pages[1].first();
      for (std::size_t i = 0; i < bytes; ++i) a[i] = b[i] = static_cast<char>(random());
      ASSERT_TRUE(equal_keys_avx2(a, b, bytes)) << bytes;
      for (std::size_t i = 0; i < bytes; ++i) {
        for (const int bit : {1, 128}) {
          b[i] = static_cast<char>(b[i] ^ bit);
          ASSERT_FALSE(equal_keys_avx2(a, b, bytes)) << bytes << " at " << i;
          b[i] = static_cast<char>(b[i] ^ bit);
        }
      }
      ASSERT_EQ(hash_avx2(cache, {a, bytes}), cache.key_hash({a, bytes})) << bytes;
    }
  }
}
#endif

// An old version is what a view reads, and what it reads several of at once.
TEST_P(ReadSizesTest, views_read_the_values_of_their_update) {
  const View before = state_.view();
  std::vector<TestChange> changes;
  for (const std::string& key : keys_) {
    if (random_() % 2 == 0)
      changes.push_back({key, random_() % 2 == 0 ? std::nullopt : std::optional(key)});
  }
  state_.apply(changes);
  for_each_similar_key(
      [&](const std::string& key) { ASSERT_EQ(before.get(key), expected(key)) << key.size(); });
  ASSERT_EQ(TestState::contents(before), items_);

  for (const TestChange& change : changes) {
    if (change.value)
      items_[change.key] = *change.value;
    else
      items_.erase(change.key);
  }
  ASSERT_EQ(state_.contents(), items_);
  std::string kept;
  for (const std::string& key : keys_) {
    const bool found = state_->get(key, kept);
    ASSERT_EQ(found ? std::optional(kept) : std::nullopt, expected(key));
  }
}

INSTANTIATE_TEST_SUITE_P(Searches, ReadSizesTest, ::testing::Bool(), variant_name);

}  // namespace
}  // namespace whycache::testing
