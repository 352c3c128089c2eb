#include "state/file/use_locks.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cassert>
#include <chrono>
#include <optional>
#include <string>
#include <thread>
#include <utility>

#include "base/file.h"
#include "base/fork_handlers.h"
#include "base/hash.h"
#include "base/process_lock.h"
#include "base/random.h"

namespace whycache {
namespace {

constexpr unsigned process_id_bits = 22;
constexpr std::uint64_t process_id_mask = (std::uint64_t{1} << process_id_bits) - 1;
constexpr std::uint64_t trusted_byte = (std::uint64_t{1} << 60) - 1;
constexpr LockRange in_use_bytes{std::uint64_t{1} << 60, std::uint64_t{1} << 61};
constexpr LockRange pinned_bytes{std::uint64_t{1} << 61, std::uint64_t{1} << 62};
constexpr LockRange verifying_bytes{pinned_bytes.end, pinned_bytes.end + (std::uint64_t{1} << 60)};
constexpr LockRange reading_bytes{verifying_bytes.end,
                                  verifying_bytes.end + (std::uint64_t{1} << 60)};
constexpr std::uint64_t number_count = (in_use_bytes.end - in_use_bytes.begin) >> process_id_bits;
constexpr UpdateId pinned_id_max = (pinned_bytes.end - pinned_bytes.begin) >> process_id_bits;

// Drawn once by the first thread that needs it, and inherited by forked children; 0: not yet.
// Stored by compare-and-swap and loaded by any thread. Relaxed: the number itself is all that is
// shared. Not a static of a function, whose initialization a child forked meanwhile would wait for.
constinit std::atomic<std::uint64_t> random_number{0};

// The byte of this process in a range. Its random part tells processes of several PID namespaces,
// and children from their parents, apart.
std::uint64_t own_byte(const LockRange& range) {
  std::uint64_t number = random_number.load(std::memory_order_relaxed);
  if (number == 0) {
    const std::uint64_t drawn = random_u64() | 1;
    if (random_number.compare_exchange_strong(number, drawn, std::memory_order_relaxed))
      number = drawn;
  }
  const auto process_id = static_cast<std::uint64_t>(::getpid()) & process_id_mask;
  const std::uint64_t words[3] = {number, fork_count(), process_id};
  const std::uint64_t hash = hash64({reinterpret_cast<const char*>(words), sizeof words});
  return range.begin + (hash % number_count << process_id_bits | process_id);
}

bool is_marked_by_others(int descriptor, const LockRange& range) {
  const std::uint64_t own = own_byte(range);
  return find_locked(descriptor, {range.begin, own}) ||
         find_locked(descriptor, {own + 1, range.end});
}

// Calls `visit` with the first byte of each lock in the range, in no order.
template <typename Visit>
void visit_locks(int descriptor, const LockRange& range, const Visit& visit) {
  std::vector<LockRange> ranges{range};
  while (!ranges.empty()) {
    const LockRange next = ranges.back();
    ranges.pop_back();
    const std::optional<LockRange> found = find_locked(descriptor, next);
    if (!found) continue;
    visit(found->begin);
    if (next.begin < found->begin) ranges.push_back({next.begin, found->begin});
    if (found->end < next.end) ranges.push_back({found->end, next.end});
  }
}

UpdateId pinned_id_at(std::uint64_t byte) { return (byte - pinned_bytes.begin) >> process_id_bits; }

// Returns the byte of the oldest id below `below` that is pinned.
std::optional<std::uint64_t> find_lowest_pin(int descriptor, UpdateId below) {
  std::optional<std::uint64_t> lowest;
  LockRange range{pinned_bytes.begin,
                  pinned_bytes.begin + (std::min(below, pinned_id_max) << process_id_bits)};
  while (range.begin < range.end) {
    const std::optional<LockRange> found = find_locked(descriptor, range);
    if (!found) break;
    lowest = found->begin;
    range.end = found->begin;
  }
  return lowest;
}

}  // namespace

std::string process_name(std::uint64_t id) {
  try {
    std::string name = read_whole_file("/proc/" + std::to_string(id) + "/comm", 64);
    while (!name.empty() && name.back() == '\n') name.pop_back();
    return name;
  } catch (const Error&) {  // it has ended, or is in another PID namespace
    return {};
  }
}

std::uint64_t pin_byte(UpdateId id, std::uint64_t process_id) noexcept {
  assert(id < pinned_id_max);
  return pinned_bytes.begin + (id << process_id_bits | (process_id & process_id_mask));
}

bool mark_in_use(int descriptor) {
  return try_lock_byte_shared(descriptor, own_byte(in_use_bytes));
}

void mark_trusted(int descriptor) {
  // Only shared locks are taken on this byte, so it cannot fail for another process's sake.
  static_cast<void>(try_lock_byte_shared(descriptor, trusted_byte));
}

bool is_trusted_elsewhere(int descriptor) { return is_byte_locked(descriptor, trusted_byte); }

void unmark_in_use(int descriptor) noexcept { unlock_byte(descriptor, own_byte(in_use_bytes)); }

bool mark_verifying(int descriptor) {
  return try_lock_byte_shared(descriptor, own_byte(verifying_bytes));
}

void unmark_verifying(int descriptor) noexcept {
  unlock_byte(descriptor, own_byte(verifying_bytes));
}

// No process takes an exclusive lock there.
void mark_reading(int descriptor) {
  static_cast<void>(try_lock_byte_shared(descriptor, own_byte(reading_bytes)));
}

bool is_in_use_by_others(int descriptor) {
  return is_marked_by_others(descriptor, in_use_bytes) ||
         is_marked_by_others(descriptor, reading_bytes);
}

Exclusion exclude_users(int descriptor, const Deadline& deadline) {
  // A process that opens the file marks it before it finds out that the file is not of its boot.
  constexpr int attempts_max = 20;
  for (int attempt = 1; !try_lock_range(descriptor, in_use_bytes); ++attempt) {
    if (attempt == attempts_max) return Exclusion::in_use;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  while (!try_lock_range(descriptor, verifying_bytes)) {
    if (deadline.passed()) {
      unlock_range(descriptor, in_use_bytes);
      return Exclusion::being_verified;
    }
    deadline.sleep(std::chrono::milliseconds(1));
  }
  return Exclusion::complete;
}

void admit_users(int descriptor) noexcept {
  unlock_range(descriptor, verifying_bytes);
  unlock_range(descriptor, in_use_bytes);
}

UpdateId find_oldest_pinned_id(int descriptor, UpdateId below) {
  const std::optional<std::uint64_t> oldest = find_lowest_pin(descriptor, below);
  return oldest ? pinned_id_at(*oldest) : below;
}

std::optional<ProcessInfo> find_oldest_pin(int descriptor) {
  const std::optional<std::uint64_t> oldest = find_lowest_pin(descriptor, pinned_id_max);
  if (!oldest) return std::nullopt;
  const std::uint64_t id = *oldest & process_id_mask;
  return ProcessInfo{id, process_name(id), pinned_id_at(*oldest)};
}

std::vector<ProcessInfo> find_processes(int descriptor) {
  std::vector<ProcessInfo> processes;
  for (const LockRange& range : {in_use_bytes, reading_bytes}) {
    visit_locks(descriptor, range, [&](std::uint64_t byte) {
      ProcessInfo& process = processes.emplace_back();
      process.process_id = byte & process_id_mask;
      process.process_name = process_name(process.process_id);
    });
  }
  visit_locks(descriptor, pinned_bytes, [&](std::uint64_t byte) {
    const std::uint64_t id = byte & process_id_mask;
    const UpdateId pinned_id = pinned_id_at(byte);
    const auto process = std::find_if(processes.begin(), processes.end(),
                                      [&](const auto& info) { return info.process_id == id; });
    if (process == processes.end()) {  // forked: what it maps is marked by its parent
      processes.push_back({id, process_name(id), pinned_id});
    } else {
      process->oldest_pinned_id =
          std::min(process->oldest_pinned_id.value_or(pinned_id), pinned_id);
    }
  });
  return processes;
}

}  // namespace whycache
