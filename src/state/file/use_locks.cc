#include "state/file/use_locks.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cassert>
#include <optional>
#include <string>
#include <utility>

#include "base/file.h"
#include "base/fork_handlers.h"
#include "base/process_lock.h"
#include "base/random.h"

namespace whycache {
namespace {

constexpr unsigned process_id_bits = 22;
constexpr std::uint64_t process_id_mask = (std::uint64_t{1} << process_id_bits) - 1;
constexpr LockRange in_use_bytes{std::uint64_t{1} << 60, std::uint64_t{1} << 61};
constexpr LockRange pinned_bytes{std::uint64_t{1} << 61, std::uint64_t{1} << 62};
constexpr UpdateId pinned_id_max = (pinned_bytes.end - pinned_bytes.begin) >> process_id_bits;

// The byte of this process. Its random part tells processes of several PID namespaces apart.
std::uint64_t in_use_byte() {
  static std::atomic<std::uint64_t> random{random_u64()};
  static std::atomic<std::uint64_t> forks{fork_count()};
  // A child must not be taken for its parent. Relaxed: a child has one thread when it comes here
  // first, or its threads agree on any of the numbers drawn.
  if (const std::uint64_t now = fork_count(); forks.load(std::memory_order_relaxed) != now) {
    random.store(random_u64(), std::memory_order_relaxed);
    forks.store(now, std::memory_order_relaxed);
  }
  const std::uint64_t numbers = (in_use_bytes.end - in_use_bytes.begin) >> process_id_bits;
  return in_use_bytes.begin + (random.load(std::memory_order_relaxed) % numbers << process_id_bits |
                               (static_cast<std::uint64_t>(::getpid()) & process_id_mask));
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

bool mark_in_use(int descriptor) { return try_lock_byte_shared(descriptor, in_use_byte()); }

void unmark_in_use(int descriptor) noexcept { unlock_byte(descriptor, in_use_byte()); }

bool is_in_use_by_others(int descriptor) {
  const std::uint64_t own = in_use_byte();
  return find_locked(descriptor, {in_use_bytes.begin, own}) ||
         find_locked(descriptor, {own + 1, in_use_bytes.end});
}

bool exclude_users(int descriptor) {
  return try_lock_range(descriptor, {in_use_bytes.begin, pinned_bytes.end});
}

void admit_users(int descriptor) noexcept {
  unlock_range(descriptor, {in_use_bytes.begin, pinned_bytes.end});
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
  visit_locks(descriptor, in_use_bytes, [&](std::uint64_t byte) {
    ProcessInfo& process = processes.emplace_back();
    process.process_id = byte & process_id_mask;
    process.process_name = process_name(process.process_id);
  });
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
