// Checks of the environment of a cache, with one finding per check. commands/doctor.cc prints them.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "cli/exit_code.h"

namespace whycache::cli {

struct Finding {
  enum class Severity { ok, warn, bad };

  Severity severity = Severity::ok;
  std::string check;
  std::string found;
  // Empty if ok.
  std::string next_step;
  // The exit code that this problem causes; only for bad findings.
  ExitCode code = ExitCode::limit;

  static Finding ok(std::string check, std::string found) {
    return {Severity::ok, std::move(check), std::move(found), {}};
  }
  static Finding warn(std::string check, std::string found, std::string next) {
    return {Severity::warn, std::move(check), std::move(found), std::move(next)};
  }
  static Finding bad(std::string check, std::string found, std::string next, ExitCode code) {
    return {Severity::bad, std::move(check), std::move(found), std::move(next), code};
  }
};

// Checks the system: kernel, limits, clocks, memory.
std::vector<Finding> check_system(std::uint64_t state_bytes_max);
// Checks the directory of a state.
std::vector<Finding> check_directory(const std::string& directory);

}  // namespace whycache::cli
