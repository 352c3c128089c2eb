// The exit codes of the program, and the failures that lead to each. The help texts, docs/cli.md
// and the tests follow this table.
#pragma once

#include <stdexcept>
#include <string>

#include <whycache/error.h>

namespace whycache::cli {

enum class ExitCode : int {
  done = 0,
  // A requested key does not exist.
  not_found = 1,
  // The command line, an option or the input is wrong; Error invalid.
  usage = 2,
  // The log did not answer; Error unavailable or uncertain.
  unreachable = 3,
  // The state is staler or further behind than requested.
  stale = 4,
  // Stored bytes are damaged or belong to another log; Error corrupt.
  corrupt = 5,
  // Another writer was first; Error conflict. Or another process holds a lock; any Error from
  // EBUSY, unless it is uncertain.
  conflict = 6,
  // The system denies access; any Error from EACCES, EPERM or EROFS.
  permission = 7,
  // Safe only with --yes.
  refused = 8,
  // A limit was reached, or output could not be written; Error limit, or any from ENOSPC and
  // similar.
  limit = 9,
  // An unexpected exception.
  bug = 70,
};

// A failure of a command, with its exit code and the next step for the user, which may be empty.
class Failure : public std::runtime_error {
 public:
  Failure(ExitCode code, const std::string& message, std::string next = {})
      : std::runtime_error(message), code_(code), next_step_(std::move(next)) {}

  ExitCode code() const noexcept { return code_; }
  const std::string& next_step() const noexcept { return next_step_; }

 private:
  ExitCode code_;
  std::string next_step_;
};

ExitCode exit_code_of(const Error& error) noexcept;
// Returns the next step for the user; empty if the message already contains one.
std::string next_step(const Error& error);

}  // namespace whycache::cli
