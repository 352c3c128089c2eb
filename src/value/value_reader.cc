#include <bit>
#include <cstring>
#include <limits>

#include <whycache/value.h>

#include "base/bytes.h"
#include "value/format.h"

namespace whycache {
namespace {

template <typename Integer>
Integer load_big_endian(const char* from) noexcept {
  auto number = load_little_endian<std::make_unsigned_t<Integer>>(from);
  if constexpr (sizeof number == 2) number = __builtin_bswap16(number);
  if constexpr (sizeof number == 4) number = __builtin_bswap32(number);
  if constexpr (sizeof number == 8) number = __builtin_bswap64(number);
  return static_cast<Integer>(number);
}

ValueDate load_date(const char* from) noexcept {
  return {load_big_endian<std::uint16_t>(from), static_cast<std::uint8_t>(from[2]),
          static_cast<std::uint8_t>(from[3])};
}

}  // namespace

const char* to_string(ValueKind kind) noexcept {
  constexpr std::array<const char*, 21> names{
      "null",        "boolean",  "integer",   "unsigned_integer",
      "big_integer", "floating", "text",      "surrogate_text",
      "bytes",       "decimal",  "uuid",      "date",
      "time",        "datetime", "timedelta", "list",
      "tuple",       "dict",     "set",       "frozenset",
      "end"};
  const auto number = static_cast<std::size_t>(kind);
  return number < names.size() ? names[number] : "unknown";
}

// The frames are not initialized: depth_ tells which are in use.
// NOLINTNEXTLINE(cppcoreguidelines-pro-type-member-init,hicpp-member-init)
ValueReader::ValueReader(std::string_view value) noexcept
    : begin_(value.data()),
      at_(begin_),
      end_(begin_ + value.size()),
      is_plain_(!is_typed_value(value)) {}

const ValueToken& ValueReader::next() {
  if (done_) throw Error(ErrorKind::invalid, "typed value has no more tokens");
  if (depth_ > 0) {
    ReadFrame& frame = frames_[depth_ - 1];
    if (frame.remaining == 0) {
      if (frame.is_extension && at_ != end_) fail("has bytes after a sequence");
      end_ = frame.outer_end;
      --depth_;
      token_.kind = ValueKind::end;
    } else {
      const bool is_key = frame.is_dict && frame.remaining % 2 == 0;
      --frame.remaining;
      read_object(frame.is_hashable || is_key);
      return token_;
    }
  } else if (is_plain_) {
    token_.kind = ValueKind::bytes;
    token_.bytes = {begin_, static_cast<std::size_t>(end_ - begin_)};
    at_ = end_;
  } else {
    if (end_ - begin_ > static_cast<std::ptrdiff_t>(value_bytes_max))
      fail("too long", "bytes", static_cast<std::uint64_t>(end_ - begin_));
    at_ += typed_value_prefix.size();
    read_object(false);
  }
  if (depth_ == 0) {
    if (at_ != end_) fail("has bytes after its end");
    done_ = true;
  }
  return token_;
}

const ValueToken& ValueReader::expect(ValueKind kind) {
  next();
  if (token_.kind != kind) detail::throw_other_kind(token_, to_string(kind));
  return token_;
}

void ValueReader::skip() {
  if (!token_.is_container()) return;
  for (const std::size_t depth = depth_; depth_ >= depth;) next();
}

const char* ValueReader::take(std::uint64_t size) {
  const auto bytes_left = static_cast<std::uint64_t>(end_ - at_);
  if (size > bytes_left) fail("cut short", "bytes_needed", size);
  const char* const taken = at_;
  at_ += size;
  return taken;
}

std::uint64_t ValueReader::take_number(std::size_t size) {
  const char* const from = take(size);
  switch (size) {
    case 1: return static_cast<std::uint8_t>(*from);
    case 2: return load_big_endian<std::uint16_t>(from);
    case 4: return load_big_endian<std::uint32_t>(from);
    default: return load_big_endian<std::uint64_t>(from);
  }
}

void ValueReader::read_object(bool hashable) {
  const auto code = static_cast<std::uint8_t>(*take(1));
  const auto set_integer = [&](std::int64_t number) {
    token_.kind = ValueKind::integer;
    token_.integer = number;
  };
  if (code < 0x80) return set_integer(code);
  if (code >= 0xe0) return set_integer(static_cast<std::int8_t>(code));
  if (code < 0x90) return read_dict(code & 0x0f, hashable);
  if (code < 0xa0) return read_array(code & 0x0f, hashable);
  if (code < 0xc0) return read_text(code & 0x1f);
  switch (code) {
    case 0xc0: token_.kind = ValueKind::null; return;
    case 0xc2:
    case 0xc3:
      token_.kind = ValueKind::boolean;
      token_.boolean = code == 0xc3;
      return;
    case 0xc4:
    case 0xc5:
    case 0xc6: {
      const std::uint64_t size = take_number(std::size_t{1} << (code - 0xc4));
      token_.kind = ValueKind::bytes;
      token_.bytes = {take(size), static_cast<std::size_t>(size)};
      return;
    }
    case 0xc7:
    case 0xc8:
    case 0xc9: return read_extension(take_number(std::size_t{1} << (code - 0xc7)), hashable);
    case 0xca:
      token_.kind = ValueKind::floating;
      token_.floating = std::bit_cast<float>(static_cast<std::uint32_t>(take_number(4)));
      return;
    case 0xcb:
      token_.kind = ValueKind::floating;
      token_.floating = std::bit_cast<double>(take_number(8));
      return;
    case 0xcc:
    case 0xcd:
    case 0xce:
      return set_integer(static_cast<std::int64_t>(take_number(std::size_t{1} << (code - 0xcc))));
    case 0xcf: {
      const std::uint64_t number = take_number(8);
      if (number <= static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max()))
        return set_integer(static_cast<std::int64_t>(number));
      token_.kind = ValueKind::unsigned_integer;
      token_.unsigned_integer = number;
      return;
    }
    case 0xd0: return set_integer(static_cast<std::int8_t>(take_number(1)));
    case 0xd1: return set_integer(static_cast<std::int16_t>(take_number(2)));
    case 0xd2: return set_integer(static_cast<std::int32_t>(take_number(4)));
    case 0xd3: return set_integer(static_cast<std::int64_t>(take_number(8)));
    case 0xd4:
    case 0xd5:
    case 0xd6:
    case 0xd7:
    case 0xd8: return read_extension(std::uint64_t{1} << (code - 0xd4), hashable);
    case 0xd9:
    case 0xda:
    case 0xdb: return read_text(take_number(std::size_t{1} << (code - 0xd9)));
    case 0xdc:
    case 0xdd: return read_array(take_number(code == 0xdc ? 2 : 4), hashable);
    case 0xde:
    case 0xdf: return read_dict(take_number(code == 0xde ? 2 : 4), hashable);
    default: fail("has an unknown code", "code", code);
  }
}

void ValueReader::read_array(std::uint64_t count, bool hashable) {
  if (hashable) fail("has a list as key or element of a set");
  enter(ValueKind::list, count, false, nullptr);
}

void ValueReader::read_dict(std::uint64_t count, bool hashable) {
  if (hashable) fail("has a dict as key or element of a set");
  enter(ValueKind::dict, count, false, nullptr);
}

// Each object takes a byte or more, so a count that exceeds the bytes is refused before the caller
// allocates memory for that many. `end` is that of an extension.
void ValueReader::enter(ValueKind kind, std::uint64_t count, bool hashable, const char* end) {
  const std::uint64_t objects = kind == ValueKind::dict ? 2 * count : count;
  const char* const outer_end = end_;
  if (end != nullptr) end_ = end;
  if (objects > static_cast<std::uint64_t>(end_ - at_)) fail("cut short", "count", count);
  if (depth_ == value_depth_max) fail("nested too deeply", "depth_max", value_depth_max);
  frames_[depth_++] = {outer_end, static_cast<std::uint32_t>(objects), kind == ValueKind::dict,
                       hashable, end != nullptr};
  token_.kind = kind;
  token_.count = static_cast<std::size_t>(count);
}

void ValueReader::read_text(std::uint64_t size) {
  token_.kind = ValueKind::text;
  token_.bytes = {take(size), static_cast<std::size_t>(size)};
  const TextCheck check = check_value_text(token_.bytes);
  if (check > TextCheck::utf8) fail("has text that is not UTF-8");
  token_.is_ascii = check == TextCheck::ascii;
}

void ValueReader::read_extension(std::uint64_t size, bool hashable) {
  const auto number = static_cast<std::uint8_t>(*take(1));
  const std::string_view payload(take(size), static_cast<std::size_t>(size));
  const auto require = [&](bool holds) {
    if (!holds) fail("has an invalid extension", "number", number);
  };
  token_.bytes = payload;
  switch (static_cast<ValueExtension>(number)) {
    case ValueExtension::big_integer:
      // Above eight bytes; nine may still be an unsigned integer of eight.
      require(size > 8 && without_needless_bytes(payload).size() == size &&
              (size > 9 || payload[0] != '\0'));
      token_.kind = ValueKind::big_integer;
      return;
    case ValueExtension::tuple:
    case ValueExtension::set:
    case ValueExtension::frozenset: {
      const ValueKind kind = number == static_cast<int>(ValueExtension::tuple) ? ValueKind::tuple
                             : number == static_cast<int>(ValueExtension::set)
                                 ? ValueKind::set
                                 : ValueKind::frozenset;
      if (hashable && kind == ValueKind::set) fail("has a set as key or element of a set");
      at_ = payload.data();
      return read_sequence_extension(kind, payload.data() + size, hashable);
    }
    case ValueExtension::datetime: return read_datetime(payload);
    case ValueExtension::date:
      require(size == date_bytes);
      token_.date = load_date(payload.data());
      require(is_valid(token_.date));
      token_.kind = ValueKind::date;
      return;
    case ValueExtension::time:
      read_time(payload);
      token_.kind = ValueKind::time;
      return;
    case ValueExtension::timedelta:
      require(size == timedelta_bytes);
      token_.timedelta = {load_big_endian<std::int32_t>(payload.data()),
                          load_big_endian<std::uint32_t>(payload.data() + 4),
                          load_big_endian<std::uint32_t>(payload.data() + 8)};
      require(is_valid(token_.timedelta));
      token_.kind = ValueKind::timedelta;
      return;
    case ValueExtension::decimal:
      require(is_valid_decimal(payload));
      if (hashable && is_signaling_decimal(payload)) fail("has a signaling NaN as key");
      token_.kind = ValueKind::decimal;
      return;
    case ValueExtension::uuid:
      require(size == sizeof(Uuid));
      token_.kind = ValueKind::uuid;
      return;
    case ValueExtension::surrogate_text:
      require(check_value_text(payload) == TextCheck::surrogates);
      token_.kind = ValueKind::surrogate_text;
      return;
  }
  fail("has an unknown extension", "number", number);
}

// The payload is one array.
void ValueReader::read_sequence_extension(ValueKind kind, const char* payload_end, bool hashable) {
  const std::string_view payload(at_, static_cast<std::size_t>(payload_end - at_));
  const auto code = payload.empty() ? std::uint8_t{0} : static_cast<std::uint8_t>(payload[0]);
  const std::size_t number_bytes = code == 0xdc ? 2 : code == 0xdd ? 4 : 0;
  if (((code & 0xf0) != 0x90 && number_bytes == 0) || payload.size() < 1 + number_bytes)
    fail("has a sequence that is not an array");
  ++at_;
  const std::uint64_t count = number_bytes == 0 ? code & 0x0f : take_number(number_bytes);
  enter(kind, count, hashable || kind != ValueKind::tuple, payload_end);
}

void ValueReader::read_datetime(std::string_view payload) {
  if (payload.size() < date_bytes) fail("has an invalid datetime");
  token_.date = load_date(payload.data());
  if (!is_valid(token_.date)) fail("has an invalid datetime");
  read_time(payload.substr(date_bytes));
  token_.kind = ValueKind::datetime;
}

void ValueReader::read_time(std::string_view payload) {
  if (payload.size() < time_bytes) fail("has an invalid time");
  const auto byte = [&](std::size_t i) { return static_cast<std::uint8_t>(payload[i]); };
  ValueTime& time = token_.time;
  const std::uint32_t microsecond =
      std::uint32_t{byte(3)} << 16 | std::uint32_t{byte(4)} << 8 | byte(5);
  time.hour = byte(0);
  time.minute = byte(1);
  time.second = byte(2);
  time.microsecond = microsecond & ~fold_bit;
  time.fold = (microsecond & fold_bit) != 0;
  read_zone(payload.substr(time_bytes));
  if (!is_valid(time)) fail("has an invalid time");
}

void ValueReader::read_zone(std::string_view payload) {
  ValueZone& zone = token_.time.zone;
  zone = {};
  if (payload.empty()) return;
  constexpr std::size_t offset_bytes = 8;
  if (payload[0] == zone_is_offset && payload.size() > offset_bytes) {
    zone.kind = ValueZone::Kind::offset;
    zone.offset_microseconds = load_big_endian<std::int64_t>(payload.data() + 1);
    zone.name = payload.substr(1 + offset_bytes);
  } else if (payload[0] == zone_is_named) {
    zone.kind = ValueZone::Kind::named;
    zone.name = payload.substr(1);
  } else {
    fail("has an invalid time zone");
  }
}

void ValueReader::fail(std::string_view why) const {
  throw Error(ErrorKind::corrupt,
              "typed value " + std::string(why) + ": offset=" + std::to_string(at_ - begin_));
}

void ValueReader::fail(std::string_view why, std::string_view name, std::uint64_t value) const {
  throw Error(ErrorKind::corrupt, "typed value " + std::string(why) +
                                      ": offset=" + std::to_string(at_ - begin_) + ' ' +
                                      std::string(name) + '=' + std::to_string(value));
}

namespace detail {

void throw_other_kind(const ValueToken& token, const char* expected) {
  throw Error(ErrorKind::invalid, std::string("value is of another kind: kind=") +
                                      to_string(token.kind) + " expected=" + expected);
}

void throw_other_count(const ValueToken& token, std::size_t expected) {
  throw Error(ErrorKind::invalid, std::string("value has another number of elements: kind=") +
                                      to_string(token.kind) +
                                      " count=" + std::to_string(token.count) +
                                      " expected=" + std::to_string(expected));
}

void throw_equal_keys() {
  throw Error(ErrorKind::invalid, "value has equal keys or elements in this type");
}

void throw_beyond_type(std::size_t bits, bool is_signed) {
  throw Error(ErrorKind::invalid, std::string("value does not fit into ") +
                                      (is_signed ? "an integer" : "an unsigned integer") + " of " +
                                      std::to_string(bits) + " bits");
}

}  // namespace detail
}  // namespace whycache
