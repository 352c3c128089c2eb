// Opens the log that a URL names.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <string_view>

#include <whycache/log.h>

#include "log/log_checks.h"

namespace whycache {

inline constexpr std::chrono::milliseconds default_log_deadline{10'000};

// Opens a log. Throws LogMissing if it does not exist, and either the argument or the URL says that
// it is not to be created.
using LogOpener = std::function<std::unique_ptr<Log>(IfMissing)>;

// Returns what opens the log that a URL names. Throws Error(invalid) for a wrong URL; asks no
// store. `deadline` is the default of the URL's option deadline_ms.
LogOpener parse_log_url(std::string_view text, std::chrono::milliseconds deadline);
// Like open_log() in whycache/log.h. `deadline` is the default of the URL's option deadline_ms.
std::unique_ptr<Log> open_log(std::string_view text, std::chrono::milliseconds deadline,
                              IfMissing if_missing = IfMissing::create);

}  // namespace whycache
