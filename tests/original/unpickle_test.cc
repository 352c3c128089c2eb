// Pickles of plain values become typed values; every other pickle is refused, whatever it asks for.
// python/tests/test_import_original.py compares with the values of Python.
#include "original/unpickle.h"

#include <gtest/gtest.h>

#include <random>
#include <string>

#include <whycache/value.h>

#include "support/thrown_error.h"

namespace whycache {
namespace {

using namespace std::string_literals;
using testing::expect_error;

// {"a": (1, -2, 2**70, None, True, 1.5), "b": [b"x", "ü", {1}, frozenset({2})]} in protocol 4.
const std::string nested_pickle =
    "\x80\x04\x95\x49\x00\x00\x00\x00\x00\x00\x00}\x94(\x8c\x01"s +
    "a\x94(K\x01J\xfe\xff\xff\xff\x8a\x09\x00\x00\x00\x00\x00\x00\x00\x00\x40N\x88"s +
    "G\x3f\xf8\x00\x00\x00\x00\x00\x00t\x94\x8c\x01"s + "b\x94]\x94("s +
    "C\x01x\x94\x8c\x02\xc3\xbc\x94\x8f\x94(K\x01\x90(K\x02\x91\x94"s + "eu."s;

TEST(Unpickle, plain_values_become_typed_values) {
  EXPECT_EQ(value_of_pickle("\x80\x03N."), encode_value(nullptr));
  EXPECT_EQ(value_of_pickle("\x80\x03K\x05."), encode_value(5));
  EXPECT_EQ(value_of_pickle("\x80\x03M\xff\xff."), encode_value(65535));
  EXPECT_EQ(value_of_pickle("\x80\x03J\xff\xff\xff\xff."), encode_value(-1));
  EXPECT_EQ(value_of_pickle("\x80\x03\x8a\x00."s), encode_value(0));
  EXPECT_EQ(value_of_pickle("\x80\x03X\x02\x00\x00\x00hi."s), encode_value("hi"));
  EXPECT_EQ(value_of_pickle("\x80\x03"s + "C\x03yes."), "yes");
  EXPECT_EQ(value_of_pickle("\x80\x03"s + "C\x02\xc1\x01."), encode_value(ValueBytes{"\xc1\x01"}));
  const std::string value = value_of_pickle(nested_pickle);
  ValueReader reader(value);
  EXPECT_EQ(reader.next().count, 2U);
  EXPECT_EQ(reader.next().bytes, "a");
  EXPECT_EQ(reader.next().kind, ValueKind::tuple);
  EXPECT_EQ(reader.next().integer, 1);
  EXPECT_EQ(reader.next().integer, -2);
  EXPECT_EQ(reader.next().kind, ValueKind::big_integer);
}

TEST(Unpickle, other_names_are_refused) {
  for (const std::string& call :
       {"cos\nsystem\nX\x02\x00\x00\x00ls\x85R"s, "cbuiltins\neval\nX\x01\x00\x00\x00x\x85R"s,
        "cbuiltins\ngetattr\ncbuiltins\nint\nX\x04\x00\x00\x00real\x86R"s,
        "\x8c\x02os\x8c\x06system\x93\x8c\x02ls\x85R"s, "cos\nsystem\n"s,
        "ccollections\nOrderedDict\n)R"s, "cdatetime\ndatetime\n)R"s, "i__main__\nX\n"s, "Pid\n"s,
        "\x96\x01\x00\x00\x00\x00\x00\x00\x00x"s, "S'text'\n"s}) {
    expect_error(
        ErrorKind::invalid, [&] { value_of_pickle("\x80\x04" + call + '.'); }, "not plain");
  }
  expect_error(
      ErrorKind::invalid, [] { value_of_pickle("\x80\x06N."); }, "protocol 6");
}

TEST(Unpickle, value_that_contains_itself_is_refused) {
  expect_error(ErrorKind::limit, [] { value_of_pickle("\x80\x04]\x94h\x00"s + "a."); });
  const std::string deep = "\x80\x04" + std::string(10'000, ']') + std::string(9'999, 'a') + '.';
  expect_error(
      ErrorKind::limit, [&] { value_of_pickle(deep); }, "depth_max");
  // Each list has the previous one ten times.
  std::string bomb = "\x80\x04]\x94";
  for (int i = 0; i < 100; ++i) {
    bomb += "0](";
    for (int j = 0; j < 10; ++j) bomb += "h"s + static_cast<char>(i);
    bomb += "e\x94";
  }
  expect_error(
      ErrorKind::limit, [&] { value_of_pickle(bomb + '.'); }, "too long");
}

TEST(Unpickle, damaged_pickles_are_refused_or_read) {
  for (std::size_t size = 0; size < nested_pickle.size(); ++size) {
    expect_error(
        ErrorKind::corrupt, [&] { value_of_pickle(nested_pickle.substr(0, size)); }, "pickle");
  }
  for (const std::string& pickle :
       {"\x80\x04."s, "\x80\x04NN."s, "\x80\x04t."s, "\x80\x04(N."s, "\x80\x04h\x05."s,
        "\x80\x04]u."s, "\x80\x04(N"s + "d."s, "\x80\x04NNs."s, "\x80\x04\x93."s,
        "\x80\x04NN\x93."s, "\x80\x04]NR."s, "\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\xff."s}) {
    expect_error(
        ErrorKind::corrupt, [&] { value_of_pickle(pickle); }, "pickle");
  }
  const std::uint64_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 50'000; ++i) {
    std::string damaged = nested_pickle;
    for (std::size_t count = 1 + random() % 3; count > 0; --count)
      damaged[2 + random() % (damaged.size() - 2)] = static_cast<char>(random());
    try {
      const std::string value = value_of_pickle(damaged);
      for (ValueReader reader(value); !reader.done();) reader.next();
    } catch (const Error& error) {
      EXPECT_NE(error.kind(), ErrorKind::unavailable) << error.what();
    }
  }
}

}  // namespace
}  // namespace whycache
