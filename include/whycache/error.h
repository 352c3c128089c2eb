// The one exception that whycache throws. An absent key is not an error.
#pragma once

#include <stdexcept>
#include <string>

#include <whycache/types.h>

namespace whycache {

// Says what the caller can do about the failure.
enum class ErrorKind {
  // The call or an option is wrong. Retrying cannot help.
  invalid,
  // A limit was reached, and nothing was written. The message names the limit and the option that
  // raises it.
  limit,
  // The log did not answer, and nothing was written. Retry later.
  unavailable,
  // The log failed midway and stayed unreachable. The write may or may not be in it.
  uncertain,
  // Other writers changed what this write depended on until attempts or deadline ran out. Nothing
  // was written.
  conflict,
  // A guard of this application forbids the write (Options::guards). Nothing was written.
  refused,
  // Stored bytes are not what was written. The message gives the next step.
  corrupt,
};

// Returns the name of the kind: "invalid", "limit" and so on.
WHYCACHE_API const char* to_string(ErrorKind kind) noexcept;

// The message is in lower case: what failed, then the values, as in
// `update cut short: id=7 bytes_left=3`.
class WHYCACHE_API Error : public std::runtime_error {
 public:
  // `system_error` is the errno that caused the failure, or 0.
  explicit Error(ErrorKind kind, const std::string& message, int system_error = 0)
      : std::runtime_error(message), kind_(kind), system_error_(system_error) {}

  ErrorKind kind() const noexcept { return kind_; }
  int system_error() const noexcept { return system_error_; }

 private:
  ErrorKind kind_;
  int system_error_;
};

}  // namespace whycache
