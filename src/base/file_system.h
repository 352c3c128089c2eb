// The file systems that whycache knows, and whether every process that maps a file on one of them
// sees the same memory. Opening a state and `whycache doctor` share this table.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace whycache {

struct FileSystem {
  std::int64_t type;  // f_type of statfs(2)
  const char* name;
  bool shares_memory;
};

// Returns the type of the file system that holds `path`, or nullopt with errno set.
std::optional<std::int64_t> file_system_type(const std::string& path) noexcept;

// Returns nullptr if the type is not in the table.
const FileSystem* find_file_system(std::int64_t type) noexcept;

}  // namespace whycache
