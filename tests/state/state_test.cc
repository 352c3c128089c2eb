#include "state/state.h"

#include <gtest/gtest.h>

#include <random>
#include <string>
#include <thread>
#include <vector>

#include "base/hash.h"
#include "state/test_state.h"
#include "support/seed.h"
#include "support/thrown_error.h"

namespace whycache {
namespace {

using testing::TemporaryDirectory;
using testing::TestChange;
using testing::TestState;

class StateTest : public ::testing::Test {
 protected:
  std::string path(const std::string& name = "a.state") const {
    return directory_.path() + "/" + name;
  }
  TemporaryDirectory directory_;
};

TEST_F(StateTest, new_state_is_empty_at_update_0) {
  const TestState state(path());

  EXPECT_EQ(state->applied_id(), 0U);
  EXPECT_EQ(state.get("a"), std::nullopt);
  EXPECT_TRUE(state.contents().empty());
  EXPECT_EQ(state->info().digest, Digest{});
  EXPECT_EQ(state.check(), std::vector<std::string>{});
}

TEST_F(StateTest, applied_values_are_read) {
  TestState state(path());

  EXPECT_EQ(
      state.apply({{"a", "1"}, {"b", ""}, {std::string(1024, 'k'), std::string(100'000, 'v')}}),
      1U);

  EXPECT_EQ(state.get("a"), "1");
  EXPECT_EQ(state.get("b"), "");
  EXPECT_EQ(state.get(std::string(1024, 'k')), std::string(100'000, 'v'));
  EXPECT_EQ(state.get("c"), std::nullopt);
  EXPECT_EQ(state->info().item_count, 3U);
  EXPECT_EQ(state.check(), std::vector<std::string>{});
}

TEST_F(StateTest, erased_key_is_absent_and_can_be_set_again) {
  TestState state(path());
  state.apply({{"a", "1"}});
  state.apply({{"a", std::nullopt}, {"never set", std::nullopt}});
  EXPECT_EQ(state.get("a"), std::nullopt);
  EXPECT_EQ(state->info().item_count, 0U);

  state.apply({{"a", "2"}});

  EXPECT_EQ(state.get("a"), "2");
  EXPECT_EQ(state->info().item_count, 1U);
  EXPECT_EQ(state.check(), std::vector<std::string>{});
}

TEST_F(StateTest, last_change_of_a_key_in_an_update_wins) {
  TestState state(path());
  state.apply({{"a", "old"}});
  const View before = state.view();

  state.apply({{"a", "1"},
               {"a", std::nullopt},
               {"a", "2"},
               {"b", "1"},
               {"b", std::nullopt},
               {"c", std::nullopt},
               {"c", "3"}});

  EXPECT_EQ(state.contents(), (std::map<std::string, std::string>{{"a", "2"}, {"c", "3"}}));
  EXPECT_EQ(TestState::contents(before), (std::map<std::string, std::string>{{"a", "old"}}));
  EXPECT_EQ(state.check(), std::vector<std::string>{});
}

TEST_F(StateTest, view_does_not_change_while_updates_are_applied) {
  TestState state(path());
  state.apply({{"a", "1"}, {"b", "1"}});
  const View before = state.view();

  state.apply({{"a", "2"}, {"b", std::nullopt}, {"c", "2"}});

  EXPECT_EQ(before.get("a"), "1");
  EXPECT_EQ(before.get("b"), "1");
  EXPECT_EQ(before.get("c"), std::nullopt);
  EXPECT_EQ(TestState::contents(before),
            (std::map<std::string, std::string>{{"a", "1"}, {"b", "1"}}));
  EXPECT_EQ(before.size(), 2U);
  EXPECT_EQ(state.contents(), (std::map<std::string, std::string>{{"a", "2"}, {"c", "2"}}));
}

TEST_F(StateTest, update_that_erases_all_keeps_its_own_changes) {
  TestState state(path());
  for (int i = 0; i < 1000; ++i) state.apply({{"key" + std::to_string(i), std::to_string(i)}});
  const View before = state.view();

  state.apply({{"key5", "again"}, {"new", "1"}}, true);

  EXPECT_EQ(state.contents(),
            (std::map<std::string, std::string>{{"key5", "again"}, {"new", "1"}}));
  EXPECT_EQ(before.size(), 1000U);
  EXPECT_EQ(TestState::contents(before).size(), 1000U);
  EXPECT_EQ(state.check(), std::vector<std::string>{});
}

TEST_F(StateTest, reopened_state_keeps_its_contents) {
  { TestState(path()).apply({{"a", "1"}}); }

  const TestState state(path());

  EXPECT_EQ(state.get("a"), "1");
  EXPECT_EQ(state->applied_id(), 1U);
}

TEST_F(StateTest, two_states_of_one_file_see_each_others_updates) {
  TestState first(path());
  TestState second(path());

  first.apply({{"a", "1"}});
  second.apply({{"b", "2"}});

  EXPECT_EQ(first.get("b"), "2");
  EXPECT_EQ(second.get("a"), "1");
}

TEST_F(StateTest, space_of_values_larger_than_a_segment_is_reused) {
  TestState state(path());
  for (int round = 0; round < 20; ++round) {
    state.apply({{"large", std::string(3'000'000 + round, static_cast<char>('a' + round))},
                 {"small", std::to_string(round)}});
    EXPECT_EQ(state.get("large"), std::string(3'000'000 + round, static_cast<char>('a' + round)));
  }
  EXPECT_EQ(state.check(), std::vector<std::string>{});
  EXPECT_LT(state->inspect().file_bytes, 20'000'000U);
}

TEST_F(StateTest, space_of_overwritten_values_is_reused) {
  TestState state(path());
  std::mt19937_64 random(testing::test_seed());
  SCOPED_TRACE(testing::seed_note());
  std::uint64_t settled = 0;
  for (int round = 0; round < 60; ++round) {
    const auto writer = state->begin_write(TestState::deadline());
    for (int update = 0; update < 20; ++update) {
      std::vector<TestChange> changes;
      for (int i = 0; i < 500; ++i)
        changes.push_back({"key" + std::to_string(random() % 20'000), std::string(100, 'v')});
      TestState::apply(*writer, changes);
    }
    if (round == 20) settled = state->inspect().file_bytes;
  }
  EXPECT_LE(state->inspect().file_bytes, settled * 5 / 4);
  EXPECT_LT(state->inspect().file_bytes, 20'000U * 170 * 2);
  EXPECT_EQ(state.check(), std::vector<std::string>{});
}

// Random updates are compared with a std::map, while views are held and the state is reopened at
// intervals.
TEST_F(StateTest, random_updates_match_a_std_map) {
  std::mt19937_64 random(testing::test_seed());
  SCOPED_TRACE(testing::seed_note());
  auto state = std::make_unique<TestState>(path());
  std::map<std::string, std::string> model;
  struct Held {
    View view;
    std::map<std::string, std::string> model;
  };
  std::vector<Held> held;
  const auto random_key = [&] {
    switch (random() % 4) {
      case 0: return "k" + std::to_string(random() % 50);
      case 1: return std::string(1 + random() % 40, static_cast<char>('a' + random() % 3));
      case 2: return "user:" + std::to_string(random() % 5000);
      default: return std::string(random() % 200 + 1, static_cast<char>(random() % 256));
    }
  };
  for (int step = 0; step < 3000; ++step) {
    std::vector<TestChange> changes;
    const bool erases_all = random() % 500 == 0;
    if (erases_all) model.clear();
    for (std::uint64_t i = 0, count = random() % 30; i < count; ++i) {
      TestChange change{random_key(), std::nullopt};
      if (random() % 3 != 0)
        change.value = std::string(random() % 20 == 0 ? random() % 20'000 : random() % 100,
                                   static_cast<char>('A' + random() % 26));
      if (change.value) {
        model[change.key] = *change.value;
      } else {
        model.erase(change.key);
      }
      changes.push_back(change);
    }
    state->apply(changes, erases_all);
    if (random() % 50 == 0) held.push_back({state->view(), model});
    if (held.size() > 5)
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(random() % held.size()));
    for (int i = 0; i < 5; ++i) {
      const std::string key = random_key();
      const auto expected = model.find(key);
      ASSERT_EQ(state->get(key),
                expected == model.end() ? std::nullopt : std::optional(expected->second));
    }
    if (step % 100 == 0) {
      ASSERT_EQ(state->contents(), model);
      for (const Held& old : held) ASSERT_EQ(TestState::contents(old.view), old.model);
      Digest digest;
      for (const auto& [key, value] : model) add(digest, item_digest(key, value));
      ASSERT_EQ((*state)->info().digest, digest);
      ASSERT_EQ((*state)->info().item_count, model.size());
    }
    if (step % 500 == 250) {
      ASSERT_EQ(state->check(), std::vector<std::string>{});
    }
    if (step % 700 == 650) {
      held.clear();
      state.reset();
      state = std::make_unique<TestState>(path());
    }
  }
}

// A buffer that a string holds.
struct StringBuffer : ValueBuffer {
  StringBuffer() {
    bytes_max = 1000;
    resize = [](ValueBuffer& buffer, std::size_t wanted) {
      auto& self = static_cast<StringBuffer&>(buffer);
      if (self.fails) return false;
      self.text.resize(wanted);
      self.data = self.text.data();
      self.bytes = wanted;
      return true;
    };
  }

  std::string text;
  bool fails = false;
};

class CountingOwner final : public StateOwner {
 public:
  void before_slow_read() override {
    ++slow_reads;
    if (refuses) throw Error(ErrorKind::invalid, "refused by the owner");
  }
  void note_damage() noexcept override {}

  int slow_reads = 0;
  bool refuses = false;
};

TEST_F(StateTest, owner_is_asked_before_every_read_while_fast_reads_are_disabled) {
  TestState state(path());
  CountingOwner owner;
  state->set_owner(owner);
  state.apply({{"checkout.on", "1"}});
  std::string value;
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(state->get("checkout.on", value));
  EXPECT_LE(owner.slow_reads, 1) << "the first read may find the file grown";

  state->enable_fast_reads(false);
  for (int i = 1; i <= 3; ++i) {
    owner.slow_reads = 0;
    // Neither what a slow read learns nor another file may enable them again.
    EXPECT_TRUE(state->get("checkout.on", value));
    EXPECT_FALSE(state->get("checkout.off", value));
    EXPECT_TRUE(state->contains("checkout.on"));
    EXPECT_EQ(owner.slow_reads, 3);
    EntryVersion version;
    EXPECT_EQ(state->try_find_version("checkout.on", version), std::nullopt);
    EXPECT_NE(state->pin()->find("checkout.on").data(), nullptr);
    EXPECT_EQ(owner.slow_reads, 3) << "these ask nobody";
    state->install(*state->begin_build(testing::test_uuid, "test:"));
    state.apply({{"checkout.on", "1"}});
  }
  owner.refuses = true;
  testing::expect_error(
      ErrorKind::invalid, [&] { state->get("checkout.on", value); }, "refused by the owner");

  state->enable_fast_reads(true);
  owner.slow_reads = 0;
  owner.refuses = false;
  for (int i = 0; i < 3; ++i) EXPECT_TRUE(state->get("checkout.on", value));
  EXPECT_LE(owner.slow_reads, 1);
}

TEST_F(StateTest, try_get_copies_values_of_any_size_into_buffer) {
  TestState state(path());
  std::vector<TestChange> changes;
  for (const std::size_t bytes : {0, 1, 15, 16, 100, 128, 129, 1000})
    changes.push_back({"a key of " + std::to_string(bytes), std::string(bytes, 'v')});
  state.apply(changes);
  std::string registers_this_thread;
  state->get("a", registers_this_thread);

  StringBuffer buffer;
  for (int round = 0; round < 2; ++round) {
    for (const TestChange& change : changes) {
      EXPECT_TRUE(state->try_get(change.key, buffer)) << change.key;
      EXPECT_EQ(std::string_view(buffer.data, buffer.bytes), *change.value);
    }
  }
  EXPECT_FALSE(state->try_get("an absent key", buffer));
  EXPECT_FALSE(buffer.is_undecided);
}

// With so many keys, a twentieth of the buckets is full: the fast path leaves its misses undecided.
TEST_F(StateTest, try_reads_decide_every_key_of_large_state) {
  constexpr int keys = 50'000;
  const auto key_of = [](int i) { return "key-of-state-" + std::to_string(i); };
  TestState state(path());
  std::vector<TestChange> changes;
  for (int i = 0; i < keys; ++i) changes.push_back({key_of(i), "value " + std::to_string(i)});
  state.apply(changes);
  std::string value;
  state->get("registers this thread", value);
  state->get(key_of(0), value);

  for (int i = 0; i < 2 * keys; ++i) {
    const bool is_present = i < keys;
    StringBuffer buffer;
    ASSERT_EQ(state->try_get(key_of(i), buffer), is_present) << key_of(i);
    ASSERT_FALSE(buffer.is_undecided) << key_of(i);
    if (is_present) {
      ASSERT_EQ(std::string_view(buffer.data, buffer.bytes), "value " + std::to_string(i));
    }
    EntryVersion version;
    ASSERT_EQ(state->try_find_version(key_of(i), version), is_present) << key_of(i);
    ASSERT_EQ(version.version, is_present ? 1U : 0U) << key_of(i);
  }
}

TEST_F(StateTest, try_reads_decide_keys_and_values_that_are_long) {
  TestState state(path());
  const std::string long_key(255, 'k');
  state.apply({{"a key of a state", std::string(65'536, 'v')}, {long_key, "value"}});
  for (const std::string& key : {std::string("a key of a state"), long_key}) {
    EntryVersion expected;
    ASSERT_TRUE(state->find_version(key, expected));

    EntryVersion version;
    EXPECT_EQ(state->try_find_version(key, version), true) << key;
    EXPECT_EQ(version, expected) << key;
  }
  EntryVersion version;
  EXPECT_EQ(state->try_find_version(std::string(255, 'l'), version), false);
}

TEST_F(StateTest, thread_that_has_not_read_need_not_wait_for_file) {
  const TestState state(path());

  std::thread([&] { EXPECT_FALSE(state->may_wait_for_file()); }).join();
}

TEST_F(StateTest, try_reads_decide_nothing_while_fast_reads_are_disabled) {
  TestState state(path());
  state.apply({{"a key of a state", "value"}});
  std::string registers_this_thread;
  state->get("a key of a state", registers_this_thread);
  EntryVersion version;
  ASSERT_TRUE(state->try_find_version("a key of a state", version));

  state->enable_fast_reads(false);

  for (const char* const key : {"a key of a state", "an absent key"}) {
    StringBuffer buffer;
    EXPECT_FALSE(state->try_get(key, buffer));
    EXPECT_TRUE(buffer.is_undecided);
    EXPECT_EQ(state->try_find_version(key, version), std::nullopt);
  }
}

TEST_F(StateTest, try_get_leaves_undecided_what_it_cannot_copy) {
  TestState state(path());
  state.apply({{"too large for it", std::string(1001, 'v')}, {"small enough", "v"}});
  std::string registers_this_thread;
  state->get("a", registers_this_thread);

  StringBuffer large;
  EXPECT_FALSE(state->try_get("too large for it", large));
  EXPECT_TRUE(large.is_undecided);
  StringBuffer without_memory;
  without_memory.fails = true;
  EXPECT_FALSE(state->try_get("small enough", without_memory));
  EXPECT_TRUE(without_memory.is_undecided);
  std::thread([&] {
    StringBuffer first_read;
    EXPECT_FALSE(state->try_get("small enough", first_read));
    EXPECT_TRUE(first_read.is_undecided);
  }).join();
}

}  // namespace
}  // namespace whycache
