// The conditions of set and del: --if-absent, --if VALUE.
#pragma once

#include <string>

#include <whycache/cache.h>

#include "cli/exit_code.h"

namespace whycache::cli {

// The failure of a write whose condition did not hold, by what the log held during the call.
// `expects_value`: the condition was --if, not --if-absent.
Failure condition_failed(const Cache& cache, const std::string& key, bool expects_value);

}  // namespace whycache::cli
