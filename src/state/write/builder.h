// The StateBuilder: a new state file under a name of its own, beside where it may come to stand.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "state/write/state_builder.h"

namespace whycache {

// Called by install() with the path of the finished file, what that says of itself, and a way to
// let it apply more. Returns whether it did it.
using InstallFile =
    std::function<bool(const std::string& path, const StateInfo& built,
                       StateBuilder::InstallPolicy how, const std::function<void()>& catch_up)>;

std::unique_ptr<StateBuilder> open_builder(const StateOptions& options, const Uuid& log_uuid,
                                           const std::string& log_name, InstallFile put_in_place);

}  // namespace whycache
