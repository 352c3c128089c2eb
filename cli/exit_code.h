// What the program's exit code says, and the failures that lead to each. This is the one place: the
// help texts, docs/cli.md and the tests follow it.
#pragma once

#include <stdexcept>
#include <string>

#include <whycache/error.h>

namespace whycache::cli {

enum class ExitCode : int {
  done = 0,
  not_found = 1,  // a key that was asked for is not there
  usage = 2,      // the command line, an option or the input is wrong          Error invalid
  unreachable =
      3,  // the log did not answer                                     Error unavailable, uncertain
  stale = 4,     // the state is staler, or further behind, than was asked for
  corrupt = 5,   // stored bytes are damaged, or belong to another log         Error corrupt
  conflict = 6,  // somebody else was there first
  permission =
      7,  // the system does not allow it                               any Error from EACCES, EPERM, EROFS
  refused = 8,  // safe only with --yes
  limit =
      9,  // a limit was reached, or the output could not be written    Error limit, any from ENOSPC and its like
  bug = 70,  // this should not happen
};

// A command that cannot go on for a reason of its own. `next` says what to do about it; it may be
// empty.
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
// What somebody at a terminal can do about it; empty if the message says it already.
std::string next_step(const Error& error);

}  // namespace whycache::cli
