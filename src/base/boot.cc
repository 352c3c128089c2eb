#include "base/boot.h"

#include <fcntl.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>
#include <exception>
#include <sstream>
#include <string>

#include "base/file.h"
#include "base/fork_handlers.h"
#include "base/hash.h"
#include "base/hex.h"

namespace whycache {

namespace {

Uuid read_boot_id() {
  Uuid id{};
  const FileDescriptor file(::open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC));
  char text[64];
  const ssize_t size = file ? ::read(file.number(), text, sizeof text) : 0;
  std::size_t digits = 0;
  for (ssize_t i = 0; i < size && digits < 32; ++i) {
    const int digit = hex_value(text[i]);
    if (digit < 0) continue;
    id[digits / 2] = static_cast<std::uint8_t>(id[digits / 2] << 4 | digit);
    ++digits;
  }
  return id;
}

}  // namespace

Uuid boot_id() {
  // Threads that read it at the same time store the same: the halves first, then is_known
  // (release).
  static std::atomic<std::uint64_t> known_halves[2];
  static std::atomic<bool> is_known{false};
  std::uint64_t halves[2];
  Uuid id{};
  static_assert(sizeof halves == sizeof id);
  if (is_known.load(std::memory_order_acquire)) {
    for (int i : {0, 1}) halves[i] = known_halves[i].load(std::memory_order_relaxed);
    std::memcpy(id.data(), halves, sizeof halves);
    return id;
  }
  id = read_boot_id();
  if (id == Uuid{}) return id;
  std::memcpy(halves, id.data(), sizeof halves);
  for (int i : {0, 1}) known_halves[i].store(halves[i], std::memory_order_relaxed);
  is_known.store(true, std::memory_order_release);
  return id;
}

namespace {

// Returns what the time namespace adds to CLOCK_BOOTTIME, as text; nullopt if it is not known.
// Inodes of namespaces do not serve: the kernel uses them again.
std::optional<std::string> read_boot_time_offset() {
  const FileDescriptor file(::open("/proc/self/timens_offsets", O_RDONLY | O_CLOEXEC));
  if (!file) {
    // Linux before 5.6, if the rest of /proc is there.
    if (errno == ENOENT && ::access("/proc/self/stat", F_OK) == 0) return "0 0";
    return std::nullopt;
  }
  char text[256];
  const ssize_t size = ::read(file.number(), text, sizeof text);
  if (size <= 0) return std::nullopt;
  // "boottime        100000         0"
  std::istringstream lines(std::string(text, static_cast<std::size_t>(size)));
  std::string clock;
  std::string seconds;
  std::string nanoseconds;
  while (lines >> clock >> seconds >> nanoseconds) {
    if (clock == "boottime" || clock == "7") return seconds.append(" ").append(nanoseconds);
  }
  return std::nullopt;
}

std::optional<std::uint64_t> find_boot_clock_id() noexcept {
  try {
    const Uuid boot = boot_id();
    const std::optional<std::string> offset = read_boot_time_offset();
    if (boot == Uuid{} || !offset) return std::nullopt;
    return hash64({reinterpret_cast<const char*>(boot.data()), boot.size()}, hash64(*offset));
  } catch (const std::exception&) {  // std::bad_alloc
    return std::nullopt;
  }
}

}  // namespace

std::optional<std::uint64_t> boot_clock_id() noexcept {
  // Threads that find it at the same time store the same.
  static std::atomic<std::uint64_t> known_id{0};
  // 1 + the fork count of the process for which the id was looked for. Stored after it (release).
  static std::atomic<std::uint64_t> known_for{0};
  const std::uint64_t process = fork_count() + 1;
  const std::uint64_t last = known_for.load(std::memory_order_acquire);
  if (last == process) return known_id.load(std::memory_order_relaxed);
  if (const std::optional<std::uint64_t> id = find_boot_clock_id()) {
    known_id.store(*id, std::memory_order_relaxed);
  } else if (last == 0) {
    return std::nullopt;
  }
  known_for.store(process, std::memory_order_release);
  return known_id.load(std::memory_order_relaxed);
}

}  // namespace whycache
