// Encodings of integers in all formats of whycache: little-endian, or as varints. A varint is
// unsigned LEB128: seven bits per byte, least significant first; the high bit says that more bytes
// follow. Each number has one encoding: a varint with a needless last byte, or beyond 64 bits, is
// rejected.
#pragma once

#include <bit>
#include <concepts>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

#include <whycache/error.h>

namespace whycache {

static_assert(std::endian::native == std::endian::little,
              "loads and stores below copy bytes as they are");

inline constexpr std::size_t varint_bytes_max = 10;

template <std::integral Integer>
Integer load_little_endian(const void* from) noexcept {
  Integer number;
  std::memcpy(&number, from, sizeof number);
  return number;
}

template <std::integral Integer>
void store_little_endian(void* to, Integer number) noexcept {
  std::memcpy(to, &number, sizeof number);
}

template <std::integral Integer>
void append_little_endian(std::string& bytes, Integer number) {
  char encoded[sizeof number];
  store_little_endian(encoded, number);
  bytes.append(encoded, sizeof encoded);
}

// Returns the size of a number as a varint.
constexpr std::size_t varint_bytes(std::uint64_t number) noexcept {
  return (static_cast<std::size_t>(std::bit_width(number | 1)) + 6) / 7;
}

// Writes a varint to `to`, which has room for varint_bytes(number). Returns the end of the varint.
inline char* store_varint(char* to, std::uint64_t number) noexcept {
  while (number >= 0x80) {
    *to++ = static_cast<char>(number | 0x80);
    number >>= 7;
  }
  *to++ = static_cast<char>(number);
  return to;
}

inline void append_varint(std::string& bytes, std::uint64_t number) {
  char encoded[varint_bytes_max];
  bytes.append(encoded, static_cast<std::size_t>(store_varint(encoded, number) - encoded));
}

// Parses bytes, front to back. The bytes are untrusted: every length is checked against the
// remaining input before use. Views that it returns point into them.
class ByteReader {
 public:
  // `what` names the bytes in error messages ("update"); it must outlive the reader.
  explicit ByteReader(std::string_view bytes, const char* what = "bytes") noexcept
      : begin_(bytes.data()), at_(begin_), end_(begin_ + bytes.size()), what_(what) {}

  bool at_end() const noexcept { return at_ == end_; }
  std::size_t bytes_left() const noexcept { return static_cast<std::size_t>(end_ - at_); }
  // Returns the offset of the next byte from the first.
  std::size_t offset() const noexcept { return static_cast<std::size_t>(at_ - begin_); }

  // Each take_ function throws Error(corrupt) if too few bytes are left.
  std::uint8_t take_byte() {
    if (at_ == end_) throw_cut_short(1);
    return static_cast<std::uint8_t>(*at_++);
  }
  template <std::integral Integer>
  Integer take_little_endian() {
    return load_little_endian<Integer>(take_bytes(sizeof(Integer)).data());
  }
  std::uint64_t take_varint() {
    if (at_ != end_ && static_cast<std::uint8_t>(*at_) < 0x80)
      return static_cast<std::uint8_t>(*at_++);
    return take_long_varint();
  }
  std::string_view take_bytes(std::uint64_t size) {
    if (size > bytes_left()) throw_cut_short(size);
    const std::string_view bytes(at_, static_cast<std::size_t>(size));
    at_ += size;
    return bytes;
  }
  // Takes a varint and as many bytes as it says.
  std::string_view take_sized_bytes() { return take_bytes(take_varint()); }
  // Takes bytes from the end of the remaining input.
  std::string_view take_last_bytes(std::uint64_t size) {
    if (size > bytes_left()) throw_cut_short(size);
    end_ -= size;
    return {end_, static_cast<std::size_t>(size)};
  }
  std::string_view take_rest() noexcept {
    const std::string_view rest(at_, bytes_left());
    at_ = end_;
    return rest;
  }
  // Throws Error(corrupt) if any bytes are left.
  void expect_end() const {
    if (at_ != end_) throw_corrupt("too long", "bytes_left", bytes_left());
  }

  // Throws Error(corrupt) with a message such as "update cut short: offset=20 size=9".
  [[noreturn, gnu::cold, gnu::noinline]] void throw_corrupt(std::string_view why,
                                                            std::string_view name,
                                                            std::uint64_t value) const {
    std::string message(what_);
    message.append(" ").append(why).append(": offset=").append(std::to_string(offset()));
    message.append(" ").append(name).append("=").append(std::to_string(value));
    throw Error(ErrorKind::corrupt, message);
  }

 private:
  [[noreturn, gnu::cold, gnu::noinline]] void throw_cut_short(std::uint64_t needed) const {
    throw_corrupt("cut short", "bytes_left=" + std::to_string(bytes_left()) + " bytes_needed",
                  needed);
  }

  std::uint64_t take_long_varint() {
    std::uint64_t number = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
      const std::uint8_t byte = take_byte();
      if (shift == 63 && byte > 1) throw_corrupt("has a varint beyond 64 bits", "byte", byte);
      number |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
      if (byte >= 0x80) continue;
      if (byte == 0 && shift > 0)
        throw_corrupt("has a varint with a needless byte", "value", number);
      return number;
    }
    throw_corrupt("has a varint beyond 64 bits", "bytes_max", varint_bytes_max);
  }

  const char* begin_;
  const char* at_;
  const char* end_;
  const char* what_;
};

}  // namespace whycache
