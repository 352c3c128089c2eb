// The test vectors of docs/formats: decoding their bytes gives what they state, and encoding that
// gives the same bytes.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "support/thrown_error.h"
#include "update/samples.h"
#include "update/update.h"

namespace whycache {
namespace {

using nlohmann::json;

json load_vectors(const std::string& name) {
  std::ifstream file(WHYCACHE_SOURCE_FOLDER "/docs/formats/vectors/" + name);
  EXPECT_TRUE(file.is_open()) << name;
  return json::parse(file);
}

std::string from_hex(const json& text) {
  const auto digits = text.get<std::string>();
  std::string bytes;
  for (std::size_t i = 0; i < digits.size(); i += 2)
    bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
  return bytes;
}

std::uint64_t number_from_hex(const std::string& digits) {
  return std::stoull(digits, nullptr, 16);
}

Uuid uuid_from_hex(const json& text) {
  const std::string bytes = from_hex(text);
  Uuid uuid{};
  EXPECT_EQ(bytes.size(), uuid.size());
  std::copy_n(bytes.begin(), std::min(bytes.size(), uuid.size()), uuid.begin());
  return uuid;
}

Authorship authorship_of(const json& vector) {
  Authorship authorship;
  authorship.time_us = vector["time_us"];
  authorship.writer_id = uuid_from_hex(vector["writer_id"]);
  authorship.writer_sequence = vector["writer_sequence"];
  authorship.writer_name = vector["writer_name"];
  authorship.note = vector["note"];
  return authorship;
}

std::vector<testing::OwnedChange> changes_of(const json& vector) {
  std::vector<testing::OwnedChange> changes;
  for (const json& change : vector["changes"]) {
    if (change.contains("erase")) {
      changes.push_back({Change::Kind::erase, from_hex(change["erase"]), ""});
    } else {
      changes.push_back({Change::Kind::set, from_hex(change["set"]), from_hex(change["value"])});
    }
  }
  return changes;
}

TEST(UpdateVectors, chain_starts_match_the_vectors) {
  const json vectors = load_vectors("update.json");
  for (const json& vector : vectors["chain_start"]) {
    EXPECT_EQ(chain_start(uuid_from_hex(vector["uuid"])), number_from_hex(vector["chain"]))
        << vector;
  }
}

TEST(UpdateVectors, decoded_updates_match_the_vectors) {
  const json vectors = load_vectors("update.json");
  EXPECT_GE(vectors["updates"].size(), 10U);
  Update update;
  for (const json& vector : vectors["updates"]) {
    SCOPED_TRACE(vector["name"]);
    const std::string bytes = from_hex(vector["bytes"]);
    EXPECT_EQ(verify_chain(bytes, vector["id"], number_from_hex(vector["previous_chain"])),
              number_from_hex(vector["chain"]));
    decode_update(bytes, update);
    EXPECT_EQ(update.id, vector["id"]);
    EXPECT_EQ(update.chain, number_from_hex(vector["chain"]));
    EXPECT_EQ(update.erases_all, vector["erases_all"]);
    const Authorship expected = authorship_of(vector);
    EXPECT_EQ(update.authorship.time_us, expected.time_us);
    EXPECT_EQ(update.authorship.writer_id, expected.writer_id);
    EXPECT_EQ(update.authorship.writer_sequence, expected.writer_sequence);
    EXPECT_EQ(update.authorship.writer_name, expected.writer_name);
    EXPECT_EQ(update.authorship.note, expected.note);
    const std::vector<testing::OwnedChange> changes = changes_of(vector);
    ASSERT_EQ(update.changes.size(), changes.size());
    for (std::size_t i = 0; i < changes.size(); ++i)
      EXPECT_EQ(update.changes[i], changes[i].change()) << i;
  }
}

TEST(UpdateVectors, encoded_updates_match_the_vectors) {
  const json vectors = load_vectors("update.json");
  for (const json& vector : vectors["updates"]) {
    if (!vector["encode"]) continue;
    SCOPED_TRACE(vector["name"]);
    EXPECT_EQ(
        testing::sealed(changes_of(vector), vector["id"], number_from_hex(vector["previous_chain"]),
                        authorship_of(vector), vector["erases_all"]),
        from_hex(vector["bytes"]));
  }
}

TEST(UpdateVectors, invalid_vectors_are_rejected) {
  const json vectors = load_vectors("update.json");
  EXPECT_GE(vectors["refused"].size(), 15U);
  for (const json& vector : vectors["refused"]) {
    SCOPED_TRACE(vector["why"]);
    Update update;
    testing::expect_error(ErrorKind::corrupt,
                          [&] { decode_update(from_hex(vector["bytes"]), update); });
  }
}

std::vector<std::pair<std::string, std::string>> items_of(const json& vector) {
  std::vector<std::pair<std::string, std::string>> items;
  for (const json& item : vector["items"]) items.emplace_back(from_hex(item[0]), from_hex(item[1]));
  return items;
}

std::optional<BaseInfo> last_of(const json& vector) {
  if (vector["last"].is_null()) return std::nullopt;
  const json& last = vector["last"];
  const auto digest = last["digest"].get<std::string>();
  return BaseInfo{.base = vector["base"],
                  .chain = number_from_hex(last["chain"]),
                  .item_count = last["item_count"],
                  .digest = {.low = number_from_hex(digest.substr(16)),
                             .high = number_from_hex(digest.substr(0, 16))}};
}

BaseAuthorship base_authorship_of(const json& vector) {
  if (!vector.contains("authorship")) return {};
  const json& authorship = vector["authorship"];
  return {.time_us = authorship["time_us"],
          .writer_name = authorship["writer_name"],
          .note = authorship["note"]};
}

TEST(BasePartVectors, decoded_parts_match_the_vectors) {
  const json vectors = load_vectors("base_part.json");
  EXPECT_GE(vectors["parts"].size(), 6U);
  BasePart part;
  for (const json& vector : vectors["parts"]) {
    SCOPED_TRACE(vector["name"]);
    const std::string bytes = from_hex(vector["bytes"]);
    decode_base_part(bytes, part);
    EXPECT_EQ(part.base, vector["base"]);
    EXPECT_EQ(part.number, vector["number"]);
    EXPECT_EQ(part.last, last_of(vector));
    EXPECT_EQ(part.authorship, base_authorship_of(vector));
    const auto items = items_of(vector);
    ASSERT_EQ(part.items.size(), items.size());
    for (std::size_t i = 0; i < items.size(); ++i)
      EXPECT_EQ(part.items[i], (Item{items[i].first, items[i].second})) << i;
  }
}

// A part contains its number, so the encoder first has to write the parts before it.
TEST(BasePartVectors, encoded_parts_match_the_vectors) {
  const json vectors = load_vectors("base_part.json");
  for (const json& vector : vectors["parts"]) {
    if (!vector["encode"]) continue;
    SCOPED_TRACE(vector["name"]);
    BasePartEncoder encoder(vector["base"], base_authorship_of(vector));
    for (std::uint64_t number = 0; number < vector["number"]; ++number)
      encoder.finish(std::nullopt);
    for (const auto& [key, value] : items_of(vector))
      ASSERT_TRUE(encoder.add({key, value}, testing::no_bytes_max));
    EXPECT_EQ(encoder.finish(last_of(vector)), from_hex(vector["bytes"]));
  }
}

TEST(BasePartVectors, invalid_vectors_are_rejected) {
  const json vectors = load_vectors("base_part.json");
  EXPECT_GE(vectors["refused"].size(), 15U);
  for (const json& vector : vectors["refused"]) {
    SCOPED_TRACE(vector["why"]);
    BasePart part;
    testing::expect_error(ErrorKind::corrupt,
                          [&] { decode_base_part(from_hex(vector["bytes"]), part); });
  }
}

// The digest in the last part is that of the items of all parts of its base.
TEST(BasePartVectors, items_amount_to_the_digest_of_the_last_part) {
  Digest digest;
  const json vectors = load_vectors("base_part.json");
  for (const json& vector : vectors["parts"]) {
    if (vector["base"] != 40) continue;
    for (const auto& [key, value] : items_of(vector)) add(digest, item_digest(key, value));
    const std::optional<BaseInfo> last = last_of(vector);
    if (last) {
      EXPECT_EQ(digest, last->digest);
    }
  }
  EXPECT_NE(digest, Digest{});
}

}  // namespace
}  // namespace whycache
