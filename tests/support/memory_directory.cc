#include "support/memory_directory.h"

#include <sys/statvfs.h>
#include <unistd.h>

#include <cstdint>

namespace whycache::testing {

std::filesystem::path memory_directory() {
  constexpr const char* in_memory = "/dev/shm";
  constexpr std::uint64_t bytes_min = std::uint64_t{1} << 30;
  struct statvfs space;
  const bool has_room = ::statvfs(in_memory, &space) == 0 && ::access(in_memory, W_OK) == 0 &&
                        std::uint64_t{space.f_bavail} * space.f_frsize >= bytes_min;
  return has_room ? std::filesystem::path(in_memory) : std::filesystem::temp_directory_path();
}

}  // namespace whycache::testing
