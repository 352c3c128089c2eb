// The mappings of a file in this process.
#pragma once

#include <fstream>
#include <string>
#include <vector>

namespace whycache::testing {

// Returns the lines of /proc/self/maps for this file, or for an earlier file at this path.
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
