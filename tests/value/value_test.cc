// Typed values: every kind survives a round trip in one canonical form, and bytes that are not a
// value are refused. nlohmann-json is the independent MessagePack library.
#include <whycache/value.h>

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <set>
#include <string>
#include <unordered_map>
#include <vector>

#include "support/thrown_error.h"

namespace whycache {
namespace {

using nlohmann::json;
using testing::expect_error;

std::string hex(std::string_view bytes) {
  std::string digits;
  for (const char byte : bytes) {
    constexpr const char* hex_digits = "0123456789abcdef";
    digits += hex_digits[static_cast<unsigned char>(byte) >> 4];
    digits += hex_digits[static_cast<unsigned char>(byte) & 15];
  }
  return digits;
}

std::string from_hex(const std::string& digits) {
  std::string bytes;
  for (std::size_t i = 0; i + 1 < digits.size(); i += 2)
    bytes += static_cast<char>(std::stoi(digits.substr(i, 2), nullptr, 16));
  return bytes;
}

// A typed value of the object whose bytes are given in hexadecimal.
std::string typed(const std::string& object) { return "\xc1\x01" + from_hex(object); }

std::string written(auto&& write) {
  ValueWriter writer;
  write(writer);
  return writer.finish();
}

// Reads a value and writes it again.
std::string copied(std::string_view value) {
  ValueReader reader(value);
  ValueWriter writer;
  while (!reader.done()) writer.write(reader.next());
  return writer.finish();
}

void read_all(std::string_view value) {
  for (ValueReader reader(value); !reader.done();) reader.next();
}

void expect_corrupt(std::string_view value, std::string_view word) {
  expect_error(
      ErrorKind::corrupt, [&] { read_all(value); }, word, "offset=");
}

TEST(Value, plain_value_reads_as_its_bytes) {
  for (const std::string& value :
       {std::string(), std::string("yes"), std::string("\xc1"), std::string("\xc1\x02yes")}) {
    ValueReader reader(value);
    EXPECT_EQ(reader.next().kind, ValueKind::bytes);
    EXPECT_EQ(reader.token().bytes, value);
    EXPECT_TRUE(reader.done());
    expect_error(
        ErrorKind::invalid, [&] { reader.next(); }, "no more");
    EXPECT_EQ(decode_value<ValueBytes>(value).bytes, value);
  }
}

TEST(Value, integers_have_the_shortest_form) {
  constexpr std::int64_t min = std::numeric_limits<std::int64_t>::min();
  constexpr std::uint64_t max = std::numeric_limits<std::uint64_t>::max();
  const std::vector<std::pair<std::int64_t, std::string>> integers{
      {0, "00"},
      {127, "7f"},
      {128, "cc80"},
      {255, "ccff"},
      {256, "cd0100"},
      {65535, "cdffff"},
      {65536, "ce00010000"},
      {4294967295, "ceffffffff"},
      {-1, "ff"},
      {-32, "e0"},
      {-33, "d0df"},
      {-128, "d080"},
      {-129, "d1ff7f"},
      {-32768, "d18000"},
      {-32769, "d2ffff7fff"},
      {-2147483648, "d280000000"},
      {4294967296, "cf0000000100000000"},
      {-2147483649, "d3ffffffff7fffffff"},
      {min, "d38000000000000000"}};
  for (const auto& [integer, bytes] : integers) {
    EXPECT_EQ(hex(encode_value(integer)), "c101" + bytes);
    EXPECT_EQ(decode_value<std::int64_t>(typed(bytes)), integer);
  }
  EXPECT_EQ(hex(encode_value(max)), "c101cfffffffffffffffff");
  EXPECT_EQ(decode_value<std::uint64_t>(encode_value(max)), max);
}

TEST(Value, integers_beyond_64_bits_have_the_shortest_form) {
  const auto big = [](const std::string& digits) {
    return hex(written([&](ValueWriter& writer) { writer.big_integer(from_hex(digits)); }));
  };
  EXPECT_EQ(big("010000000000000000"), "c101c70901010000000000000000");
  EXPECT_EQ(big("0000010000000000000000"), "c101c70901010000000000000000");
  EXPECT_EQ(big("ff7fffffffffffffff"), "c101c70901ff7fffffffffffffff");
  // These fit into 64 bits.
  EXPECT_EQ(big("00ffffffffffffffff"), "c101cfffffffffffffffff");
  EXPECT_EQ(big("ffff8000000000000000"), "c101d38000000000000000");
  EXPECT_EQ(big("00"), "c10100");
  EXPECT_EQ(big("ff"), "c101ff");
  EXPECT_EQ(big("0080"), "c101cc80");
  expect_error(ErrorKind::invalid, [&] { big(""); });
  expect_corrupt(typed("c709010080000000000000"), "cut short");
  expect_corrupt(typed("c70901008000000000000000"), "extension");
  expect_corrupt(typed("c70901ff8000000000000000"), "extension");
  expect_corrupt(typed("c70a0100000100000000000000"), "extension");
  expect_corrupt(typed("d7018000000000000000"), "extension");
}

TEST(Value, floating_keeps_every_bit) {
  for (const double number : {0.0, -0.0, 1.5, std::numeric_limits<double>::infinity(),
                              -std::numeric_limits<double>::denorm_min()}) {
    const auto decoded = decode_value<double>(encode_value(number));
    EXPECT_EQ(std::bit_cast<std::uint64_t>(decoded), std::bit_cast<std::uint64_t>(number));
  }
  const double nan = std::bit_cast<double>(std::uint64_t{0xfff8'0000'dead'beef});
  EXPECT_EQ(std::bit_cast<std::uint64_t>(decode_value<double>(encode_value(nan))),
            std::bit_cast<std::uint64_t>(nan));
  EXPECT_EQ(decode_value<double>(typed("ca3fc00000")), 1.5);
}

TEST(Value, containers_of_all_sizes_survive_a_round_trip) {
  for (const std::size_t count : {0, 1, 15, 16, 255, 256, 65535, 65536}) {
    std::vector<int> numbers(count);
    std::map<int, std::string> names;
    for (std::size_t i = 0; i < count; ++i) {
      numbers[i] = static_cast<int>(i * 7919);
      names[numbers[i]] = std::to_string(i);
    }
    const std::set<int> number_set(numbers.begin(), numbers.end());
    EXPECT_EQ(decode_value<std::vector<int>>(encode_value(numbers)), numbers);
    EXPECT_EQ((decode_value<std::map<int, std::string>>(encode_value(names))), names);
    EXPECT_EQ(decode_value<std::set<int>>(encode_value(number_set)), number_set);
    EXPECT_EQ(copied(encode_value(number_set)), encode_value(number_set));
    const std::string text(count, 'x');
    EXPECT_EQ(decode_value<std::string>(encode_value(text)), text);
    EXPECT_EQ(decode_value<ValueBytes>(encode_value(ValueBytes{text})).bytes, text);
  }
}

TEST(Value, cpp_types_nest) {
  using Inner = std::tuple<std::string, std::optional<double>, std::vector<bool>>;
  using Outer = std::unordered_map<std::string, std::vector<Inner>>;
  const Outer outer{{"a", {{"x", 1.5, {true, false}}, {"grün", std::nullopt, {}}}}, {"", {}}};
  EXPECT_EQ(decode_value<Outer>(encode_value(outer)), outer);
  EXPECT_EQ(hex(encode_value(std::pair<int, const char*>(1, "a"))), "c101d6029201a161");
  EXPECT_EQ(hex(encode_value("text")), "c101a474657874");
  EXPECT_EQ(hex(encode_value(nullptr)), "c101c0");
  EXPECT_EQ((decode_value<std::pair<int, int>>(typed("920102"))), std::pair(1, 2));
  const std::string value = encode_value("text");
  EXPECT_EQ(decode_value<std::string_view>(value).data(), value.data() + 3);
}

TEST(Value, sets_are_sorted_by_their_bytes) {
  const auto set_of = [](const std::vector<std::string>& texts) {
    return written([&](ValueWriter& writer) {
      writer.begin_frozenset(texts.size());
      for (const std::string& text : texts) writer.text(text);
      writer.end();
    });
  };
  EXPECT_EQ(hex(set_of({"b", "aa", "a"})), "c101d70493a161a162a26161");
  EXPECT_EQ(set_of({"a", "b", "aa"}), set_of({"aa", "b", "a"}));
  const auto nested = [](bool reversed) {
    return written([&](ValueWriter& writer) {
      writer.begin_set(2);
      for (const int first : {reversed ? 3 : 1, reversed ? 1 : 3}) {
        writer.begin_frozenset(2);
        writer.integer(reversed ? first + 1 : first);
        writer.integer(reversed ? first : first + 1);
        writer.end();
      }
      writer.end();
    });
  };
  EXPECT_EQ(nested(true), nested(false));
}

TEST(Value, times_survive_a_round_trip) {
  const ValueDate date{2024, 2, 29};
  const ValueTime utc{23, 59, 59, 999'999, true, {ValueZone::Kind::offset, 0, {}}};
  const ValueTime berlin{0, 0, 0, 0, false, {ValueZone::Kind::named, 0, "Europe/Berlin"}};
  const ValueTime named{1, 2, 3, 4, false, {ValueZone::Kind::offset, -3'600'000'001, "CET"}};
  for (const ValueTime& time : {ValueTime{}, utc, berlin, named}) {
    const std::string datetime = encode_value(ValueDatetime{date, time});
    EXPECT_EQ(decode_value<ValueDatetime>(datetime), (ValueDatetime{date, time}));
    const std::string alone = encode_value(time);
    EXPECT_EQ(decode_value<ValueTime>(alone), time);
  }
  EXPECT_EQ(decode_value<ValueDate>(encode_value(date)), date);
  EXPECT_EQ(hex(encode_value(date)), "c101d60607e8021d");
  for (const ValueTimedelta timedelta :
       {ValueTimedelta{}, ValueTimedelta{-1, 86'399, 999'999}, ValueTimedelta{999'999'999, 0, 1},
        ValueTimedelta{-999'999'999, 0, 0}})
    EXPECT_EQ(decode_value<ValueTimedelta>(encode_value(timedelta)), timedelta);
}

TEST(Value, invalid_times_are_refused) {
  const std::vector<ValueDate> dates{{0, 1, 1},     {10000, 1, 1}, {2023, 0, 1},  {2023, 13, 1},
                                     {2023, 2, 29}, {1900, 2, 29}, {2023, 4, 31}, {2023, 1, 0}};
  for (const ValueDate& date : dates) {
    expect_error(ErrorKind::invalid, [&] { encode_value(date); });
    std::string bytes = encode_value(ValueDate{});
    bytes.replace(4, 4,
                  {static_cast<char>(date.year >> 8), static_cast<char>(date.year),
                   static_cast<char>(date.month), static_cast<char>(date.day)});
    expect_corrupt(bytes, "extension");
  }
  const auto zone = [](ValueZone::Kind kind, std::int64_t offset, std::string_view name) {
    return ValueTime{0, 0, 0, 0, false, {kind, offset, name}};
  };
  const std::string long_name(256, 'x');
  for (const ValueTime& time :
       {ValueTime{24}, ValueTime{0, 60}, ValueTime{0, 0, 60}, ValueTime{0, 0, 0, 1'000'000},
        zone(ValueZone::Kind::none, 1, ""), zone(ValueZone::Kind::none, 0, "x"),
        zone(ValueZone::Kind::offset, 86'400'000'000, ""),
        zone(ValueZone::Kind::offset, -86'400'000'000, ""),
        zone(ValueZone::Kind::offset, 0, long_name), zone(ValueZone::Kind::offset, 0, "\xff"),
        zone(ValueZone::Kind::named, 0, ""), zone(ValueZone::Kind::named, 0, "/etc/passwd"),
        zone(ValueZone::Kind::named, 0, "a/../b"), zone(ValueZone::Kind::named, 0, "a\n"),
        zone(ValueZone::Kind::named, 0, long_name), zone(ValueZone::Kind::named, 1, "UTC")})
    expect_error(ErrorKind::invalid, [&] { encode_value(time); });
  expect_corrupt(typed("c70607000000100000"), "time");            // an unused bit
  expect_corrupt(typed("c7070700000000000003"), "time zone");     // an unknown kind
  expect_corrupt(typed("c7070700000000000001"), "time zone");     // no offset
  expect_corrupt(typed("c7070700000000000002"), "invalid time");  // no name
}

TEST(Value, decimals_follow_their_grammar) {
  for (const char* digits : {"0", "-0", "1.50", "-0.000", "1E+9", "1.5E-999999", "Infinity",
                             "-Infinity", "NaN", "-NaN12", "sNaN", "sNaN7"}) {
    const std::string value = encode_value(ValueDecimal{digits});
    EXPECT_EQ(decode_value<ValueDecimal>(value).digits, digits);
  }
  for (const char* digits : {"", "-", "+1", "1.", ".5", "1e5", "1E5", "1E+", " 1", "1 ", "inf",
                             "nan", "1_0", "0x1", "NaN-1", "--1", "\xd9\xa1"}) {
    expect_error(ErrorKind::invalid, [&] { encode_value(ValueDecimal{digits}); });
    std::string value = encode_value(ValueDecimal{std::string(20, '1')});
    value.resize(5);
    value[3] = static_cast<char>(std::string_view(digits).size());
    value += digits;
    expect_corrupt(value, "extension");
  }
}

TEST(Value, text_is_valid_utf8) {
  const std::vector<std::string> invalid{
      "\x80", "\xc0\x80",     "\xc1\xbf",         "\xe0\x9f\xbf",     "\xed\xa0\x80",
      "\xc3", "\xe2\x82",     "\xf0\x8f\xbf\xbf", "\xf4\x90\x80\x80", "\xf5\x80\x80\x80",
      "\xff", "12345678\xff", "\xe2\x28\xa1"};
  for (const std::string& text : invalid) {
    expect_error(
        ErrorKind::invalid, [&] { encode_value(text); }, "UTF-8");
    expect_corrupt(typed(hex(std::string(1, static_cast<char>(0xa0 + text.size())) + text)),
                   "UTF-8");
  }
  for (const std::string& text :
       std::vector<std::string>{"", "12345678", "grün", "\xed\x9f\xbf", "\xf4\x8f\xbf\xbf"}) {
    const std::string value = encode_value(text);
    ValueReader reader(value);
    EXPECT_EQ(reader.next().bytes, text);
    EXPECT_EQ(reader.token().is_ascii, text.empty() || text[0] == '1');
  }
}

TEST(Value, text_with_surrogates_is_a_kind_of_its_own) {
  const auto surrogates = [](std::string_view text) {
    return written([&](ValueWriter& writer) { writer.surrogate_text(text); });
  };
  const std::string value = surrogates("a\xed\xb2\x80");
  EXPECT_EQ(hex(value), "c101d60b61edb280");
  ValueReader reader(value);
  EXPECT_EQ(reader.next().kind, ValueKind::surrogate_text);
  EXPECT_EQ(surrogates("text"), encode_value("text"));
  expect_error(ErrorKind::invalid, [&] { surrogates("\xff"); });
  expect_corrupt(typed("d60b61626364"), "extension");  // valid UTF-8
}

TEST(Value, keys_are_hashable) {
  expect_corrupt(typed("819001"), "list as key");
  expect_corrupt(typed("818001"), "dict as key");
  expect_corrupt(typed("81d4039000"), "set as key");
  expect_corrupt(typed("d5039190"), "list as key");
  expect_corrupt(typed("81d502919000"), "list as key");  // in a tuple
  expect_corrupt(typed("81d609734e614e00"), "signaling");
  read_all(typed("8100d609734e614e"));                                // a signaling NaN as value
  EXPECT_EQ(hex(copied(typed("81d504910190"))), "c10181d504910190");  // a frozenset as key

  const auto key = [](auto&& write) {
    ValueWriter writer;
    writer.begin_dict(1);
    write(writer);
  };
  expect_error(ErrorKind::invalid, [&] { key([](auto& writer) { writer.begin_list(0); }); });
  expect_error(ErrorKind::invalid, [&] { key([](auto& writer) { writer.begin_set(0); }); });
  expect_error(ErrorKind::invalid, [&] { key([](auto& writer) { writer.decimal("sNaN"); }); });
  expect_error(ErrorKind::invalid, [&] {
    key([](auto& writer) {
      writer.begin_tuple(1);
      writer.begin_list(0);
    });
  });
}

TEST(Value, depth_is_bounded) {
  const auto nested = [](std::size_t depth) {
    return written([&](ValueWriter& writer) {
      for (std::size_t i = 0; i < depth; ++i)
        i % 2 == 0 ? writer.begin_list(1) : writer.begin_tuple(1);
      writer.null();
      for (std::size_t i = 0; i < depth; ++i) writer.end();
    });
  };
  EXPECT_EQ(copied(nested(value_depth_max)), nested(value_depth_max));
  expect_error(
      ErrorKind::limit, [&] { nested(value_depth_max + 1); }, "depth_max=512");
  expect_corrupt(typed("c0").substr(0, 2) + std::string(10'000, '\x91'), "deep");
  expect_corrupt(typed("c0").substr(0, 2) + std::string(value_depth_max + 1, '\x91') + '\xc0',
                 "deep");
}

TEST(Value, sizes_are_bounded) {
  expect_error(ErrorKind::limit, [] { encode_value(std::string(value_bytes_max, 'x')); });
  expect_error(ErrorKind::limit,
               [] { encode_value(std::vector<std::string>(20, std::string(1 << 20, 'x'))); });
  encode_value(std::string(value_bytes_max - 7, 'x'));
  expect_corrupt(std::string(typed_value_prefix) + std::string(value_bytes_max, '\0'), "too long");
  // Counts that exceed the bytes.
  for (const char* bytes : {"ddffffffff", "dfffffffff", "dc000201", "de000101", "92c0", "8101"})
    expect_corrupt(typed(bytes), "cut short");
}

TEST(Value, every_cut_and_every_added_byte_is_refused) {
  const std::string value = written([](ValueWriter& writer) {
    writer.begin_dict(3);
    writer.text("key");
    writer.begin_tuple(3);
    writer.decimal("1.50");
    writer.floating(1.5);
    writer.uuid(Uuid{});
    writer.end();
    writer.integer(70'000);
    writer.bytes(std::string(300, 'x'));
    writer.null();
    writer.datetime({}, {});
    writer.end();
  });
  for (std::size_t size = 2; size < value.size(); ++size)
    EXPECT_THROW(read_all(value.substr(0, size)), Error) << size;
  expect_corrupt(value + '\xc0', "after its end");
  expect_corrupt(typed("c0c0"), "after its end");
  expect_corrupt(typed("c7030291c0c0"), "after a sequence");
  expect_corrupt(typed("c7020292c0") + "\xc0", "cut short");  // continues behind the extension
  expect_corrupt(typed("c70002"), "not an array");
  expect_corrupt(typed("d402c0"), "not an array");
  expect_corrupt(typed(""), "cut short");
  expect_corrupt(typed("c1"), "unknown code");
  expect_corrupt(typed("d6ff00000000"), "unknown extension");  // MessagePack's timestamp
  expect_corrupt(typed("d40000"), "unknown extension");
}

TEST(Value, writer_refuses_calls_that_make_no_value) {
  const auto refused = [](auto&& write) {
    expect_error(
        ErrorKind::invalid, [&] { written(write); }, "typed value");
  };
  refused([](ValueWriter&) {});
  refused([](ValueWriter& writer) { writer.end(); });
  refused([](ValueWriter& writer) { writer.begin_list(0); });
  refused([](ValueWriter& writer) {
    writer.null();
    writer.null();
  });
  refused([](ValueWriter& writer) {
    writer.begin_list(1);
    writer.end();
  });
  refused([](ValueWriter& writer) {
    writer.begin_dict(1);
    writer.null();
    writer.end();
  });
  refused([](ValueWriter& writer) {
    writer.begin_list(1);
    writer.null();
    writer.null();
  });
}

TEST(Value, decode_names_what_it_found) {
  const auto refused = [](auto&& decode, const auto&... words) {
    expect_error(ErrorKind::invalid, decode, words...);
  };
  refused([] { decode_value<int>(encode_value("5")); }, "kind=text", "expected=integer");
  refused([] { decode_value<std::int8_t>(encode_value(128)); }, "8 bits");
  refused([] { decode_value<unsigned>(encode_value(-1)); }, "unsigned integer of 32 bits");
  refused([] { decode_value<int>("plain"); }, "kind=bytes");
  refused([] { decode_value<std::pair<int, int>>(encode_value(std::vector{1})); }, "count=1");
  refused([] { decode_value<std::string>(encode_value(nullptr)); }, "kind=null");
  refused([] { decode_value<std::map<int, int>>(typed("8201020103")); }, "equal keys");
  expect_error(ErrorKind::corrupt, [] { decode_value<std::vector<int>>(typed("9201")); });
}

TEST(Value, skip_passes_over_a_container) {
  const std::string value = encode_value(std::pair(std::vector<std::vector<int>>{{1}, {2, 3}}, 5));
  ValueReader reader(value);
  reader.expect(ValueKind::tuple);
  reader.expect(ValueKind::list);
  reader.skip();
  EXPECT_EQ(reader.depth(), 1U);
  EXPECT_EQ(reader.expect(ValueKind::integer).integer, 5);
  reader.skip();
  EXPECT_EQ(reader.next().kind, ValueKind::end);
}

// Random JSON, as nlohmann-json and this library encode and decode it.
class RandomJson {
 public:
  explicit RandomJson(std::uint64_t seed) : random_(seed) {}

  json make(int depth) {
    switch (random_() % (depth > 0 ? 9 : 7)) {
      case 0: return nullptr;
      case 1: return random_() % 2 == 0;
      case 2: return static_cast<std::int64_t>(random_()) >> (random_() % 64);
      case 3: return random_() >> (random_() % 64);
      case 4:
        return std::ldexp(static_cast<double>(random_()), static_cast<int>(random_() % 200) - 100);
      case 5: return text();
      case 6: return json::binary(std::vector<std::uint8_t>(random_() % 300, 7));
      case 7: {
        json list = json::array();
        for (std::size_t i = random_() % 20; i > 0; --i) list.push_back(make(depth - 1));
        return list;
      }
      default: {
        json object = json::object();
        for (std::size_t i = random_() % 20; i > 0; --i) object[text()] = make(depth - 1);
        return object;
      }
    }
  }

 private:
  std::string text() {
    std::string text;
    for (std::size_t i = random_() % 40; i > 0; --i)
      text += random_() % 8 == 0 ? "ü" : std::string(1, static_cast<char>('a' + random_() % 26));
    return text;
  }

  std::mt19937_64 random_;
};

TEST(Value, independent_library_reads_and_writes_the_same_bytes) {
  const std::uint64_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  RandomJson random(seed);
  for (int i = 0; i < 2'000; ++i) {
    const json object = random.make(4);
    std::string bytes(typed_value_prefix);
    json::to_msgpack(object, bytes);
    const std::string copy = copied(bytes);  // canonical: nlohmann writes short floats
    EXPECT_EQ(json::from_msgpack(copy.begin() + 2, copy.end()), object);
    EXPECT_EQ(copied(copy), copy);
    EXPECT_LE(copy.size(), bytes.size() + bytes.size() * 4);
  }
}

TEST(Value, damaged_bytes_are_refused_or_read) {
  const std::uint64_t seed = std::random_device()();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  const std::string value =
      encode_value(std::tuple(1, std::string("text"), std::map<int, double>{{1, 2.0}}, Uuid{},
                              ValueDatetime{}, std::set<std::string>{"a", "b"}));
  for (int i = 0; i < 100'000; ++i) {
    std::string damaged = value;
    for (std::size_t count = 1 + random() % 3; count > 0; --count)
      damaged[2 + random() % (damaged.size() - 2)] = static_cast<char>(random());
    try {
      const std::string copy = copied(damaged);
      EXPECT_EQ(copied(copy), copy);
    } catch (const Error& error) {
      EXPECT_EQ(error.kind(), ErrorKind::corrupt) << error.what();
    }
  }
}

}  // namespace
}  // namespace whycache
