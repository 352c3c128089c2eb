#include "update/update.h"

#include <gtest/gtest.h>
#include <zstd.h>

#include <random>
#include <set>
#include <string>
#include <vector>

#include "support/seed.h"
#include "support/thrown_error.h"
#include "update/compression.h"
#include "update/samples.h"

namespace whycache {
namespace {

using namespace std::string_literals;
using testing::expect_error;
using testing::no_bytes_max;
using testing::OwnedChange;
using testing::sealed;

void expect_changes(const Update& update, const std::vector<OwnedChange>& expected) {
  ASSERT_EQ(update.changes.size(), expected.size());
  for (std::size_t i = 0; i < expected.size(); ++i)
    ASSERT_EQ(update.changes[i], expected[i].change()) << "change " << i;
}

TEST(Update, decoded_update_equals_its_draft) {
  Draft draft(testing::full_authorship());
  EXPECT_TRUE(draft.add(Change::set("checkout.enabled", "yes"), no_bytes_max));
  EXPECT_TRUE(draft.add(Change::erase("checkout.old"), no_bytes_max));
  EXPECT_EQ(draft.change_count(), 2U);
  const std::string bytes(draft.seal(7, 1234));

  Update update;
  decode_update(bytes, update);

  EXPECT_EQ(update.id, 7U);
  EXPECT_EQ(update.chain, draft.chain());
  EXPECT_FALSE(update.erases_all);
  EXPECT_EQ(update.changes, (std::vector<Change>{Change::set("checkout.enabled", "yes"),
                                                 Change::erase("checkout.old")}));
  const Authorship expected = testing::full_authorship();
  EXPECT_EQ(update.authorship.time_us, expected.time_us);
  EXPECT_EQ(update.authorship.writer_id, expected.writer_id);
  EXPECT_EQ(update.authorship.writer_sequence, expected.writer_sequence);
  EXPECT_EQ(update.authorship.writer_name, expected.writer_name);
  EXPECT_EQ(update.authorship.note, expected.note);
}

TEST(Update, draft_decodes_what_it_has_sealed_for_each_id) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  const std::string noise = testing::random_bytes(random, 100'000);  // not compressed
  for (const std::string& value : {std::string(100'000, 'x'), noise}) {
    const std::vector<Change> changes = {Change::set(std::string(100, 'k'), value),
                                         Change::erase("b")};
    Draft draft(testing::full_authorship());
    draft.reserve(changes);
    for (const Change& change : changes) EXPECT_TRUE(draft.add(change, no_bytes_max));
    for (const UpdateId id : {7U, 8U}) {
      draft.seal(id, 1234);
      Update update;
      draft.decode_sealed(update);
      EXPECT_EQ(update.id, id);
      EXPECT_EQ(update.chain, draft.chain());
      EXPECT_EQ(update.changes, changes);
    }
  }
}

TEST(Update, random_changes_round_trip) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  Update update;  // one object for all rounds: nothing of a round may appear in the next
  for (int round = 0; round < 500; ++round) {
    const std::vector<OwnedChange> changes =
        testing::random_changes(random, random() % (round % 50 == 0 ? 2000 : 20));
    Authorship authorship;
    authorship.time_us = static_cast<std::int64_t>(random());
    authorship.writer_sequence = random() % 2 == 0 ? 0 : random();
    authorship.writer_name = testing::random_bytes(random, random() % 256);
    const bool erases_all = random() % 2 == 0;
    const UpdateId id = 1 + random() % 1'000'000;
    const std::uint64_t previous_chain = random();

    const std::string bytes = sealed(changes, id, previous_chain, authorship, erases_all);
    const std::uint64_t chain = verify_chain(bytes, id, previous_chain);
    decode_update(bytes, update);

    ASSERT_EQ(update.id, id);
    ASSERT_EQ(update.chain, chain);
    ASSERT_EQ(update.erases_all, erases_all);
    ASSERT_EQ(update.authorship.time_us, authorship.time_us);
    ASSERT_EQ(update.authorship.writer_id, Uuid{});
    ASSERT_EQ(update.authorship.writer_sequence, authorship.writer_sequence);
    ASSERT_EQ(update.authorship.writer_name, authorship.writer_name);
    ASSERT_EQ(update.authorship.note, "");
    ASSERT_NO_FATAL_FAILURE(expect_changes(update, changes));
  }
}

TEST(Update, update_without_changes_can_erase_everything) {
  Draft draft({}, true);
  Update update;
  update.changes.resize(3);
  decode_update(draft.seal(1, 0), update);

  EXPECT_TRUE(update.erases_all);
  EXPECT_TRUE(update.changes.empty());
}

TEST(Update, empty_value_differs_from_an_erased_key) {
  Update update;
  const std::string bytes =
      sealed({{Change::Kind::set, "a", ""}, {Change::Kind::erase, "a", ""}}, 1, 0);
  decode_update(bytes, update);
  EXPECT_EQ(update.changes, (std::vector<Change>{Change::set("a", ""), Change::erase("a")}));
}

TEST(Update, changes_keep_their_order_even_for_one_key) {
  const std::vector<OwnedChange> changes = {
      {Change::Kind::set, "a", "1"}, {Change::Kind::erase, "a", ""}, {Change::Kind::set, "a", "2"}};
  Update update;
  const std::string bytes = sealed(changes, 1, 0);
  decode_update(bytes, update);
  expect_changes(update, changes);
}

TEST(Update, keys_and_values_may_contain_any_byte) {
  std::string all_bytes;
  for (int byte = 0; byte < 256; ++byte) all_bytes += static_cast<char>(byte);
  const std::vector<OwnedChange> changes = {{Change::Kind::set, all_bytes, all_bytes},
                                            {Change::Kind::set, "\0"s, "\0\0"s}};
  Update update;
  const std::string bytes = sealed(changes, 1, 0);
  decode_update(bytes, update);
  expect_changes(update, changes);
}

TEST(Update, longest_key_and_value_are_accepted_longer_rejected) {
  const std::string longest_key(key_bytes_max, 'k');
  const std::string longest_value(value_bytes_max, 'v');
  Draft draft({});
  EXPECT_TRUE(draft.add(Change::set(longest_key, longest_value), no_bytes_max));
  expect_error(
      ErrorKind::invalid, [&] { draft.add(Change::set("", "x"), no_bytes_max); }, "key is empty");
  expect_error(
      ErrorKind::invalid, [&] { draft.add(Change::erase(""), no_bytes_max); }, "key is empty");
  expect_error(
      ErrorKind::invalid, [&] { draft.add(Change::erase(longest_key + "k"), no_bytes_max); },
      "key too long: bytes=1025 key_bytes_max=1024");
  expect_error(
      ErrorKind::limit, [&] { draft.add(Change::set("k", longest_value + "v"), no_bytes_max); },
      "value too long: bytes=16777216 value_bytes_max=16777215");
  EXPECT_EQ(draft.change_count(), 1U);

  Update update;
  decode_update(draft.seal(1, 0), update);
  EXPECT_EQ(update.changes, (std::vector<Change>{Change::set(longest_key, longest_value)}));
}

TEST(Update, update_is_compressed_only_if_that_saves_bytes) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  const std::string plain(100'000, 'x');
  const std::string noise = testing::random_bytes(random, 100'000);

  const std::string compressed = sealed({{Change::Kind::set, "k", plain}}, 1, 0);
  const std::string raw = sealed({{Change::Kind::set, "k", noise}}, 1, 0);

  EXPECT_LT(compressed.size(), 1000U);
  EXPECT_EQ(compressed[flags_offset], flag_zstd);
  EXPECT_EQ(raw[flags_offset], 0);
  EXPECT_GT(raw.size(), noise.size());
  Update update;
  decode_update(compressed, update);
  EXPECT_EQ(update.changes[0].value, plain);
  decode_update(raw, update);
  EXPECT_EQ(update.changes[0].value, noise);
}

// Returns the size of an update with these bytes as its only value, as a share of the value's.
double compressed_share(const std::string& value) {
  const std::string bytes = sealed({{Change::Kind::set, "k", value}}, 1, 0);
  Update update;
  decode_update(bytes, update);
  EXPECT_EQ(update.changes.at(0).value, value);
  return static_cast<double>(bytes.size()) / static_cast<double>(value.size());
}

TEST(Update, bytes_that_look_random_are_compressed_by_a_faster_level) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  const auto frame_of_level = [](const std::string& bytes, int level) {
    std::string frame(ZSTD_compressBound(bytes.size()), '\0');
    frame.resize(ZSTD_compress(frame.data(), frame.size(), bytes.data(), bytes.size(), level));
    return frame;
  };
  std::string noise;
  std::string text;
  for (int i = 0; i < 1'000; ++i) {
    const std::string number = std::to_string(i);
    noise += "key/" + std::string(11 - number.size(), '0') + number +
             testing::random_bytes(random, 92) + std::string(8, '\0');
    for (int k = 0; k < 100; ++k) text += "0123456789abcdef"[random() % 16];
  }
  std::string compressed;
  ASSERT_TRUE(append_compressed(compressed, noise));
  EXPECT_EQ(compressed, frame_of_level(noise, -4));
  ASSERT_NE(compressed, frame_of_level(noise, 1));
  compressed.clear();
  ASSERT_TRUE(append_compressed(compressed, text));
  EXPECT_EQ(compressed, frame_of_level(text, 1));
  // Too short for a sample.
  compressed.clear();
  ASSERT_TRUE(append_compressed(compressed, noise.substr(0, 10'000)));
  EXPECT_EQ(compressed, frame_of_level(noise.substr(0, 10'000), 1));
}

TEST(Update, repetitions_of_random_bytes_are_compressed) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  const std::string noise = testing::random_bytes(random, 1000);
  std::string repeated;
  for (int i = 0; i < 100; ++i) repeated += noise;
  EXPECT_LT(compressed_share(repeated), 0.05);
}

TEST(Update, bytes_that_are_frequent_are_compressed_without_repetitions) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  constexpr std::string_view digits =
      "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
  std::string base64;
  for (int i = 0; i < 100'000; ++i) base64 += digits[random() % digits.size()];
  EXPECT_LT(compressed_share(base64), 0.8);

  std::string numbers;
  for (int i = 0; i < 12'500; ++i) {
    const double number = static_cast<double>(random() % 1'000'000) / 1000;
    numbers.append(reinterpret_cast<const char*>(&number), sizeof number);
  }
  EXPECT_LT(compressed_share(numbers), 0.6);
}

TEST(Update, text_that_begins_with_noise_is_compressed_as_text) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  std::string value = testing::random_bytes(random, 20'000);
  for (int i = 0; i < 80'000; ++i) value += "0123456789abcdef"[random() % 16];
  EXPECT_LT(compressed_share(value), 0.75);
}

TEST(Update, decoding_into_a_used_object_allocates_nothing) {
  const std::string large = sealed(
      {{Change::Kind::set, "a", std::string(50'000, 'x')}, {Change::Kind::set, "b", "2"}}, 1, 0);
  const std::string small = sealed({{Change::Kind::set, "a", std::string(40'000, 'x')}}, 1, 0);
  Update update;
  decode_update(large, update);
  const Change* changes = update.changes.data();
  const char* storage = update.storage.data();

  decode_update(small, update);
  decode_update(large, update);

  EXPECT_EQ(update.changes.data(), changes);
  EXPECT_EQ(update.storage.data(), storage);
}

TEST(Update, unknown_fields_are_skipped) {
  std::string fields;
  append_field(fields, static_cast<std::uint64_t>(UpdateTag::note), "known");
  append_field(fields, 6, "something new");
  append_field(fields, std::uint64_t{1} << 60, "and something newer");
  Update update;
  decode_update(testing::framed(0, fields, 0, ""), update);
  EXPECT_EQ(update.authorship.note, "known");
}

// --- Draft ---

// A draft accepts changes up to exactly bytes_max, whatever their sizes.
TEST(Draft, draft_fills_an_update_to_the_last_byte) {
  SCOPED_TRACE(testing::seed_note());
  std::mt19937_64 random(testing::test_seed());
  for (int round = 0; round < 2000; ++round) {
    const std::vector<OwnedChange> changes = testing::random_changes(random, 1 + random() % 300);
    Draft all({});
    for (const OwnedChange& change : changes) ASSERT_TRUE(all.add(change.change(), no_bytes_max));
    const std::size_t bytes = all.uncompressed_bytes();

    Draft exact({});
    Draft one_less({});
    for (std::size_t i = 0; i + 1 < changes.size(); ++i) {
      ASSERT_TRUE(exact.add(changes[i].change(), bytes));
      ASSERT_TRUE(one_less.add(changes[i].change(), bytes - 1));
    }
    const std::size_t bytes_before = one_less.uncompressed_bytes();
    ASSERT_FALSE(one_less.add(changes.back().change(), bytes - 1));
    ASSERT_TRUE(exact.add(changes.back().change(), bytes));

    ASSERT_EQ(one_less.change_count(), changes.size() - 1);
    ASSERT_EQ(one_less.uncompressed_bytes(), bytes_before);
    ASSERT_EQ(exact.uncompressed_bytes(), bytes);
    const std::string_view sealed_bytes = exact.seal(1, 0);
    ASSERT_LE(sealed_bytes.size(), bytes);
    const bool compressed = (sealed_bytes[flags_offset] & flag_zstd) != 0;
    ASSERT_TRUE(compressed || sealed_bytes.size() == bytes);
  }
}

TEST(Draft, draft_that_rejected_a_change_seals_the_others) {
  Draft draft({});
  ASSERT_TRUE(draft.add(Change::set("a", "1"), 100));
  ASSERT_FALSE(draft.add(Change::set("b", std::string(100, 'x')), 100));
  ASSERT_TRUE(draft.add(Change::set("c", "3"), 100));

  Update update;
  decode_update(draft.seal(1, 0), update);
  EXPECT_EQ(update.changes, (std::vector<Change>{Change::set("a", "1"), Change::set("c", "3")}));
}

TEST(Draft, draft_without_room_for_its_fields_rejects_changes) {
  Draft draft(testing::full_authorship());
  EXPECT_FALSE(draft.add(Change::erase("a"), 20));
  EXPECT_EQ(draft.change_count(), 0U);
}

TEST(Draft, draft_rejects_changes_beyond_the_maximum_count) {
  Draft draft({});
  for (std::size_t i = 0; i < element_count_max; ++i)
    ASSERT_TRUE(draft.add(Change::erase("k"), no_bytes_max));
  EXPECT_FALSE(draft.add(Change::erase("k"), no_bytes_max));

  Update update;
  decode_update(draft.seal(1, 0), update);
  EXPECT_EQ(update.changes.size(), element_count_max);
}

TEST(Draft, draft_can_be_sealed_again_for_each_attempt) {
  Draft draft(testing::full_authorship());
  draft.add(Change::set("k", std::string(1000, 'x')), no_bytes_max);

  const std::string first(draft.seal(5, 50));
  const std::uint64_t first_chain = draft.chain();
  const std::string second(draft.seal(6, 60));

  EXPECT_EQ(verify_chain(first, 5, 50), first_chain);
  EXPECT_EQ(verify_chain(second, 6, 60), draft.chain());
  EXPECT_EQ(draft.seal(5, 50), first);
}

TEST(Draft, finished_draft_rejects_changes) {
  Draft draft({});
  draft.add(Change::set("k", "v"), no_bytes_max);
  draft.finish();
  draft.finish();
  expect_error(
      ErrorKind::invalid, [&] { draft.add(Change::set("k", "w"), no_bytes_max); }, "finished");
  Update update;
  decode_update(draft.seal(1, 0), update);
  EXPECT_EQ(update.changes, (std::vector<Change>{Change::set("k", "v")}));
}

TEST(Draft, overlong_writer_name_or_note_is_rejected) {
  Authorship authorship;
  authorship.writer_name = std::string(255, 'n');
  authorship.note = std::string(255, 'n');
  EXPECT_NO_THROW(Draft{authorship});
  authorship.note += 'n';
  expect_error(
      ErrorKind::invalid, [&] { Draft{authorship}; }, "note too long: bytes=256 bytes_max=255");
  authorship.writer_name += 'n';
  expect_error(
      ErrorKind::invalid, [&] { Draft{authorship}; }, "writer name too long");
}

// --- Chain ---

TEST(Chain, chain_starts_differently_for_every_log) {
  Uuid first{};
  Uuid second{};
  second[15] = 1;
  EXPECT_NE(chain_start(first), chain_start(second));
  EXPECT_EQ(chain_start(first), chain_start(Uuid{}));
}

TEST(Chain, each_update_depends_on_all_previous_ones) {
  std::uint64_t chain = chain_start(Uuid{});
  std::vector<std::string> log;
  for (UpdateId id = 1; id <= 10; ++id) {
    log.push_back(sealed({{Change::Kind::set, "k", std::to_string(id)}}, id, chain));
    chain = verify_chain(log.back(), id, chain);
  }
  // The unchanged log can be verified from its start.
  std::uint64_t verified = chain_start(Uuid{});
  for (UpdateId id = 1; id <= 10; ++id) verified = verify_chain(log[id - 1], id, verified);
  EXPECT_EQ(verified, chain);

  // Update 4 does not follow another update 3, even a well-formed one.
  const std::uint64_t chain_of_2 = peek_header(log[1])->chain;
  const std::string forged = sealed({{Change::Kind::set, "k", "forged"}}, 3, chain_of_2);
  const std::uint64_t chain_of_forged = verify_chain(forged, 3, chain_of_2);
  expect_error(
      ErrorKind::corrupt, [&] { verify_chain(log[3], 4, chain_of_forged); },
      "does not follow the one before it", "id=4");
}

TEST(Chain, skipped_repeated_or_misplaced_update_breaks_the_chain) {
  const std::uint64_t start = chain_start(Uuid{});
  const std::string first = sealed({{Change::Kind::set, "k", "v"}}, 1, start);
  const std::uint64_t chain = verify_chain(first, 1, start);
  const std::string second = sealed({{Change::Kind::set, "k", "v"}}, 2, chain);

  expect_error(
      ErrorKind::corrupt, [&] { verify_chain(second, 1, start); }, "another id than its place",
      "id=2", "expected=1");
  expect_error(
      ErrorKind::corrupt, [&] { verify_chain(second, 2, start); }, "does not follow");
  expect_error(
      ErrorKind::corrupt, [&] { verify_chain(first, 2, chain); }, "another id than its place");
}

TEST(UpdateHeaderTest, header_is_read_without_decoding) {
  const std::string bytes = sealed({{Change::Kind::set, "k", "v"}}, 77, 5);
  const std::optional<UpdateHeader> header = peek_header(bytes);
  ASSERT_TRUE(header);
  EXPECT_EQ(header->id, 77U);
  EXPECT_EQ(header->chain, verify_chain(bytes, 77, 5));
}

TEST(UpdateHeaderTest, bytes_that_cannot_be_an_update_have_no_header) {
  std::string bytes = sealed({}, 77, 5, {});
  ASSERT_EQ(bytes.size(), 20U);
  EXPECT_TRUE(peek_header(bytes));
  EXPECT_FALSE(peek_header(""));
  EXPECT_FALSE(peek_header(bytes.substr(0, 19)));
  EXPECT_FALSE(peek_header(std::string(40, '\0')));
  bytes[version_offset] = 2;
  EXPECT_FALSE(peek_header(bytes));
}

}  // namespace
}  // namespace whycache
