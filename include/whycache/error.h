// The one exception that whycache throws. An absent key is not an error.
#pragma once

#include <stdexcept>
#include <string>

#include <whycache/types.h>

namespace whycache {

// Says what the caller can do about the failure. docs/guide/errors.md has a table of what each kind
// means for a read and for a write.
enum class ErrorKind {
  // The call, an option or a permission is wrong, or a value is not what get_as() was asked for.
  // Retrying cannot help. Nothing was written.
  invalid,
  // A limit was reached, of an option or of the system: disk space, memory, descriptors. Nothing
  // was written. The message names the limit and what raises it.
  limit,
  // The log did not answer, a stop was requested, or the cache was closed, and nothing was written.
  // Or there is no state to read: none is built yet, or it was replaced by a file that this process
  // cannot open. Retry later.
  unavailable,
  // The log failed midway and stayed unreachable: the write may be in it, or a part of it. Or the
  // write is in the log, but could not be applied here. The message says which.
  uncertain,
  // Other writers changed what this write depended on until attempts or deadline ran out. Nothing
  // was written.
  conflict,
  // A guard forbids the write: of this application (Options::guards) or of the log
  // (Cache::set_log_guards). Nothing was written.
  refused,
  // Stored bytes, of the state or of the log, are not what was written. The message gives the next
  // step.
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
