#include "state/lock_wait.h"

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <thread>

#include "base/process_lock.h"

namespace whycache {
namespace {

using std::chrono::microseconds;

constexpr std::uint64_t append_gate = 15;  // its byte; those from 0 on are the StateLocks themselves
constexpr microseconds pause_at_first{20};
constexpr microseconds pause_max{1000};
constexpr microseconds pause_max_when_next{100};
// Longer than many processes that write to a slow disk need to pass it.
constexpr std::chrono::milliseconds gate_patience{100};

std::uint64_t byte_of(StateLock lock) { return static_cast<std::uint64_t>(lock); }

// Calls `take` until it returns true. False: not before the deadline.
template <typename Take>
bool take_until(const Deadline& deadline, microseconds longest_pause, const Take& take) {
  for (microseconds pause = pause_at_first;; pause = std::min(pause * 2, longest_pause)) {
    if (take()) return true;
    if (deadline.passed()) return false;
    std::this_thread::sleep_for(pause);
  }
}

class Gate {
 public:
  explicit Gate(int lock_file) : lock_file_(lock_file) {}
  Gate(const Gate&) = delete;
  Gate& operator=(const Gate&) = delete;
  ~Gate() {
    if (held_) unlock_byte(lock_file_, append_gate);
  }

  bool try_pass() { return held_ = try_lock_byte(lock_file_, append_gate); }

 private:
  int lock_file_;
  bool held_ = false;
};

bool wait_in_turn(int lock_file, StateLock which, const Deadline& deadline) {
  const auto take = [&] { return try_lock_byte(lock_file, byte_of(which)); };
  Gate gate(lock_file);
  const Deadline patience(gate_patience);
  bool taken = false;
  const bool passed = take_until(deadline, pause_max, [&] {
    taken = patience.passed() && take();
    return taken || gate.try_pass();
  });
  if (!passed || taken) return taken;
  return take_until(deadline, pause_max_when_next, take);
}

}  // namespace

bool wait_for_lock(int lock_file, StateLock which, const Deadline& deadline) {
  if (which == StateLock::append) return wait_in_turn(lock_file, which, deadline);
  return take_until(deadline, pause_max, [&] { return try_lock_byte(lock_file, byte_of(which)); });
}

}  // namespace whycache
