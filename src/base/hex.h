// Hexadecimal digits.
#pragma once

namespace whycache {

// Returns the value of a hexadecimal digit, -1 if `digit` is none.
constexpr int hex_value(char digit) noexcept {
  if (digit >= '0' && digit <= '9') return digit - '0';
  if (digit >= 'a' && digit <= 'f') return digit - 'a' + 10;
  if (digit >= 'A' && digit <= 'F') return digit - 'A' + 10;
  return -1;
}

}  // namespace whycache
