// From the URL to the log it names.
#pragma once

#include <chrono>
#include <memory>
#include <string_view>

#include <whycache/log.h>

namespace whycache {

inline constexpr std::chrono::milliseconds default_log_deadline{10'000};

// What open_log() in whycache/log.h does. `deadline`: its option deadline_ms, if the URL does not
// give it.
std::unique_ptr<Log> open_log(std::string_view text, std::chrono::milliseconds deadline);

}  // namespace whycache
