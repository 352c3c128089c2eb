// Text for messages of the types in the public headers.
#include <cstddef>
#include <span>
#include <string>

#include <whycache/error.h>
#include <whycache/types.h>

namespace whycache {
namespace {

std::string to_hex(std::span<const std::uint8_t> bytes) {
  constexpr char digits[] = "0123456789abcdef";
  std::string text;
  text.reserve(bytes.size() * 2);
  for (const std::uint8_t byte : bytes) {
    text += digits[byte >> 4];
    text += digits[byte & 15];
  }
  return text;
}

}  // namespace

std::string to_string(const Uuid& uuid) { return to_hex(uuid); }

// One number of 128 bits, high half first.
std::string to_string(const Digest& digest) {
  std::array<std::uint8_t, 16> bytes;
  for (unsigned i = 0; i < 8; ++i) {
    bytes[i] = static_cast<std::uint8_t>(digest.high >> (56 - 8 * i));
    bytes[8 + i] = static_cast<std::uint8_t>(digest.low >> (56 - 8 * i));
  }
  return to_hex(bytes);
}

const char* to_string(ErrorKind kind) noexcept {
  switch (kind) {
    case ErrorKind::invalid: return "invalid";
    case ErrorKind::limit: return "limit";
    case ErrorKind::unavailable: return "unavailable";
    case ErrorKind::uncertain: return "uncertain";
    case ErrorKind::conflict: return "conflict";
    case ErrorKind::refused: return "refused";
    case ErrorKind::corrupt: return "corrupt";
  }
  return "unknown";
}

}  // namespace whycache
