// The Error that a call throws, to check its kind and message.
#pragma once

#include <gtest/gtest.h>

#include <initializer_list>
#include <optional>
#include <ostream>
#include <string>
#include <string_view>

#include <whycache/error.h>

namespace whycache {

inline void PrintTo(ErrorKind kind, std::ostream* out) { *out << to_string(kind); }

}  // namespace whycache

namespace whycache::testing {

template <typename Call>
std::optional<Error> thrown_error(Call&& call) {
  try {
    call();
    return std::nullopt;
  } catch (const Error& error) {
    return error;
  }
}

// Expects `call` to throw an Error of this kind whose message contains all of `words`.
template <typename Call, typename... Words>
void expect_error(ErrorKind kind, Call&& call, const Words&... words) {
  const std::optional<Error> error = thrown_error(call);
  ASSERT_TRUE(error.has_value()) << "nothing was thrown";
  const std::string message = error->what();
  EXPECT_EQ(error->kind(), kind) << message;
  for (const std::string_view word : std::initializer_list<std::string_view>{words...}) {
    EXPECT_NE(message.find(word), std::string::npos)
        << "message: " << message << "\nlacks: " << word;
  }
}

}  // namespace whycache::testing
