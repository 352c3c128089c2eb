// get_as() of typed values, which programs in Python write. tests/client/cache_test.cc has those of
// plain values.
#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include <whycache/parse.h>
#include <whycache/value.h>

#include "support/thrown_error.h"

namespace whycache {
namespace {

using testing::expect_error;

template <typename T>
T parsed(const std::string& value) {
  return detail::parse_value<T>("port", value);
}

TEST(ParsedValue, typed_numbers_and_truth_values_are_read) {
  EXPECT_EQ(parsed<int>(encode_value(8080)), 8080);
  EXPECT_EQ(parsed<std::int8_t>(encode_value(-128)), -128);
  constexpr std::uint64_t max = std::numeric_limits<std::uint64_t>::max();
  EXPECT_EQ(parsed<std::uint64_t>(encode_value(max)), max);
  EXPECT_EQ(parsed<double>(encode_value(1.5)), 1.5);
  EXPECT_EQ(parsed<double>(encode_value(-3)), -3.0);
  EXPECT_EQ(parsed<float>(encode_value(max)), 0x1p64F);
  EXPECT_EQ(parsed<long double>(encode_value(0.1)), 0.1);
  EXPECT_TRUE(parsed<bool>(encode_value(true)));
  EXPECT_FALSE(parsed<bool>(encode_value(false)));
}

TEST(ParsedValue, other_typed_values_are_refused_with_their_key) {
  const auto refuse = [](auto&& call, const auto&... words) {
    expect_error(ErrorKind::invalid, call, "key=port", words...);
  };
  refuse([] { parsed<int>(encode_value("8080")); }, "kind=text");
  refuse([] { parsed<int>(encode_value(1.0)); }, "kind=floating");
  refuse([] { parsed<std::int8_t>(encode_value(128)); }, "8 bits");
  refuse([] { parsed<unsigned>(encode_value(-1)); }, "unsigned");
  refuse([] { parsed<bool>(encode_value(1)); }, "kind=integer");
  refuse([] { parsed<double>(encode_value(true)); }, "kind=boolean");
  refuse([] { parsed<double>(encode_value(std::vector<double>{1.5})); }, "kind=list");
  expect_error(
      ErrorKind::corrupt, [] { parsed<int>("\xc1\x01"); }, "key=port");
}

}  // namespace
}  // namespace whycache
