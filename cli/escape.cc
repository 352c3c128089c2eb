#include "cli/escape.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>

namespace whycache::cli {
namespace {

// Returns the length of the UTF-8 sequence at the front of `bytes`; 0 if there is none. Overlong
// sequences, surrogates and code points beyond U+10FFFF are not valid.
std::size_t utf8_sequence_bytes(std::string_view bytes) noexcept {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(bytes[i]); };
  const unsigned char first = byte(0);
  if (first < 0x80) return 1;
  const std::size_t size = first >= 0xc2 && first < 0xe0   ? 2
                           : first >= 0xe0 && first < 0xf0 ? 3
                           : first >= 0xf0 && first < 0xf5 ? 4
                                                           : 0;
  if (size == 0 || size > bytes.size()) return 0;
  for (std::size_t i = 1; i < size; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
  }
  if (first == 0xe0 && byte(1) < 0xa0) return 0;
  if (first == 0xed && byte(1) >= 0xa0) return 0;
  if (first == 0xf0 && byte(1) < 0x90) return 0;
  if (first == 0xf4 && byte(1) >= 0x90) return 0;
  return size;
}

int hex_digit(char digit) noexcept {
  if (digit >= '0' && digit <= '9') return digit - '0';
  if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
  if (digit >= 'A' && digit <= 'F') return digit - 'A' + 10;
  return -1;
}

constexpr std::string_view base64_digits =
    "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

void append_hex_escape(std::string& text, char byte) {
  text += fmt::format("\\x{:02x}", static_cast<unsigned char>(byte));
}

}  // namespace

bool is_utf8(std::string_view bytes) noexcept {
  while (!bytes.empty()) {
    const std::size_t size = utf8_sequence_bytes(bytes);
    if (size == 0) return false;
    bytes.remove_prefix(size);
  }
  return true;
}

std::string escape(std::string_view bytes) {
  std::string text;
  text.reserve(bytes.size());
  while (!bytes.empty()) {
    const std::size_t size = utf8_sequence_bytes(bytes);
    const char byte = bytes[0];
    // U+0080 to U+009F are control characters too, and terminals interpret them.
    const bool second_control_block =
        size == 2 && byte == '\xc2' && static_cast<unsigned char>(bytes[1]) < 0xa0;
    if (second_control_block) {
      append_hex_escape(text, bytes[0]);
      append_hex_escape(text, bytes[1]);
    } else if (size > 1) {
      text.append(bytes.substr(0, size));
    } else if (byte == '\\') {
      text += "\\\\";
    } else if (byte == '\t') {
      text += "\\t";
    } else if (byte == '\n') {
      text += "\\n";
    } else if (byte == '\r') {
      text += "\\r";
    } else if (size == 0 || static_cast<unsigned char>(byte) < 0x20 || byte == 0x7f) {
      append_hex_escape(text, byte);
    } else {
      text += byte;
    }
    bytes.remove_prefix(size == 0 ? 1 : size);
  }
  return text;
}

std::optional<std::string> unescape(std::string_view text) {
  std::string bytes;
  bytes.reserve(text.size());
  while (!text.empty()) {
    const std::size_t backslash = text.find('\\');
    bytes.append(text.substr(0, backslash));
    if (backslash == std::string_view::npos) break;
    text.remove_prefix(backslash + 1);
    if (text.empty()) return std::nullopt;
    const char kind = text[0];
    text.remove_prefix(1);
    if (kind == '\\') {
      bytes += '\\';
    } else if (kind == 't') {
      bytes += '\t';
    } else if (kind == 'n') {
      bytes += '\n';
    } else if (kind == 'r') {
      bytes += '\r';
    } else if (kind == 'x' && text.size() >= 2 && hex_digit(text[0]) >= 0 &&
               hex_digit(text[1]) >= 0) {
      bytes += static_cast<char>(hex_digit(text[0]) << 4 | hex_digit(text[1]));
      text.remove_prefix(2);
    } else {
      return std::nullopt;
    }
  }
  return bytes;
}

std::string encode_base64(std::string_view bytes) {
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (std::size_t i = 0; i < bytes.size(); i += 3) {
    std::uint32_t group = 0;
    for (std::size_t j = 0; j < 3; ++j) {
      group = group << 8 | (i + j < bytes.size() ? static_cast<unsigned char>(bytes[i + j]) : 0);
    }
    const std::size_t digits = std::min<std::size_t>(bytes.size() - i, 3) + 1;
    for (std::size_t j = 0; j < 4; ++j) {
      text += j < digits ? base64_digits[group >> (18 - 6 * j) & 63] : '=';
    }
  }
  return text;
}

std::optional<std::string> decode_base64(std::string_view text) {
  if (text.size() % 4 != 0) return std::nullopt;
  std::string bytes;
  bytes.reserve(text.size() / 4 * 3);
  while (!text.empty()) {
    std::size_t digits = 4;
    if (text.size() == 4 && text[3] == '=') digits = text[2] == '=' ? 2 : 3;
    std::uint32_t group = 0;
    for (std::size_t j = 0; j < 4; ++j) {
      const std::size_t value = j < digits ? base64_digits.find(text[j]) : 0;
      if (value == std::string_view::npos) return std::nullopt;
      group = group << 6 | static_cast<std::uint32_t>(value);
    }
    for (std::size_t j = 0; j + 1 < digits; ++j)
      bytes += static_cast<char>(group >> (16 - 8 * j) & 0xff);
    text.remove_prefix(4);
  }
  return bytes;
}

}  // namespace whycache::cli
