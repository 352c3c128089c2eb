// Which mappings of a file this process has.
#pragma once

#include <fstream>
#include <string>
#include <vector>

namespace whycache::testing {

// As /proc/self/maps shows them: of this file, or of one that was at this path before.
inline std::vector<std::string> mappings_of(const std::string& path) {
  std::vector<std::string> found;
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.ends_with(path) || line.ends_with(path + " (deleted)")) found.push_back(line);
  }
  return found;
}

inline int writable_mappings_of(const std::string& path) {
  int count = 0;
  for (const std::string& mapping : mappings_of(path))
    count += mapping.find(" rw-s ") != std::string::npos;
  return count;
}

}  // namespace whycache::testing
