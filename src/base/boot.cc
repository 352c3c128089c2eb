#include "base/boot.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cstring>

#include "base/file.h"
#include "base/fork_handlers.h"
#include "base/hash.h"
#include "base/hex.h"
#include "base/random.h"

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
  // Threads that read it at the same time store the same: the halves first, then the fork count of
  // the process, plus 1 (release).
  static std::atomic<std::uint64_t> known_halves[2];
  static std::atomic<std::uint64_t> known_for{0};
  std::uint64_t halves[2];
  Uuid id{};
  static_assert(sizeof halves == sizeof id);
  if (known_for.load(std::memory_order_acquire) == fork_count() + 1) {
    for (int i : {0, 1}) halves[i] = known_halves[i].load(std::memory_order_relaxed);
    std::memcpy(id.data(), halves, sizeof halves);
    return id;
  }
  id = read_boot_id();
  if (id == Uuid{}) return id;
  std::memcpy(halves, id.data(), sizeof halves);
  for (int i : {0, 1}) known_halves[i].store(halves[i], std::memory_order_relaxed);
  known_for.store(fork_count() + 1, std::memory_order_release);
  return id;
}

namespace {

std::uint64_t find_boot_clock_id() noexcept {
  const Uuid boot = boot_id();
  // Without the id, no other process can be known to have the same clock.
  if (boot == Uuid{}) return random_u64();
  struct stat time_namespace {};
  if (::stat("/proc/self/ns/time", &time_namespace) != 0) time_namespace.st_ino = 0;  // Linux < 5.6
  return hash64({reinterpret_cast<const char*>(boot.data()), boot.size()}, time_namespace.st_ino);
}

}  // namespace

std::uint64_t boot_clock_id() noexcept {
  // Threads that find it at the same time store the same, except without a boot id.
  static std::atomic<std::uint64_t> known_id{0};
  // 1 + the fork count of the process for which the id was found. Stored after it (release).
  static std::atomic<std::uint64_t> known_for{0};
  if (known_for.load(std::memory_order_acquire) != fork_count() + 1) {
    known_id.store(find_boot_clock_id(), std::memory_order_relaxed);
    known_for.store(fork_count() + 1, std::memory_order_release);
  }
  return known_id.load(std::memory_order_relaxed);
}

}  // namespace whycache
