// Copying a short value, of a size that is known before the value is there: in as few instructions
// as it takes. docs/decisions/short-reads.md.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace whycache {

// Sixteen bytes, wherever they are.
using SixteenBytes = char __attribute__((vector_size(16), aligned(1), may_alias));

// Copies as many bytes as a Unit has, or up to twice as many: the first and the last of them.
template <typename Unit>
[[gnu::always_inline]] inline void copy_ends(char* to, const char* from, std::size_t bytes) {
  Unit first;
  Unit last;
  std::memcpy(&first, from, sizeof first);
  std::memcpy(&last, from + bytes - sizeof last, sizeof last);
  std::memcpy(to, &first, sizeof first);
  std::memcpy(to + bytes - sizeof last, &last, sizeof last);
}

[[gnu::always_inline]] inline SixteenBytes& sixteen_bytes_at(char* where) {
  return *reinterpret_cast<SixteenBytes*>(where);
}
[[gnu::always_inline]] inline const SixteenBytes& sixteen_bytes_at(const char* where) {
  return *reinterpret_cast<const SixteenBytes*>(where);
}

inline constexpr std::size_t copy_short_bytes_max = 128;

// Copies up to copy_short_bytes_max bytes: from both ends towards the middle, where what is copied
// may overlap. By way of registers; a std::memcpy through a struct leaves a copy on the stack, too.
[[gnu::always_inline]] inline void copy_short(char* to, const char* from, std::size_t bytes) {
  constexpr std::size_t unit = sizeof(SixteenBytes);
  if (bytes > 4 * unit) {
    const SixteenBytes a = sixteen_bytes_at(from), b = sixteen_bytes_at(from + unit),
                       c = sixteen_bytes_at(from + 2 * unit), d = sixteen_bytes_at(from + 3 * unit);
    const char* const from_end = from + bytes;
    const SixteenBytes e = sixteen_bytes_at(from_end - 4 * unit),
                       f = sixteen_bytes_at(from_end - 3 * unit),
                       g = sixteen_bytes_at(from_end - 2 * unit),
                       h = sixteen_bytes_at(from_end - unit);
    char* const to_end = to + bytes;
    sixteen_bytes_at(to) = a;
    sixteen_bytes_at(to + unit) = b;
    sixteen_bytes_at(to + 2 * unit) = c;
    sixteen_bytes_at(to + 3 * unit) = d;
    sixteen_bytes_at(to_end - 4 * unit) = e;
    sixteen_bytes_at(to_end - 3 * unit) = f;
    sixteen_bytes_at(to_end - 2 * unit) = g;
    sixteen_bytes_at(to_end - unit) = h;
    return;
  }
  if (bytes > 2 * unit) {
    const SixteenBytes a = sixteen_bytes_at(from), b = sixteen_bytes_at(from + unit),
                       g = sixteen_bytes_at(from + bytes - 2 * unit),
                       h = sixteen_bytes_at(from + bytes - unit);
    sixteen_bytes_at(to) = a;
    sixteen_bytes_at(to + unit) = b;
    sixteen_bytes_at(to + bytes - 2 * unit) = g;
    sixteen_bytes_at(to + bytes - unit) = h;
    return;
  }
  if (bytes > unit) {
    const SixteenBytes a = sixteen_bytes_at(from), h = sixteen_bytes_at(from + bytes - unit);
    sixteen_bytes_at(to) = a;
    sixteen_bytes_at(to + bytes - unit) = h;
    return;
  }
  if (bytes >= 8) return copy_ends<std::uint64_t>(to, from, bytes);
  if (bytes >= 4) return copy_ends<std::uint32_t>(to, from, bytes);
  if (bytes >= 2) return copy_ends<std::uint16_t>(to, from, bytes);
  if (bytes == 1) *to = *from;
}

}  // namespace whycache
