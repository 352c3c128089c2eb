// Integers of any size as text: two's complement, most significant byte first, as decimal digits;
// or as hexadecimal ones if they are so long that decimal digits would take seconds.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace whycache::cli {

// Returns "-123", or "-0x7b" for more than 512 bytes.
std::string format_big_integer(std::string_view bytes);
// Returns nullopt if the text is no integer, or has more than 10,000 decimal digits.
std::optional<std::string> parse_big_integer(std::string_view text);

}  // namespace whycache::cli
