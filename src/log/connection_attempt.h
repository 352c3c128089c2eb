// An attempt to connect to a database server that continues when its caller gives up, so that the
// next call can use it.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <utility>

#include "base/background_call.h"
#include "base/clock.h"

namespace whycache {

template <typename Connection>
using ConnectionAttempt = BackgroundCall<std::unique_ptr<Connection>>;

// Returns what `connect` returned, or throws what it threw. Continues `attempt` if it is one, and
// stores there an attempt that has not finished when the deadline passes; then returns nullptr. An
// attempt that lasts two seconds longer than `timeout` is given up: its server answers without end.
template <typename Connection>
std::unique_ptr<Connection> await_connection(
    std::function<std::unique_ptr<Connection>()> connect, std::chrono::milliseconds timeout,
    const Deadline& deadline, std::optional<ConnectionAttempt<Connection>>& attempt) {
  const std::int64_t oldest_ns =
      boot_time_ns() - std::chrono::nanoseconds(timeout + std::chrono::seconds(2)).count();
  if (attempt && attempt->began_at_ns() < oldest_ns && !attempt->is_done()) attempt.reset();
  if (!attempt) attempt.emplace(std::move(connect));
  std::optional<std::unique_ptr<Connection>> connection;
  try {
    connection = attempt->wait(deadline);
  } catch (...) {
    attempt.reset();
    throw;
  }
  if (!connection) return nullptr;
  attempt.reset();
  return std::move(*connection);
}

}  // namespace whycache
