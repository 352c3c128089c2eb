// Sets the length of a string whose bytes were, or will be, written through data().
#pragma once

#include <cassert>
#include <cstddef>
#include <string>

namespace whycache {

#if defined(__GLIBCXX__) && _GLIBCXX_USE_CXX11_ABI
// std::string::resize_and_overwrite() of C++23 does the same, and C++20 has nothing like it. An
// explicit instantiation may name a private member; folly::resizeWithoutInitialization() of
// https://github.com/facebook/folly (UninitializedMemoryHacks.h) works this way.
namespace detail {
template <auto set_length_member>
struct StringLengthSetter {
  friend void set_length_of_string(std::string& text, std::size_t bytes) {
    (text.*set_length_member)(bytes);
  }
};
void set_length_of_string(std::string& text, std::size_t bytes);
template struct StringLengthSetter<&std::string::_M_set_length>;
}  // namespace detail

inline constexpr bool has_bytes_beyond_length = true;

// Precondition: bytes <= text.capacity(). Leaves the bytes as they are, whatever they are.
inline void set_length(std::string& text, std::size_t bytes) {
  assert(bytes <= text.capacity());
  detail::set_length_of_string(text, bytes);
}
#else
// Whether bytes between the length and the capacity may be written before set_length().
inline constexpr bool has_bytes_beyond_length = false;

inline void set_length(std::string& text, std::size_t bytes) { text.resize(bytes); }
#endif

}  // namespace whycache
