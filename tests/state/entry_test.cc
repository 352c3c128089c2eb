// Entries of every shape: narrow and wide, with and without a version before.
#include <gtest/gtest.h>

#include <string>
#include <utility>
#include <vector>

#include "state/layout.h"
#include "state/test_state.h"

namespace whycache {
namespace {

using testing::TestState;

TEST(EntryWord, keeps_what_it_was_made_of) {
  for (const UpdateId id : {UpdateId{1}, state_update_id_max}) {
    for (const bool flag : {false, true}) {
      for (const std::uint64_t key_bytes : {1, 15, 254}) {
        for (const std::uint64_t value_bytes : {0, 100, 32'767}) {
          const EntryWord word = EntryWord::narrow(id, key_bytes, value_bytes, flag);
          EXPECT_FALSE(word.is_wide());
          EXPECT_FALSE(word.erased());
          EXPECT_EQ(word.id(), id);
          EXPECT_EQ(word.narrow_has_previous(), flag);
          EXPECT_EQ(word.narrow_key_bytes(), key_bytes);
          EXPECT_EQ(word.narrow_value_bytes(), value_bytes);
          for (const std::uint64_t asked : {1, 14, 15, 16, 253, 254}) {
            EXPECT_EQ(word.is_narrow_with(asked), asked == key_bytes) << asked << " of " << key_bytes;
          }
          EXPECT_LE(word.word(), EntryWord::greatest(id));
          EXPECT_GT(word.word(), EntryWord::greatest(id - 1));
        }
      }
      for (const std::uint64_t key_bytes : {1, 255, 1024}) {
        const EntryWord word = EntryWord::wide(id, flag, key_bytes);
        EXPECT_TRUE(word.is_wide());
        EXPECT_EQ(word.id(), id);
        EXPECT_EQ(word.erased(), flag);
        EXPECT_EQ(word.wide_key_bytes(), key_bytes);
        for (std::uint64_t asked = 0; asked <= 254; ++asked) EXPECT_FALSE(word.is_narrow_with(asked));
        EXPECT_LE(word.word(), EntryWord::greatest(id));
        EXPECT_GT(word.word(), EntryWord::greatest(id - 1));
      }
    }
  }
}

class Entries : public ::testing::Test {
 protected:
  static std::string made(std::size_t bytes, char first) {
    std::string text(bytes, 'x');
    for (std::size_t i = 0; i < bytes; ++i) text[i] = static_cast<char>(first + i % 23);
    return text;
  }
  // Sizes on both sides of every edge: of words, of narrow entries, of segments.
  static std::vector<std::string> keys() {
    std::vector<std::string> all;
    for (const std::size_t bytes : {1, 7, 8, 9, 15, 16, 17, 253, 254, 255, 256, 1023, 1024})
      all.push_back(made(bytes, 'a'));
    return all;
  }
  static constexpr std::size_t value_sizes[] = {0,      1,      100,     127,     128,     129,      32'766,
                                                32'767, 32'768, 262'000, 262'144, 262'200, 1'000'000};

  testing::TemporaryFolder folder_;
  TestState state_{folder_.file("entries.state")};
};

TEST_F(Entries, of_all_sizes_are_read_in_every_way) {
  for (const std::size_t bytes : value_sizes) {
    const std::string value = made(bytes, 'A');
    std::vector<testing::TestChange> changes;
    for (const std::string& key : keys()) changes.push_back({key, value});
    state_.apply(changes);
    const View view = state_.view();
    std::vector<std::string> all = keys();
    std::vector<std::string_view> wanted(all.begin(), all.end());
    std::size_t found = 0;
    state_->get_multi(wanted, [&](std::size_t, std::string_view one) { found += one == value; });
    EXPECT_EQ(found, all.size()) << bytes;
    for (const std::string& key : all) {
      EXPECT_EQ(state_.get(key), value) << key.size() << ' ' << bytes;
      EXPECT_TRUE(state_->contains(key));
      EXPECT_EQ(view.get(key), value) << key.size() << ' ' << bytes;
    }
  }
  EXPECT_EQ(state_.check(), std::vector<std::string>());
}

TEST_F(Entries, of_all_sizes_have_a_past) {
  std::vector<std::pair<View, std::optional<std::string>>> past;
  past.emplace_back(state_.view(), std::nullopt);
  char first = 'A';
  for (const std::size_t bytes : value_sizes) {
    const std::string value = made(bytes, first++);
    std::vector<testing::TestChange> changes;
    for (const std::string& key : keys()) changes.push_back({key, value});
    state_.apply(changes);
    past.emplace_back(state_.view(), value);
    if (bytes != 100 && bytes != 32'768) continue;
    for (testing::TestChange& change : changes) change.value.reset();
    state_.apply(changes);
    past.emplace_back(state_.view(), std::nullopt);
  }
  for (const auto& [view, value] : past) {
    for (const std::string& key : keys()) EXPECT_EQ(view.get(key), value) << key.size() << " at " << view.id();
  }
  EXPECT_EQ(state_.check(), std::vector<std::string>());
}

}  // namespace
}  // namespace whycache
