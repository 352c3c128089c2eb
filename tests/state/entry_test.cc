// Entries of every shape: narrow and wide, with and without a previous version.
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "state/file/layout.h"
#include "state/index/lookup.h"
#include "state/lookup_variant.h"
#include "state/test_state.h"

namespace whycache {
namespace {

using testing::TestState;

// A read may have found the value in the mapping of a file that was replaced meanwhile.
TEST(ValueBounds, only_a_value_within_the_mapping_is_mapped) {
  std::vector<std::byte> memory(3 * segment_bytes);
  const std::byte* const base = memory.data() + segment_bytes;
  const DirectoryCache cache = DirectoryCache::create(0, base, segment_bytes, KeyHash());
  const auto is_mapped = [&](std::int64_t offset, std::size_t bytes) {
    return is_value_mapped(cache, {reinterpret_cast<const char*>(base) + offset, bytes});
  };
  EXPECT_TRUE(is_mapped(0, segment_bytes));
  EXPECT_TRUE(is_mapped(segment_bytes - 5000, 5000));
  EXPECT_FALSE(is_mapped(segment_bytes - 5000, 5001));
  EXPECT_FALSE(is_mapped(segment_bytes + 1, 5000));
  EXPECT_FALSE(is_mapped(-5000, 5000));
  EXPECT_FALSE(is_mapped(-100, 5000));
}

TEST(EntryWord, fields_equal_those_it_was_made_from) {
  for (const UpdateId id : {UpdateId{1}, state_update_id_max}) {
    for (const bool flag : {false, true}) {
      for (const std::uint64_t key_bytes : {1, 15, 254}) {
        for (const std::uint64_t value_bytes : {0, 100, 65'535}) {
          const EntryWord word = EntryWord::narrow(id, key_bytes, value_bytes, flag);
          EXPECT_FALSE(word.is_wide());
          EXPECT_FALSE(word.erased());
          EXPECT_EQ(word.id(), id);
          EXPECT_EQ(word.narrow_has_previous(), flag);
          EXPECT_EQ(word.narrow_key_bytes(), key_bytes);
          EXPECT_EQ(word.narrow_value_bytes(), value_bytes);
          for (const std::uint64_t other_bytes : {1, 14, 15, 16, 253, 254}) {
            EXPECT_EQ(word.is_narrow_with(other_bytes), other_bytes == key_bytes)
                << other_bytes << " and " << key_bytes;
          }
          EXPECT_LE(word.word(), EntryWord::max_at(id));
          EXPECT_GT(word.word(), EntryWord::max_at(id - 1));
        }
      }
      for (const std::uint64_t key_bytes : {1, 255, 1024}) {
        const EntryWord word = EntryWord::wide(id, flag, key_bytes);
        EXPECT_TRUE(word.is_wide());
        EXPECT_EQ(word.id(), id);
        EXPECT_EQ(word.erased(), flag);
        EXPECT_EQ(word.wide_key_bytes(), key_bytes);
        for (std::uint64_t other_bytes = 0; other_bytes <= 254; ++other_bytes)
          EXPECT_FALSE(word.is_narrow_with(other_bytes));
        EXPECT_LE(word.word(), EntryWord::max_at(id));
        EXPECT_GT(word.word(), EntryWord::max_at(id - 1));
      }
    }
  }
}

// With both variants of the fast lookups.
class Entries : public ::testing::TestWithParam<bool> {
 protected:
  static std::string patterned_text(std::size_t bytes, char first) {
    std::string text(bytes, 'x');
    for (std::size_t i = 0; i < bytes; ++i) text[i] = static_cast<char>(first + i % 23);
    return text;
  }
  // Sizes on both sides of each boundary: words, narrow entries, segments.
  static std::vector<std::string> keys() {
    std::vector<std::string> all;
    for (const std::size_t bytes : {1, 7, 8, 9, 15, 16, 17, 253, 254, 255, 256, 1023, 1024})
      all.push_back(patterned_text(bytes, 'a'));
    return all;
  }
  static constexpr std::size_t value_sizes[] = {
      0, 1, 100, 127, 128, 129, 65'534, 65'535, 65'536, 262'000, 262'144, 262'200, 1'000'000};

  testing::LookupVariant variant_{GetParam()};
  testing::TemporaryDirectory directory_;
  TestState state_{directory_.file("entries.state")};
};

INSTANTIATE_TEST_SUITE_P(Variants, Entries, ::testing::Bool(), testing::variant_name);

TEST_P(Entries, entries_of_every_size_are_read_by_every_call) {
  for (const std::size_t bytes : value_sizes) {
    const std::string value = patterned_text(bytes, 'A');
    std::vector<testing::TestChange> changes;
    for (const std::string& key : keys()) changes.push_back({key, value});
    state_.apply(changes);
    const View view = state_.view();
    std::vector<std::string> all = keys();
    std::vector<std::string_view> wanted(all.begin(), all.end());
    std::size_t found = 0;
    state_->pin()->get_many(
        wanted, [&](std::size_t, const LookupResult& read) { found += read.value == value; });
    EXPECT_EQ(found, all.size()) << bytes;
    for (const std::string& key : all) {
      EXPECT_EQ(state_.get(key), value) << key.size() << ' ' << bytes;
      EXPECT_TRUE(state_->contains(key));
      EXPECT_EQ(view.get(key), value) << key.size() << ' ' << bytes;
    }
  }
  EXPECT_EQ(state_.check(), std::vector<std::string>());
}

TEST_P(Entries, erased_and_absent_keys_are_not_found) {
  std::vector<testing::TestChange> changes;
  for (const std::string& key : keys()) changes.push_back({key, "value"});
  state_.apply(changes);
  for (testing::TestChange& change : changes) change.value.reset();
  state_.apply(changes);
  const View view = state_.view();
  for (const std::string& key : keys()) {
    for (const std::string& absent :
         {key, key + "x", "x" + key.substr(1), key.substr(0, key.size() - 1) + "y"}) {
      if (absent.size() > key_bytes_max) continue;
      EXPECT_EQ(state_.get(absent), std::nullopt) << absent.size();
      EXPECT_FALSE(state_->contains(absent));
      EXPECT_EQ(view.get(absent), std::nullopt);
      EXPECT_FALSE(view.contains(absent));
    }
  }
}

TEST_P(Entries, get_replaces_a_string_of_any_size) {
  const std::string key = "fifteen bytes..";
  std::string target;
  for (const std::size_t bytes :
       {0, 1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 100, 127, 128, 129, 200}) {
    const std::string value = patterned_text(bytes, 'A');
    state_.apply({{key, value}});
    for (const std::size_t before : {bytes, std::size_t{0}, bytes + 1, std::size_t{128}, bytes}) {
      target.assign(before, '-');
      ASSERT_TRUE(state_->get(key, target));
      EXPECT_EQ(target, value) << before;
    }
  }
}

// The bitwise OR of the offsets of their two entries is the offset of bytes in a value that look
// like an entry.
TEST_P(Entries, keys_with_equal_hashes_are_distinguished) {
  const std::string key(8, '\x08');
  const std::string twin(9, '\x08');
  const std::string looks_like_an_entry = std::string("\5\0\0\0\0\0\0", 7) + key + "WRONG";
  state_.apply({{"x", ""}, {key, ""}, {twin, looks_like_an_entry}});
  const View view = state_.view();
  for (int i = 0; i < 3; ++i) {
    EXPECT_EQ(state_.get(key), "");
    EXPECT_EQ(state_.get(twin), looks_like_an_entry);
    EXPECT_EQ(view.get(key), "");
    EXPECT_EQ(view.get(twin), looks_like_an_entry);
  }
}

// Both keys get new versions repeatedly, in the same reused space.
TEST_P(Entries, keys_with_equal_hashes_are_distinguished_in_reused_space) {
  const std::string key(8, '0');
  const std::string twin(9, '0');
  const std::unique_ptr<StateWriter> writer = state_->begin_write(TestState::deadline());
  int wrong = 0;
  for (int i = 0; i < 60'000; ++i) {
    const std::string value = std::to_string(i);
    TestState::apply(*writer, {{key, value}, {twin, value + "."}});
    wrong += state_.get(key) != value || state_.get(twin) != value + ".";
  }
  EXPECT_EQ(wrong, 0);
}

TEST_P(Entries, last_change_of_a_key_in_an_update_wins) {
  state_.apply({{"old", "1"}, {"removed", "1"}});
  std::vector<testing::TestChange> changes = {
      {"old", "2"}, {"new", "1"}, {"removed", std::nullopt}, {"back", "1"}};
  changes.insert(changes.end(),
                 {{"old", "3"}, {"new", std::nullopt}, {"removed", "2"}, {"back", std::nullopt}});
  changes.push_back({"back", "2"});
  state_.apply(changes);
  EXPECT_EQ(state_.contents(),
            (std::map<std::string, std::string>{{"old", "3"}, {"removed", "2"}, {"back", "2"}}));
  EXPECT_EQ(state_.check(), std::vector<std::string>());
}

TEST_P(Entries, entries_in_an_index_of_many_pages_are_found) {
  constexpr int count = 100'000;
  std::vector<testing::TestChange> changes;
  for (int i = 0; i < count; ++i)
    changes.push_back({"user:" + std::to_string(10'000'000 + i), std::to_string(i)});
  state_.apply(changes);
  const View view = state_.view();
  int wrong = 0;
  for (int i = 0; i < count; ++i) {
    const std::string& key = changes[static_cast<std::size_t>(i)].key;
    wrong += state_.get(key) != std::to_string(i) || view.get(key) != std::to_string(i) ||
             state_->contains(key + "x");
  }
  EXPECT_EQ(wrong, 0);
}

TEST_P(Entries, views_read_previous_versions_of_every_size) {
  std::vector<std::pair<View, std::optional<std::string>>> versions;
  versions.emplace_back(state_.view(), std::nullopt);
  char first = 'A';
  for (const std::size_t bytes : value_sizes) {
    const std::string value = patterned_text(bytes, first++);
    std::vector<testing::TestChange> changes;
    for (const std::string& key : keys()) changes.push_back({key, value});
    state_.apply(changes);
    versions.emplace_back(state_.view(), value);
    if (bytes != 100 && bytes != 65'536) continue;
    for (testing::TestChange& change : changes) change.value.reset();
    state_.apply(changes);
    versions.emplace_back(state_.view(), std::nullopt);
  }
  for (const auto& [view, value] : versions) {
    for (const std::string& key : keys())
      EXPECT_EQ(view.get(key), value) << key.size() << " at " << view.id();
  }
  EXPECT_EQ(state_.check(), std::vector<std::string>());
}

}  // namespace
}  // namespace whycache
