// The demo's data: items from Debian's package index, or from a file that the user names.
#pragma once

#include <string>
#include <vector>

namespace whycache::demo {

struct Record {
  std::string key;
  std::string body;
};

// Returns every package of the lists that apt has fetched, by name; a later list (security)
// overrides an earlier one. Throws std::runtime_error if there are none.
std::vector<Record> read_package_index();

// Reads JSON lines {"key": "...", "value": "..."}. Throws std::runtime_error for other input.
std::vector<Record> read_json_lines(const std::string& path);

}  // namespace whycache::demo
