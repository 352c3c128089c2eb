// Updates and base parts, damaged in every way of mutations.h: each is rejected as corrupt.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "damage/mutations.h"
#include "support/thrown_error.h"
#include "update/samples.h"
#include "update/update.h"

namespace whycache {
namespace {

using testing::for_each_mutation;
using testing::Mutation;
using testing::OwnedChange;
using testing::Sample;
using testing::Tally;
using testing::thrown_error;

constexpr UpdateId mutated_id = 7;
constexpr std::uint64_t mutated_previous_chain = 1234;

// Bytes in memory of exactly their size, so that the sanitizers see each read beyond them.
class ExactBytes {
 public:
  explicit ExactBytes(std::string_view bytes)
      : memory_(new char[bytes.size()]), size_(bytes.size()) {
    std::memcpy(memory_.get(), bytes.data(), size_);
  }
  std::string_view view() const { return {memory_.get(), size_}; }

 private:
  std::unique_ptr<char[]> memory_;
  std::size_t size_;
};

std::vector<OwnedChange> some_changes(std::size_t value_bytes) {
  std::mt19937_64 random(1);
  return {{Change::Kind::set, "checkout.enabled", "yes"},
          {Change::Kind::set, "empty", ""},
          {Change::Kind::erase, "old", ""},
          {Change::Kind::set, "random", testing::random_bytes(random, value_bytes)},
          {Change::Kind::set, std::string(300, 'k'), std::string(value_bytes, 'x')}};
}

std::vector<std::string> updates_to_mutate() {
  return {testing::sealed(some_changes(20), mutated_id, mutated_previous_chain),
          testing::sealed(some_changes(900), mutated_id, mutated_previous_chain),
          testing::sealed(some_changes(100), mutated_id, mutated_previous_chain, {}, true),
          testing::sealed({}, mutated_id, mutated_previous_chain)};
}

// Returns "corrupt" or "decoded"; throws what is neither.
template <typename Decode>
std::string outcome_of(const Decode& decode) {
  const std::optional<Error> error = thrown_error(decode);
  if (!error) return "decoded";
  return error->kind() == ErrorKind::corrupt ? "corrupt" : error->what();
}

TEST(UpdateMutation, damaged_update_breaks_its_chain_and_is_decoded_safely) {
  const std::vector<std::string> updates = updates_to_mutate();
  Tally by_chain("an update, by its chain");
  Tally by_decoding("an update, decoded without its chain");
  Sample sample(20);
  Update update;
  for (const std::string& whole : updates) {
    ASSERT_EQ(outcome_of([&] { decode_update(whole, update); }), "decoded");
    for_each_mutation(whole, updates, [&](const Mutation& mutation) {
      if (!sample.takes_next()) return;
      const ExactBytes bytes(mutation.bytes);
      // Another whole update follows the same one: it is not damaged.
      const bool is_whole =
          std::find(updates.begin(), updates.end(), mutation.bytes) != updates.end();
      const std::string chain =
          outcome_of([&] { verify_chain(bytes.view(), mutated_id, mutated_previous_chain); });
      ASSERT_EQ(chain, is_whole ? "decoded" : "corrupt") << mutation.what << mutation.offset;
      by_chain.add(is_whole ? "another whole update" : chain);
      const std::string decoded = outcome_of([&] { decode_update(bytes.view(), update); });
      ASSERT_TRUE(decoded == "decoded" || decoded == "corrupt") << decoded;
      ASSERT_TRUE(decoded == "decoded" || update.changes.empty());
      by_decoding.add(decoded);
      peek_header(bytes.view());
    });
  }
}

std::vector<std::string> parts_to_mutate() {
  std::mt19937_64 random(1);
  std::vector<std::string> parts;
  for (const std::size_t value_bytes : {10, 60}) {
    BasePartEncoder encoder(40);
    for (int i = 0; i < 20; ++i) {
      const std::string key = "flag." + std::to_string(100 + i);
      encoder.add({key, i % 3 == 0 ? testing::random_bytes(random, value_bytes)
                                   : std::string(value_bytes, 'x')},
                  testing::no_bytes_max);
    }
    parts.emplace_back(encoder.finish(std::nullopt));
    encoder.add({"last", "item"}, testing::no_bytes_max);
    parts.emplace_back(encoder.finish(BaseInfo{.base = 40, .chain = 5, .item_count = 21}));
  }
  return parts;
}

TEST(BasePartMutation, damaged_part_is_rejected) {
  const std::vector<std::string> parts = parts_to_mutate();
  Tally tally("a base part");
  Tally unchecked("a base part, with a checksum of the damaged bytes");
  Sample sample(10);
  BasePart part;
  for (const std::string& whole : parts) {
    ASSERT_EQ(outcome_of([&] { decode_base_part(whole, part); }), "decoded");
    for_each_mutation(whole, parts, [&](const Mutation& mutation) {
      if (!sample.takes_next()) return;
      const bool is_whole = std::find(parts.begin(), parts.end(), mutation.bytes) != parts.end();
      const ExactBytes bytes(mutation.bytes);
      const std::string outcome = outcome_of([&] { decode_base_part(bytes.view(), part); });
      ASSERT_EQ(outcome, is_whole ? "decoded" : "corrupt") << mutation.what << mutation.offset;
      ASSERT_TRUE(is_whole || part.items.empty());
      tally.add(is_whole ? "another whole part" : outcome);
      // What a program that can write to the log may put there.
      std::string sealed = mutation.bytes;
      if (sealed.size() < sizeof(std::uint64_t)) return;
      sealed.resize(sealed.size() - sizeof(std::uint64_t));
      append_little_endian(sealed, hash64(sealed));
      const ExactBytes hostile(sealed);
      const std::string decoded = outcome_of([&] { decode_base_part(hostile.view(), part); });
      ASSERT_TRUE(decoded == "decoded" || decoded == "corrupt") << decoded;
      unchecked.add(decoded);
    });
  }
}

}  // namespace
}  // namespace whycache
