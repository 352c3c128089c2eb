// Typed values: what programs in C++ and Python, and the command line, read alike.
//
// A value that begins with the two bytes C1 01 is typed: exactly one MessagePack object follows.
// Every other value is plain bytes. docs/formats/value.md defines the bytes.
//
//   cache.set("limits", whycache::encode_value(std::map<std::string, int>{{"upload", 5}}));
//   auto limits = whycache::decode_value<std::map<std::string, int>>(*cache.get("limits"));
//
// encode_value() and decode_value() convert whole C++ values. ValueWriter and ValueReader write and
// read any value piece by piece, and copy no bytes but those that they write. Objects of this
// header belong to one thread at a time, and the functions can be called by any thread.
#pragma once

#include <array>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <ranges>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include <whycache/error.h>
#include <whycache/types.h>

namespace whycache {

// The bytes that a typed value begins with.
inline constexpr std::string_view typed_value_prefix{"\xc1\x01", 2};

inline bool is_typed_value(std::string_view value) noexcept {
  return value.starts_with(typed_value_prefix);
}

// How many containers may be inside each other.
inline constexpr std::size_t value_depth_max = 512;

enum class ValueKind : std::uint8_t {
  null,
  boolean,
  integer,           // of -2^63 to 2^63 - 1
  unsigned_integer,  // of 2^63 to 2^64 - 1
  big_integer,       // all others
  floating,
  text,
  surrogate_text,  // a Python str that contains surrogates, and therefore is not valid UTF-8
  bytes,
  decimal,
  uuid,
  date,
  time,
  datetime,
  timedelta,
  // Containers. The keys of a dict and the elements of sets are not, and do not contain, lists,
  // dicts or sets.
  list,
  tuple,
  dict,
  set,
  frozenset,
  end,  // of a container
};

// Returns the name of the kind, as "integer" or "datetime".
WHYCACHE_API const char* to_string(ValueKind kind) noexcept;

struct ValueDate {
  std::uint16_t year = 1;  // 1 to 9999, of the proleptic Gregorian calendar
  std::uint8_t month = 1;
  std::uint8_t day = 1;

  friend bool operator==(const ValueDate&, const ValueDate&) = default;
};

// What a time or datetime says of its time zone.
struct ValueZone {
  enum class Kind : std::uint8_t {
    none,    // local time of a place that the value does not name
    offset,  // a fixed offset, which may have a name
    named,   // a zone of the IANA database, such as "Europe/Berlin"
  };

  Kind kind = Kind::none;
  std::int64_t offset_microseconds = 0;  // east of UTC, less than 24 hours; of Kind::offset
  std::string_view name;                 // at most 255 bytes

  friend bool operator==(const ValueZone&, const ValueZone&) = default;
};

struct ValueTime {
  std::uint8_t hour = 0;
  std::uint8_t minute = 0;
  std::uint8_t second = 0;  // at most 59
  std::uint32_t microsecond = 0;
  bool fold = false;  // the second of two equal local times, when clocks are set back
  ValueZone zone;

  friend bool operator==(const ValueTime&, const ValueTime&) = default;
};

// A difference between two times: the sum of its members.
struct ValueTimedelta {
  std::int32_t days = 0;           // -999,999,999 to 999,999,999
  std::uint32_t seconds = 0;       // at most 86,399
  std::uint32_t microseconds = 0;  // at most 999,999

  friend bool operator==(const ValueTimedelta&, const ValueTimedelta&) = default;
};

struct ValueDatetime {
  ValueDate date;
  ValueTime time;

  friend bool operator==(const ValueDatetime&, const ValueDatetime&) = default;
};

// One object of a value, the begin of a container, or the end of one.
struct ValueToken {
  ValueKind kind = ValueKind::null;
  bool boolean = false;                // of a boolean
  bool is_ascii = false;               // of a text: each of its bytes is below 128
  std::int64_t integer = 0;            // of an integer
  std::uint64_t unsigned_integer = 0;  // of an unsigned_integer
  double floating = 0;                 // of a floating
  // Of a text, and bytes: the bytes. Of a surrogate_text: UTF-8 in which surrogates are encoded
  // like other code points. Of a big_integer: two's complement, most significant byte first. Of a
  // decimal: its digits, as "-1.50", "1E+9", "NaN". Of a uuid: 16 bytes.
  std::string_view bytes;
  // Of a list, tuple, set or frozenset: the number of elements. Of a dict: the number of pairs.
  std::size_t count = 0;
  ValueDate date;            // of a date, and a datetime
  ValueTime time;            // of a time, and a datetime
  ValueTimedelta timedelta;  // of a timedelta

  bool is_container() const noexcept {
    return kind >= ValueKind::list && kind <= ValueKind::frozenset;
  }
};

// Reads a value, front to back, without copying: views in tokens point into the value, which must
// stay in place meanwhile. A plain value is read as one token of kind bytes.
//
//   whycache::ValueReader reader(*view.get("limits"));
//   reader.expect(whycache::ValueKind::dict);
//   while (reader.next().kind != whycache::ValueKind::end) {
//     std::string name(reader.token().bytes);
//     std::int64_t limit = reader.expect(whycache::ValueKind::integer).integer;
//   }
//
// The bytes are untrusted. Each call checks what it reads, in time in proportion to its bytes, and
// allocates no memory. A value that passes can be encoded again by ValueWriter, but may have keys
// or elements that are equal: comparing them is up to the caller.
class WHYCACHE_API ValueReader {
 public:
  explicit ValueReader(std::string_view value) noexcept;
  ValueReader(const ValueReader&) = delete;
  ValueReader& operator=(const ValueReader&) = delete;

  // Reads the next token, which is valid until the next call. After a container follow as many
  // objects as it has elements (for a dict: each key and its value in turn), and a token of kind
  // end. Throws Error(corrupt) if the bytes are not those of a value, Error(invalid) if done(). No
  // other function may be called after an exception.
  const ValueToken& next();
  // Reads the next token. Throws Error(invalid) if it is of another kind; otherwise as next().
  const ValueToken& expect(ValueKind kind);
  // Reads to the end of the container that the last token begins. Does nothing if it begins none.
  void skip();

  // Returns the last token.
  const ValueToken& token() const noexcept { return token_; }
  // Returns whether the value was read to its end.
  bool done() const noexcept { return done_; }
  // Returns the number of containers that have begun and not ended.
  std::size_t depth() const noexcept { return depth_; }

 private:
  struct ReadFrame {
    const char* outer_end;    // end_ outside of this container
    std::uint32_t remaining;  // objects to read
    bool is_dict;
    bool is_hashable;   // all that is in it must be
    bool is_extension;  // ends where its bytes end
  };

  void read_object(bool hashable);
  void read_array(std::uint64_t count, bool hashable);
  void read_dict(std::uint64_t count, bool hashable);
  void read_text(std::uint64_t size);
  void read_extension(std::uint64_t size, bool hashable);
  void read_sequence_extension(ValueKind kind, const char* payload_end, bool hashable);
  void read_datetime(std::string_view payload);
  void read_time(std::string_view payload);
  void read_zone(std::string_view payload);
  void enter(ValueKind kind, std::uint64_t count, bool hashable, const char* end);
  const char* take(std::uint64_t size);
  std::uint64_t take_number(std::size_t size);
  [[noreturn]] void fail(std::string_view why) const;
  [[noreturn]] void fail(std::string_view why, std::string_view name, std::uint64_t value) const;

  const char* begin_;
  const char* at_;
  const char* end_;  // of the value, or of the extension that is being read
  ValueToken token_;
  std::size_t depth_ = 0;
  bool is_plain_;
  bool done_ = false;
  std::array<ReadFrame, value_depth_max> frames_;
};

// Writes one typed value, in its one canonical form.
//
//   whycache::ValueWriter writer;
//   writer.begin_dict(1);
//   writer.text("upload");
//   writer.integer(5);
//   writer.end();
//   cache.set("limits", writer.finish());
//
// Throws Error(invalid) if the calls or their arguments make no value, Error(limit) if the value
// has more than value_depth_max containers inside each other, or exceeds value_bytes_max. After an
// exception only clear() may be called.
class WHYCACHE_API ValueWriter {
 public:
  ValueWriter() { clear(); }

  void null();
  void boolean(bool boolean);
  void integer(std::int64_t integer);
  void unsigned_integer(std::uint64_t integer);
  // Two's complement, most significant byte first, of any size above 0.
  void big_integer(std::string_view bytes);
  void floating(double number);
  // Valid UTF-8.
  void text(std::string_view text);
  // UTF-8 that may contain encoded surrogates.
  void surrogate_text(std::string_view text);
  void bytes(std::string_view bytes);
  // As ValueToken::bytes has it.
  void decimal(std::string_view digits);
  void uuid(const Uuid& uuid);
  void date(const ValueDate& date);
  void time(const ValueTime& time);
  void datetime(const ValueDate& date, const ValueTime& time);
  void timedelta(const ValueTimedelta& timedelta);

  // Begin a container of `count` elements, or pairs. The elements follow, then end(). A set must
  // not have equal elements, nor a dict equal keys. Elements of a set may come in any order.
  void begin_list(std::size_t count);
  void begin_tuple(std::size_t count);
  void begin_dict(std::size_t count);
  void begin_set(std::size_t count);
  void begin_frozenset(std::size_t count);
  void end();

  // Writes what a reader has read: an object, the begin or the end of a container.
  void write(const ValueToken& token);

  // Returns the encoded value. The writer must be cleared before it writes another one.
  std::string finish();
  // Starts again. Keeps the memory for the next value.
  void clear();

 private:
  struct WriteFrame {
    std::size_t begin;      // of the header
    std::size_t elements;   // in element_offsets_, of this container
    std::size_t remaining;  // objects to write
    ValueKind kind;
    bool is_hashable;
  };

  void begin_object(ValueKind kind);
  void begin_container(ValueKind kind, std::size_t count);
  void begin_extension(std::uint8_t number, std::size_t size);
  void sort_elements(const WriteFrame& frame);
  void close_extension(std::size_t begin, std::uint8_t number);
  void append_number(std::uint64_t number, std::size_t size);
  void append_header(std::size_t size, std::uint8_t short_code, std::size_t short_max,
                     std::uint8_t code, bool has_8_bits);
  void append_time(const ValueTime& time);
  void append_zone(const ValueZone& zone);
  void check_size() const;

  std::string bytes_;
  std::vector<WriteFrame> frames_;
  std::vector<std::size_t> element_offsets_;
  std::vector<std::pair<std::size_t, std::size_t>> element_ranges_;
  std::string sorted_;
  bool has_object_ = false;
};

// Bytes as a C++ value, where a string is text.
struct ValueBytes {
  std::string bytes;

  friend auto operator<=>(const ValueBytes&, const ValueBytes&) = default;
};

// A decimal number as a C++ value: its digits, as ValueToken::bytes has them.
struct ValueDecimal {
  std::string digits;

  friend bool operator==(const ValueDecimal&, const ValueDecimal&) = default;
};

namespace detail {

template <typename T>
inline constexpr bool is_optional = false;
template <typename T>
inline constexpr bool is_optional<std::optional<T>> = true;

template <typename T>
concept ValueInteger = std::integral<T> && sizeof(T) <= 8 && !std::same_as<T, bool> &&
                       !std::same_as<T, char> && !std::same_as<T, wchar_t> &&
                       !std::same_as<T, char8_t> && !std::same_as<T, char16_t> &&
                       !std::same_as<T, char32_t>;
// double and float: a long double would lose digits.
template <typename T>
concept ValueFloating = std::same_as<T, double> || std::same_as<T, float>;
template <typename T>
concept ValueText = std::convertible_to<const T&, std::string_view>;
template <typename T>
concept ValueMap = std::ranges::sized_range<const T> && requires {
  typename T::key_type;
  typename T::mapped_type;
};
template <typename T>
concept ValueSet = std::ranges::sized_range<const T> && !ValueMap<T> && requires {
  typename T::key_type;
};
template <typename T>
concept ValueList = std::ranges::sized_range<const T> && !ValueMap<T> && !ValueSet<T> &&
                    !ValueText<T> && !std::same_as<T, Uuid>;
template <typename T>
concept ValueTuple = !std::ranges::range<T> && !std::same_as<T, ValueBytes> && requires {
  std::tuple_size<T>::value;
};

[[noreturn]] WHYCACHE_API void throw_other_kind(const ValueToken& token, const char* expected);
[[noreturn]] WHYCACHE_API void throw_other_count(const ValueToken& token, std::size_t expected);
[[noreturn]] WHYCACHE_API void throw_equal_keys();
[[noreturn]] WHYCACHE_API void throw_beyond_type(std::size_t bits, bool is_signed);

template <typename T>
void write_value(ValueWriter& writer, const T& value) {
  if constexpr (std::same_as<T, bool>) {
    writer.boolean(value);
  } else if constexpr (std::same_as<T, std::nullptr_t> || std::same_as<T, std::nullopt_t>) {
    writer.null();
  } else if constexpr (ValueInteger<T> && std::is_signed_v<T>) {
    writer.integer(value);
  } else if constexpr (ValueInteger<T>) {
    writer.unsigned_integer(value);
  } else if constexpr (ValueFloating<T>) {
    writer.floating(value);
  } else if constexpr (std::same_as<T, ValueBytes>) {
    writer.bytes(value.bytes);
  } else if constexpr (std::same_as<T, ValueDate>) {
    writer.date(value);
  } else if constexpr (std::same_as<T, ValueTime>) {
    writer.time(value);
  } else if constexpr (std::same_as<T, ValueDatetime>) {
    writer.datetime(value.date, value.time);
  } else if constexpr (std::same_as<T, ValueTimedelta>) {
    writer.timedelta(value);
  } else if constexpr (std::same_as<T, ValueDecimal>) {
    writer.decimal(value.digits);
  } else if constexpr (std::same_as<T, Uuid>) {
    writer.uuid(value);
  } else if constexpr (ValueText<T>) {
    writer.text(value);
  } else if constexpr (is_optional<T>) {
    if (value) {
      write_value(writer, *value);
    } else {
      writer.null();
    }
  } else if constexpr (ValueMap<T>) {
    writer.begin_dict(std::ranges::size(value));
    for (const auto& [key, mapped] : value) {
      write_value<typename T::key_type>(writer, key);
      write_value<typename T::mapped_type>(writer, mapped);
    }
    writer.end();
  } else if constexpr (ValueSet<T> || ValueList<T>) {
    ValueSet<T> ? writer.begin_set(std::ranges::size(value))
                : writer.begin_list(std::ranges::size(value));
    for (const std::ranges::range_value_t<T>& element : value) write_value(writer, element);
    writer.end();
  } else {
    static_assert(ValueTuple<T>, "a value of this type cannot be encoded: see encode_value()");
    writer.begin_tuple(std::tuple_size_v<T>);
    std::apply([&](const auto&... elements) { (write_value(writer, elements), ...); }, value);
    writer.end();
  }
}

// Reads the value of which the reader has read the first token.
template <typename T>
T read_value(ValueReader& reader);

template <typename T>
T read_next(ValueReader& reader) {
  reader.next();
  return read_value<T>(reader);
}

template <ValueInteger T>
T read_integer(const ValueToken& token) {
  if (token.kind == ValueKind::integer && std::in_range<T>(token.integer))
    return static_cast<T>(token.integer);
  if (token.kind == ValueKind::unsigned_integer && std::in_range<T>(token.unsigned_integer))
    return static_cast<T>(token.unsigned_integer);
  if (token.kind > ValueKind::big_integer || token.kind < ValueKind::integer)
    throw_other_kind(token, "integer");
  throw_beyond_type(sizeof(T) * 8, std::is_signed_v<T>);
}

template <typename T>
T read_range(ValueReader& reader) {
  constexpr bool is_map = ValueMap<T>;
  const ValueToken token = reader.token();
  const bool fits = is_map ? token.kind == ValueKind::dict
                    : ValueSet<T>
                        ? token.kind == ValueKind::set || token.kind == ValueKind::frozenset
                        : token.kind == ValueKind::list || token.kind == ValueKind::tuple;
  if (!fits) throw_other_kind(token, is_map ? "dict" : ValueSet<T> ? "set" : "list");
  T range{};
  if constexpr (is_map) {
    for (std::size_t i = 0; i < token.count; ++i) {
      auto key = read_next<typename T::key_type>(reader);
      range.emplace(std::move(key), read_next<typename T::mapped_type>(reader));
    }
  } else {
    for (std::size_t i = 0; i < token.count; ++i)
      range.insert(range.end(), read_next<typename T::value_type>(reader));
  }
  if ((is_map || ValueSet<T>)&&range.size() != token.count) throw_equal_keys();
  reader.next();
  return range;
}

template <typename T>
T read_value(ValueReader& reader) {
  const ValueToken& token = reader.token();
  const auto check_kind = [&](ValueKind kind) {
    if (token.kind != kind) throw_other_kind(token, to_string(kind));
  };
  if constexpr (std::same_as<T, bool>) {
    check_kind(ValueKind::boolean);
    return token.boolean;
  } else if constexpr (ValueInteger<T>) {
    return read_integer<T>(token);
  } else if constexpr (ValueFloating<T>) {
    check_kind(ValueKind::floating);
    return static_cast<T>(token.floating);
  } else if constexpr (std::same_as<T, std::string> || std::same_as<T, std::string_view>) {
    check_kind(ValueKind::text);
    return T(token.bytes);
  } else if constexpr (std::same_as<T, ValueBytes>) {
    check_kind(ValueKind::bytes);
    return T{std::string(token.bytes)};
  } else if constexpr (std::same_as<T, Uuid>) {
    check_kind(ValueKind::uuid);
    Uuid uuid{};
    token.bytes.copy(reinterpret_cast<char*>(uuid.data()), uuid.size());
    return uuid;
  } else if constexpr (std::same_as<T, ValueDate>) {
    check_kind(ValueKind::date);
    return token.date;
  } else if constexpr (std::same_as<T, ValueTime>) {
    check_kind(ValueKind::time);
    return token.time;
  } else if constexpr (std::same_as<T, ValueDatetime>) {
    check_kind(ValueKind::datetime);
    return {token.date, token.time};
  } else if constexpr (std::same_as<T, ValueTimedelta>) {
    check_kind(ValueKind::timedelta);
    return token.timedelta;
  } else if constexpr (std::same_as<T, ValueDecimal>) {
    check_kind(ValueKind::decimal);
    return T{std::string(token.bytes)};
  } else if constexpr (is_optional<T>) {
    if (token.kind == ValueKind::null) return std::nullopt;
    return read_value<typename T::value_type>(reader);
  } else if constexpr (ValueMap<T> || ValueSet<T> || ValueList<T>) {
    return read_range<T>(reader);
  } else {
    static_assert(ValueTuple<T>, "a value of this type cannot be decoded: see decode_value()");
    if (token.kind != ValueKind::tuple && token.kind != ValueKind::list)
      throw_other_kind(token, "tuple");
    if (token.count != std::tuple_size_v<T>) throw_other_count(token, std::tuple_size_v<T>);
    // An initializer list in braces is evaluated in order.
    T tuple = [&]<std::size_t... i>(std::index_sequence<i...>) {
      return T{read_next<std::tuple_element_t<i, T>>(reader)...};
    }
    (std::make_index_sequence<std::tuple_size_v<T>>());
    reader.next();
    return tuple;
  }
}

}  // namespace detail

// Returns the encoded value. The types are:
//
//   bool, integers, double, float      std::nullptr_t and an empty std::optional (null)
//   strings (text, valid UTF-8)        std::map and the like (dict)
//   ValueBytes, ValueDecimal, Uuid     std::set and the like (set)
//   ValueDate, ValueTime               std::vector and other ranges (list)
//   ValueDatetime, ValueTimedelta      std::tuple, std::pair (tuple)
//
// and any of them in containers.
//
// Throws as ValueWriter.
template <typename T>
std::string encode_value(const T& value) {
  ValueWriter writer;
  detail::write_value<std::decay_t<const T&>>(writer, value);
  return writer.finish();
}

// Returns a value as one of the types of encode_value(). A list can be read as a tuple, and a tuple
// as a list; null as std::optional only. A std::string_view, also that of a zone, refers to the
// bytes of `value`.
// Throws Error(invalid) if the value has another type, or a number that does not fit into T, or
// keys that are equal in it; Error(corrupt) if the bytes are not those of a value.
template <typename T>
T decode_value(std::string_view value) {
  ValueReader reader(value);
  return detail::read_next<T>(reader);
}

}  // namespace whycache
