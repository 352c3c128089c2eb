#include "support/memory_directory.h"

#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <thread>

namespace whycache::testing {

std::filesystem::path memory_directory() {
  constexpr const char* in_memory = "/dev/shm";
  constexpr std::uint64_t bytes_min = std::uint64_t{1} << 30;
  constexpr std::uint64_t bytes_per_test = 150'000'000;  // one test runs per processor
  const std::uint64_t bytes_needed =
      bytes_min + bytes_per_test * std::max(1U, std::thread::hardware_concurrency());
  struct statvfs space;
  const bool has_room = ::statvfs(in_memory, &space) == 0 && ::access(in_memory, W_OK) == 0 &&
                        std::uint64_t{space.f_bavail} * space.f_frsize >= bytes_needed;
  return has_room ? std::filesystem::path(in_memory) : std::filesystem::temp_directory_path();
}

}  // namespace whycache::testing
