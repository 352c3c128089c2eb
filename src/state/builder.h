// The StateBuilder: a new state file under a name of its own, beside where it may come to stand.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "state/state.h"

namespace whycache {

// `put_in_place(path)` is called by install() with the path of the finished file.
std::unique_ptr<StateBuilder> open_builder(const StateOptions& options, const Uuid& log_uuid,
                                           const std::string& log_name,
                                           std::function<void(const std::string&)> put_in_place);

}  // namespace whycache
