// The time limit that a database server gets for a statement.
#pragma once

#include <algorithm>
#include <chrono>

namespace whycache {

// Returns after how long the server must end a statement, so that its answer arrives before the
// connection is cut at `deadline`, which would leave the outcome unknown.
inline std::chrono::milliseconds statement_time(std::chrono::milliseconds deadline) noexcept {
  using std::chrono::milliseconds;
  constexpr milliseconds answer_time{10};
  const milliseconds reserved = std::max(deadline / 10, std::min(answer_time, deadline / 2));
  return std::clamp<milliseconds>(deadline - reserved, milliseconds(1), std::chrono::hours(24));
}

}  // namespace whycache
