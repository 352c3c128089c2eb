#include <whycache/error.h>
#include <whycache/parse.h>
#include <whycache/value.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <limits>
#include <string>
#include <system_error>

namespace whycache::detail {
namespace {

// Returns the key as a message shows it: at most 64 bytes, and what is not printable in
// hexadecimal.
std::string printable(std::string_view key) {
  constexpr std::size_t shown_bytes_max = 64;
  constexpr char digits[] = "0123456789abcdef";
  std::string text;
  for (const char byte : key.substr(0, shown_bytes_max)) {
    const auto number = static_cast<unsigned char>(byte);
    if (number > ' ' && number < 0x7f && byte != '\\') {
      text += byte;
    } else {
      text.append("\\x").append(1, digits[number >> 4]).append(1, digits[number & 15]);
    }
  }
  return key.size() > shown_bytes_max ? text + "..." : text;
}

[[noreturn, gnu::cold]] void throw_invalid(const std::string& what, std::string_view key,
                                           std::string_view value) {
  throw Error(ErrorKind::invalid, "value is " + what + ": key=" + printable(key) +
                                      " value_bytes=" + std::to_string(value.size()));
}

bool parse_bool(std::string_view key, std::string_view value) {
  constexpr std::array<std::string_view, 4> words_of_true{"true", "1", "yes", "on"};
  constexpr std::array<std::string_view, 4> words_of_false{"false", "0", "no", "off"};
  std::string word(value.substr(0, 6));
  for (char& byte : word) {
    if (byte >= 'A' && byte <= 'Z') byte = static_cast<char>(byte - 'A' + 'a');
  }
  if (std::ranges::find(words_of_true, word) != words_of_true.end()) return true;
  if (std::ranges::find(words_of_false, word) != words_of_false.end()) return false;
  throw_invalid("not one of true, false, 1, 0, yes, no, on, off", key, value);
}

template <typename T>
std::string name_of_type() {
  if (std::is_floating_point_v<T>) return "a number";
  return std::string(std::is_signed_v<T> ? "an integer" : "an unsigned integer") + " of " +
         std::to_string(sizeof(T) * 8) + " bits in decimal digits";
}

template <typename T>
std::string range_of_type() {
  if constexpr (std::is_floating_point_v<T>) {
    return "the exponents of its type";
  } else {
    return std::to_string(std::numeric_limits<T>::min()) + ".." +
           std::to_string(std::numeric_limits<T>::max());
  }
}

// Returns the number of a typed value, or its truth value. An integer is a floating-point number,
// too; a floating-point number is no integer.
template <typename T>
T parse_typed(std::string_view key, std::string_view value) {
  try {
    if constexpr (std::is_floating_point_v<T>) {
      ValueReader reader(value);
      const ValueToken& token = reader.next();
      if (token.kind == ValueKind::integer) return static_cast<T>(token.integer);
      if (token.kind == ValueKind::unsigned_integer) return static_cast<T>(token.unsigned_integer);
      if (token.kind != ValueKind::floating) throw_other_kind(token, "floating");
      return static_cast<T>(token.floating);
    } else {
      return decode_value<T>(value);
    }
  } catch (const Error& error) {
    throw Error(error.kind(), std::string(error.what()) + ": key=" + printable(key));
  }
}

}  // namespace

template <typename T>
T parse_value(std::string_view key, std::string_view value) {
  if (is_typed_value(value)) return parse_typed<T>(key, value);
  if constexpr (std::same_as<T, bool>) {
    return parse_bool(key, value);
  } else {
    T number{};
    const char* const end = value.data() + value.size();
    const auto [parsed_end, failure] = std::from_chars(value.data(), end, number);
    if (parsed_end != end || failure == std::errc::invalid_argument)
      throw_invalid("not " + name_of_type<T>(), key, value);
    if (failure != std::errc())
      throw_invalid("a number out of range, beyond " + range_of_type<T>(), key, value);
    return number;
  }
}

template WHYCACHE_API bool parse_value(std::string_view, std::string_view);
template WHYCACHE_API signed char parse_value(std::string_view, std::string_view);
template WHYCACHE_API unsigned char parse_value(std::string_view, std::string_view);
template WHYCACHE_API short parse_value(std::string_view, std::string_view);
template WHYCACHE_API unsigned short parse_value(std::string_view, std::string_view);
template WHYCACHE_API int parse_value(std::string_view, std::string_view);
template WHYCACHE_API unsigned parse_value(std::string_view, std::string_view);
template WHYCACHE_API long parse_value(std::string_view, std::string_view);
template WHYCACHE_API unsigned long parse_value(std::string_view, std::string_view);
template WHYCACHE_API long long parse_value(std::string_view, std::string_view);
template WHYCACHE_API unsigned long long parse_value(std::string_view, std::string_view);
template WHYCACHE_API float parse_value(std::string_view, std::string_view);
template WHYCACHE_API double parse_value(std::string_view, std::string_view);
template WHYCACHE_API long double parse_value(std::string_view, std::string_view);

}  // namespace whycache::detail
