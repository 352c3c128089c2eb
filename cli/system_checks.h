// What in this environment helps or hurts, one finding for each thing looked at. The looking is
// here, the printing in doctor.cc.
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
  std::string next_step;            // what to do about it; empty when ok
  ExitCode code = ExitCode::limit;  // what a failure of this would exit with; for bad ones

  static Finding ok(std::string what, std::string found) {
    return {Severity::ok, std::move(what), std::move(found), {}};
  }
  static Finding warn(std::string what, std::string found, std::string next) {
    return {Severity::warn, std::move(what), std::move(found), std::move(next)};
  }
  static Finding bad(std::string what, std::string found, std::string next, ExitCode code) {
    return {Severity::bad, std::move(what), std::move(found), std::move(next), code};
  }
};

// The system: kernel, limits, clocks, memory.
std::vector<Finding> check_system(std::uint64_t state_bytes_max);
// The folder a state is to live in.
std::vector<Finding> check_directory(const std::string& folder);

}  // namespace whycache::cli
