// The one exception whycache throws. Absence is never an error.
#pragma once

#include <stdexcept>
#include <string>

#include <whycache/types.h>

namespace whycache {

// What the caller can do about it.
enum class ErrorKind {
  invalid,  // the call or an option is wrong; retrying cannot help
  limit,  // a limit, named in the message with the option that raises it, was reached; nothing was
          // written
  unavailable,  // the log did not answer; nothing was written; retry later
  uncertain,    // the log failed midway and stayed away: the write may or may not be in it
  conflict,     // what the write depended on was changed by others again and again; nothing was
                // written
  refused,      // a guard of this application forbids it (Options::guards); nothing was written
  corrupt,      // stored bytes are not what was written; the message says what to do next
};

// "invalid", "limit" ...
WHYCACHE_API const char* to_string(ErrorKind kind) noexcept;

// The message is in lower case: what failed, then the values: `update cut short: id=7
// bytes_left=3`.
class WHYCACHE_API Error : public std::runtime_error {
 public:
  // `system_error` is the errno that led here, or 0.
  explicit Error(ErrorKind kind, const std::string& message, int system_error = 0)
      : std::runtime_error(message), kind_(kind), system_error_(system_error) {}

  ErrorKind kind() const noexcept { return kind_; }
  int system_error() const noexcept { return system_error_; }

 private:
  ErrorKind kind_;
  int system_error_;
};

}  // namespace whycache
