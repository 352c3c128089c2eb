// The test vectors of docs/formats/value.md. tests/cli/value_test.py compares their JSON.
#include <gtest/gtest.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include <whycache/value.h>

#include "support/thrown_error.h"

namespace whycache {
namespace {

nlohmann::json load_value_vectors() {
  std::ifstream file(WHYCACHE_SOURCE_FOLDER "/docs/formats/vectors/value.json");
  EXPECT_TRUE(file.is_open());
  return nlohmann::json::parse(file);
}

std::string bytes_of(const nlohmann::json& vector) {
  const auto digits = vector["bytes"].get<std::string>();
  std::string bytes;
  for (std::size_t i = 0; i < digits.size(); i += 2)
    bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
  return bytes;
}

std::string read_and_written(std::string_view value) {
  ValueReader reader(value);
  ValueWriter writer;
  while (!reader.done()) writer.write(reader.next());
  return writer.finish();
}

TEST(ValueVectors, canonical_values_are_written_as_they_were_read) {
  const nlohmann::json vectors = load_value_vectors();
  EXPECT_GE(vectors["values"].size(), 80U);
  for (const nlohmann::json& vector : vectors["values"]) {
    SCOPED_TRACE(vector["name"]);
    const std::string bytes = bytes_of(vector);
    const std::string copy = read_and_written(bytes);
    EXPECT_EQ(copy == bytes, vector.value("canonical", true));
    EXPECT_EQ(read_and_written(copy), copy);
  }
}

TEST(ValueVectors, refused_values_are_corrupt) {
  const nlohmann::json vectors = load_value_vectors();
  EXPECT_GE(vectors["refused"].size(), 50U);
  for (const nlohmann::json& vector : vectors["refused"]) {
    SCOPED_TRACE(vector["name"]);
    testing::expect_error(ErrorKind::corrupt, [&] { read_and_written(bytes_of(vector)); });
  }
}

}  // namespace
}  // namespace whycache
