// Where a state stands against the log that it should follow. Used by status and doctor.
#pragma once

#include <optional>
#include <string>

#include "cli/exit_code.h"
#include "whycache/log.h"

namespace whycache {
struct StateInfo;
}

namespace whycache::cli {

struct PositionProblem {
  std::string found;
  std::string next_step;
};

// Returns why the state at `path` cannot follow the log `name` as it is; nullopt if it can.
std::optional<PositionProblem> find_position_problem(const StateInfo& state,
                                                     const std::string& path, const Extent& log,
                                                     const std::string& name);

}  // namespace whycache::cli
