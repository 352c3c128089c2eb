// Values that are numbers or truth values, plain or typed (value.h), as get_as() reads them.
#pragma once

#include <concepts>
#include <string_view>
#include <type_traits>

#include <whycache/types.h>

namespace whycache {

// The types that get_as<T>() reads: bool, the integers of up to 64 bits, and the floating-point
// types. Character types are not numbers.
template <typename T>
concept ParsedValue = std::same_as<T, std::remove_cv_t<T>> &&
    (std::same_as<T, bool> || std::floating_point<T> ||
     (std::integral<T> && sizeof(T) <= 8 && !std::same_as<T, char> && !std::same_as<T, wchar_t> &&
      !std::same_as<T, char8_t> && !std::same_as<T, char16_t> && !std::same_as<T, char32_t>));

namespace detail {

// Returns the value as a number. Throws Error(invalid), which names the key, if it is none or does
// not fit into `T`. Defined in the library for every ParsedValue without const.
template <typename T>
WHYCACHE_API T parse_value(std::string_view key, std::string_view value);

}  // namespace detail
}  // namespace whycache
