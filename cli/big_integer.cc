#include "cli/big_integer.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "base/hex.h"

namespace whycache::cli {
namespace {

constexpr std::size_t decimal_bytes_max = 512;
constexpr std::size_t decimal_digits_max = 10'000;

// Negates two's complement, in place.
void negate(std::string& bytes) {
  bool carry = true;
  for (std::size_t i = bytes.size(); i-- > 0;) {
    char& byte = bytes[i];
    byte = static_cast<char>(~byte);
    if (carry) carry = ++byte == 0;
  }
}

std::string hex_digits(std::string_view magnitude) {
  std::string digits;
  for (const char byte : magnitude)
    digits += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  digits.erase(0, std::min(digits.find_first_not_of('0'), digits.size() - 1));
  return digits;
}

std::string decimal_digits(std::string_view magnitude) {
  constexpr std::uint64_t base = 1'000'000'000;
  std::vector<std::uint32_t> groups;  // of nine digits, from the lowest
  for (const char byte : magnitude) {
    std::uint64_t carry = static_cast<unsigned char>(byte);
    for (std::uint32_t& group : groups) {
      carry += std::uint64_t{group} << 8;
      group = static_cast<std::uint32_t>(carry % base);
      carry /= base;
    }
    if (carry > 0) groups.push_back(static_cast<std::uint32_t>(carry));
  }
  if (groups.empty()) return "0";
  std::string digits = std::to_string(groups.back());
  for (auto group = groups.rbegin() + 1; group != groups.rend(); ++group)
    digits += fmt::format("{:09}", *group);
  return digits;
}

std::optional<std::string> parse_hex(std::string_view digits) {
  std::string magnitude(1, '\0');  // room for the sign
  if (digits.empty()) return std::nullopt;
  bool is_high_half = digits.size() % 2 == 0;
  if (!is_high_half) magnitude += '\0';
  for (const char digit : digits) {
    const int value = hex_value(digit);
    if (value < 0) return std::nullopt;
    if (is_high_half) {
      magnitude += static_cast<char>(value << 4);
    } else {
      magnitude.back() = static_cast<char>(magnitude.back() | value);
    }
    is_high_half = !is_high_half;
  }
  return magnitude;
}

std::optional<std::string> parse_decimal(std::string_view digits) {
  if (digits.empty() || digits.size() > decimal_digits_max) return std::nullopt;
  std::vector<std::uint32_t> words;  // from the lowest
  for (const char digit : digits) {
    if (digit < '0' || digit > '9') return std::nullopt;
    std::uint64_t carry = static_cast<std::uint64_t>(digit - '0');
    for (std::uint32_t& word : words) {
      carry += std::uint64_t{word} * 10;
      word = static_cast<std::uint32_t>(carry);
      carry >>= 32;
    }
    if (carry > 0) words.push_back(static_cast<std::uint32_t>(carry));
  }
  std::string magnitude(1, '\0');
  for (std::size_t i = words.size(); i-- > 0;) {
    for (int shift = 24; shift >= 0; shift -= 8) magnitude += static_cast<char>(words[i] >> shift);
  }
  return magnitude;
}

}  // namespace

std::string format_big_integer(std::string_view bytes) {
  const bool is_negative = !bytes.empty() && (static_cast<unsigned char>(bytes[0]) & 0x80) != 0;
  std::string magnitude(bytes);
  if (is_negative) negate(magnitude);
  const std::string sign = is_negative ? "-" : "";
  if (magnitude.size() > decimal_bytes_max) return sign + "0x" + hex_digits(magnitude);
  return sign + decimal_digits(magnitude);
}

std::optional<std::string> parse_big_integer(std::string_view text) {
  const bool is_negative = text.starts_with('-');
  if (is_negative) text.remove_prefix(1);
  std::optional<std::string> bytes =
      text.starts_with("0x") ? parse_hex(text.substr(2)) : parse_decimal(text);
  if (bytes && is_negative) negate(*bytes);
  return bytes;
}

}  // namespace whycache::cli
