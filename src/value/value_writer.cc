#include <algorithm>
#include <bit>
#include <limits>

#include <whycache/value.h>

#include "base/bytes.h"
#include "value/format.h"

namespace whycache {
namespace {

// The header of an extension of up to 4 GiB. An extension whose size is not known yet has room for
// it.
constexpr std::size_t extension_header_bytes_max = 6;

[[noreturn, gnu::cold]] void refuse_value(const std::string& why) {
  throw Error(ErrorKind::invalid, "typed value " + why);
}

bool is_unhashable(ValueKind kind) noexcept {
  return kind == ValueKind::list || kind == ValueKind::dict || kind == ValueKind::set;
}

ValueExtension extension_of(ValueKind kind) noexcept {
  return kind == ValueKind::tuple ? ValueExtension::tuple
         : kind == ValueKind::set ? ValueExtension::set
                                  : ValueExtension::frozenset;
}

bool is_extension(ValueKind kind) noexcept {
  return kind == ValueKind::tuple || kind == ValueKind::set || kind == ValueKind::frozenset;
}

}  // namespace

void ValueWriter::clear() {
  bytes_.assign(typed_value_prefix);
  frames_.clear();
  element_offsets_.clear();
  has_object_ = false;
}

std::string ValueWriter::finish() {
  if (!has_object_ || !frames_.empty()) refuse_value("is incomplete");
  check_size();
  return std::move(bytes_);
}

void ValueWriter::check_size() const {
  if (bytes_.size() <= value_bytes_max) return;
  throw Error(ErrorKind::limit, "typed value too long: bytes=" + std::to_string(bytes_.size()) +
                                    " bytes_max=" + std::to_string(value_bytes_max));
}

// Comes before each object: accounts for it in its container.
void ValueWriter::begin_object(ValueKind kind) {
  check_size();
  if (frames_.empty()) {
    if (has_object_) refuse_value("has a second object");
    has_object_ = true;
    return;
  }
  WriteFrame& frame = frames_.back();
  if (frame.remaining == 0) refuse_value("has more elements than announced");
  const bool is_key = frame.kind == ValueKind::dict && frame.remaining % 2 == 0;
  if ((is_key || frame.is_hashable) && is_unhashable(kind)) {
    refuse_value(std::string("has a ") + to_string(kind) + " as key or element of a set");
  }
  --frame.remaining;
  if (frame.kind == ValueKind::set || frame.kind == ValueKind::frozenset)
    element_offsets_.push_back(bytes_.size());
}

void ValueWriter::append_number(std::uint64_t number, std::size_t size) {
  for (std::size_t i = size; i > 0; --i) bytes_ += static_cast<char>(number >> (8 * (i - 1)));
}

// Appends a code and a size of 8 (if it has such a form), 16 or 32 bits; or a code that contains
// the size, if there is one (short_max > 0).
void ValueWriter::append_header(std::size_t size, std::uint8_t short_code, std::size_t short_max,
                                std::uint8_t code, bool has_8_bits) {
  if (size > value_bytes_max) {
    throw Error(ErrorKind::limit, "typed value too long: size=" + std::to_string(size) +
                                      " bytes_max=" + std::to_string(value_bytes_max));
  }
  const unsigned first = has_8_bits ? 1 : 0;  // the form of 16 bits comes so many after `code`
  if (short_max > 0 && size <= short_max) {
    append_number(short_code | size, 1);
  } else if (has_8_bits && size < 256) {
    append_number(code, 1);
    append_number(size, 1);
  } else if (size < 65'536) {
    append_number(code + first, 1);
    append_number(size, 2);
  } else {
    append_number(code + first + 1, 1);
    append_number(size, 4);
  }
}

void ValueWriter::null() {
  begin_object(ValueKind::null);
  append_number(0xc0, 1);
}

void ValueWriter::boolean(bool boolean) {
  begin_object(ValueKind::boolean);
  append_number(boolean ? 0xc3 : 0xc2, 1);
}

void ValueWriter::integer(std::int64_t integer) {
  if (integer >= 0) return unsigned_integer(static_cast<std::uint64_t>(integer));
  begin_object(ValueKind::integer);
  const auto number = static_cast<std::uint64_t>(integer);
  if (integer >= -32) {
    append_number(number & 0xff, 1);
  } else if (integer >= std::numeric_limits<std::int8_t>::min()) {
    append_number(0xd0, 1);
    append_number(number, 1);
  } else if (integer >= std::numeric_limits<std::int16_t>::min()) {
    append_number(0xd1, 1);
    append_number(number, 2);
  } else if (integer >= std::numeric_limits<std::int32_t>::min()) {
    append_number(0xd2, 1);
    append_number(number, 4);
  } else {
    append_number(0xd3, 1);
    append_number(number, 8);
  }
}

void ValueWriter::unsigned_integer(std::uint64_t integer) {
  begin_object(ValueKind::unsigned_integer);
  if (integer < 128) {
    append_number(integer, 1);
  } else if (integer <= std::numeric_limits<std::uint8_t>::max()) {
    append_number(0xcc, 1);
    append_number(integer, 1);
  } else if (integer <= std::numeric_limits<std::uint16_t>::max()) {
    append_number(0xcd, 1);
    append_number(integer, 2);
  } else if (integer <= std::numeric_limits<std::uint32_t>::max()) {
    append_number(0xce, 1);
    append_number(integer, 4);
  } else {
    append_number(0xcf, 1);
    append_number(integer, 8);
  }
}

void ValueWriter::big_integer(std::string_view bytes) {
  if (bytes.empty()) refuse_value("has an integer without bytes");
  bytes = without_needless_bytes(bytes);
  const bool is_negative = (static_cast<unsigned char>(bytes[0]) & 0x80) != 0;
  const bool fits = bytes.size() <= 8 || (bytes.size() == 9 && bytes[0] == '\0');
  if (!fits) {
    begin_object(ValueKind::big_integer);
    begin_extension(static_cast<std::uint8_t>(ValueExtension::big_integer), bytes.size());
    bytes_.append(bytes);
    return;
  }
  std::uint64_t number = is_negative ? ~std::uint64_t{0} : 0;
  for (const char byte : bytes) number = number << 8 | static_cast<unsigned char>(byte);
  is_negative ? integer(static_cast<std::int64_t>(number)) : unsigned_integer(number);
}

void ValueWriter::floating(double number) {
  begin_object(ValueKind::floating);
  append_number(0xcb, 1);
  append_number(std::bit_cast<std::uint64_t>(number), 8);
}

void ValueWriter::text(std::string_view text) {
  begin_object(ValueKind::text);
  if (check_value_text(text) > TextCheck::utf8) refuse_value("has text that is not UTF-8");
  append_header(text.size(), 0xa0, 31, 0xd9, true);
  bytes_.append(text);
}

void ValueWriter::surrogate_text(std::string_view text) {
  const TextCheck check = check_value_text(text);
  if (check == TextCheck::invalid) refuse_value("has text that is not UTF-8 with surrogates");
  if (check != TextCheck::surrogates) return this->text(text);
  begin_object(ValueKind::surrogate_text);
  begin_extension(static_cast<std::uint8_t>(ValueExtension::surrogate_text), text.size());
  bytes_.append(text);
}

void ValueWriter::bytes(std::string_view bytes) {
  begin_object(ValueKind::bytes);
  append_header(bytes.size(), 0, 0, 0xc4, true);
  bytes_.append(bytes);
}

void ValueWriter::decimal(std::string_view digits) {
  begin_object(ValueKind::decimal);
  if (!is_valid_decimal(digits)) refuse_value("has an invalid decimal");
  if (!frames_.empty() && is_signaling_decimal(digits)) {
    const WriteFrame& frame = frames_.back();  // which no longer counts this object
    if (frame.is_hashable || (frame.kind == ValueKind::dict && frame.remaining % 2 == 1))
      refuse_value("has a signaling NaN as key or element of a set");
  }
  begin_extension(static_cast<std::uint8_t>(ValueExtension::decimal), digits.size());
  bytes_.append(digits);
}

void ValueWriter::uuid(const Uuid& uuid) {
  begin_object(ValueKind::uuid);
  begin_extension(static_cast<std::uint8_t>(ValueExtension::uuid), uuid.size());
  bytes_.append(reinterpret_cast<const char*>(uuid.data()), uuid.size());
}

void ValueWriter::date(const ValueDate& date) {
  begin_object(ValueKind::date);
  if (!is_valid(date)) refuse_value("has an invalid date");
  begin_extension(static_cast<std::uint8_t>(ValueExtension::date), date_bytes);
  append_number(date.year, 2);
  append_number(date.month, 1);
  append_number(date.day, 1);
}

void ValueWriter::time(const ValueTime& time) {
  begin_object(ValueKind::time);
  if (!is_valid(time)) refuse_value("has an invalid time");
  const std::size_t begin = bytes_.size();
  bytes_.append(extension_header_bytes_max, '\0');
  append_time(time);
  close_extension(begin, static_cast<std::uint8_t>(ValueExtension::time));
}

void ValueWriter::datetime(const ValueDate& date, const ValueTime& time) {
  begin_object(ValueKind::datetime);
  if (!is_valid(date) || !is_valid(time)) refuse_value("has an invalid datetime");
  const std::size_t begin = bytes_.size();
  bytes_.append(extension_header_bytes_max, '\0');
  append_number(date.year, 2);
  append_number(date.month, 1);
  append_number(date.day, 1);
  append_time(time);
  close_extension(begin, static_cast<std::uint8_t>(ValueExtension::datetime));
}

void ValueWriter::append_time(const ValueTime& time) {
  append_number(time.hour, 1);
  append_number(time.minute, 1);
  append_number(time.second, 1);
  append_number(time.microsecond | (time.fold ? fold_bit : 0), 3);
  append_zone(time.zone);
}

void ValueWriter::append_zone(const ValueZone& zone) {
  if (zone.kind == ValueZone::Kind::none) return;
  append_number(zone.kind == ValueZone::Kind::offset ? zone_is_offset : zone_is_named, 1);
  if (zone.kind == ValueZone::Kind::offset)
    append_number(static_cast<std::uint64_t>(zone.offset_microseconds), 8);
  bytes_.append(zone.name);
}

void ValueWriter::timedelta(const ValueTimedelta& timedelta) {
  begin_object(ValueKind::timedelta);
  if (!is_valid(timedelta)) refuse_value("has an invalid timedelta");
  begin_extension(static_cast<std::uint8_t>(ValueExtension::timedelta), timedelta_bytes);
  append_number(static_cast<std::uint32_t>(timedelta.days), 4);
  append_number(timedelta.seconds, 4);
  append_number(timedelta.microseconds, 4);
}

void ValueWriter::begin_list(std::size_t count) { begin_container(ValueKind::list, count); }
void ValueWriter::begin_tuple(std::size_t count) { begin_container(ValueKind::tuple, count); }
void ValueWriter::begin_dict(std::size_t count) { begin_container(ValueKind::dict, count); }
void ValueWriter::begin_set(std::size_t count) { begin_container(ValueKind::set, count); }
void ValueWriter::begin_frozenset(std::size_t count) {
  begin_container(ValueKind::frozenset, count);
}

void ValueWriter::begin_container(ValueKind kind, std::size_t count) {
  if (frames_.size() == value_depth_max) {
    throw Error(ErrorKind::limit,
                "typed value nested too deeply: depth_max=" + std::to_string(value_depth_max));
  }
  begin_object(kind);
  bool is_hashable = kind == ValueKind::set || kind == ValueKind::frozenset;
  if (!frames_.empty()) {
    const WriteFrame& outer = frames_.back();
    is_hashable |= outer.is_hashable || (outer.kind == ValueKind::dict && outer.remaining % 2 == 1);
  }
  const std::size_t begin = bytes_.size();
  if (is_extension(kind)) bytes_.append(extension_header_bytes_max, '\0');
  if (kind == ValueKind::dict) {
    append_header(count, 0x80, 15, 0xde, false);
  } else {
    append_header(count, 0x90, 15, 0xdc, false);
  }
  frames_.push_back({begin, element_offsets_.size(), kind == ValueKind::dict ? 2 * count : count,
                     kind, is_hashable});
}

void ValueWriter::end() {
  if (frames_.empty()) refuse_value("has no container to end");
  const WriteFrame frame = frames_.back();
  if (frame.remaining > 0) refuse_value("has fewer elements than announced");
  if (frame.kind == ValueKind::set || frame.kind == ValueKind::frozenset) sort_elements(frame);
  frames_.pop_back();
  if (is_extension(frame.kind))
    close_extension(frame.begin, static_cast<std::uint8_t>(extension_of(frame.kind)));
  check_size();
}

void ValueWriter::write(const ValueToken& token) {
  switch (token.kind) {
    case ValueKind::null: return null();
    case ValueKind::boolean: return boolean(token.boolean);
    case ValueKind::integer: return integer(token.integer);
    case ValueKind::unsigned_integer: return unsigned_integer(token.unsigned_integer);
    case ValueKind::big_integer: return big_integer(token.bytes);
    case ValueKind::floating: return floating(token.floating);
    case ValueKind::text: return text(token.bytes);
    case ValueKind::surrogate_text: return surrogate_text(token.bytes);
    case ValueKind::bytes: return bytes(token.bytes);
    case ValueKind::decimal: return decimal(token.bytes);
    case ValueKind::uuid: {
      Uuid copy{};
      if (token.bytes.size() != copy.size()) refuse_value("has an invalid uuid");
      token.bytes.copy(reinterpret_cast<char*>(copy.data()), copy.size());
      return uuid(copy);
    }
    case ValueKind::date: return date(token.date);
    case ValueKind::time: return time(token.time);
    case ValueKind::datetime: return datetime(token.date, token.time);
    case ValueKind::timedelta: return timedelta(token.timedelta);
    case ValueKind::list:
    case ValueKind::tuple:
    case ValueKind::dict:
    case ValueKind::set:
    case ValueKind::frozenset: return begin_container(token.kind, token.count);
    case ValueKind::end: return end();
  }
}

// Puts the encoded elements of a set into the order of their bytes.
void ValueWriter::sort_elements(const WriteFrame& frame) {
  const std::size_t count = element_offsets_.size() - frame.elements;
  if (count > 1) {
    element_ranges_.clear();
    for (std::size_t i = frame.elements; i < element_offsets_.size(); ++i) {
      const std::size_t end =
          i + 1 < element_offsets_.size() ? element_offsets_[i + 1] : bytes_.size();
      element_ranges_.emplace_back(element_offsets_[i], end - element_offsets_[i]);
    }
    const std::string_view all = bytes_;
    std::ranges::sort(element_ranges_, {},
                      [all](const auto& range) { return all.substr(range.first, range.second); });
    sorted_.clear();
    for (const auto& [offset, size] : element_ranges_) sorted_.append(all.substr(offset, size));
    bytes_.replace(element_offsets_[frame.elements], sorted_.size(), sorted_);
  }
  element_offsets_.resize(frame.elements);
}

void ValueWriter::begin_extension(std::uint8_t number, std::size_t size) {
  if (std::has_single_bit(size) && size <= 16) {
    append_number(0xd4 + static_cast<unsigned>(std::countr_zero(size)), 1);
  } else {
    append_header(size, 0, 0, 0xc7, true);
  }
  append_number(number, 1);
}

// Writes the header of the extension whose payload is at the end, before which there is room for
// the longest header. Below 64 KiB the payload moves to the end of a shorter header.
void ValueWriter::close_extension(std::size_t begin, std::uint8_t number) {
  const std::size_t size = bytes_.size() - begin - extension_header_bytes_max;
  const std::size_t end = bytes_.size();
  begin_extension(number, size);
  const std::size_t header_bytes = bytes_.size() - end;
  std::array<char, extension_header_bytes_max> header{};
  bytes_.copy(header.data(), header_bytes, end);
  bytes_.resize(end);
  bytes_.replace(begin, extension_header_bytes_max, header.data(), header_bytes);
}

}  // namespace whycache
