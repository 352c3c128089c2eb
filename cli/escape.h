// Escaping of keys and values, which are arbitrary bytes, for output as text and JSON.
//
// In a line of text they are escaped, so that an item stays on one line and no byte is lost:
//
//   \\ \t \n \r     backslash, tab, line feed, carriage return
//   \xNN            every other control character, and every byte that is not part of valid UTF-8
//
// Input lines (keys for mget and del, items for import) are unescaped by the same rule. JSON holds
// valid UTF-8 in a string, and all other bytes as base64 in a field whose name ends in _base64.
#pragma once

#include <optional>
#include <string>
#include <string_view>

namespace whycache::cli {

bool is_utf8(std::string_view bytes) noexcept;

std::string escape(std::string_view bytes);
// Returns nullopt if a backslash begins none of the sequences above.
std::optional<std::string> unescape(std::string_view text);

std::string encode_base64(std::string_view bytes);
// Returns nullopt if `text` is not base64 with padding (RFC 4648).
std::optional<std::string> decode_base64(std::string_view text);

}  // namespace whycache::cli
