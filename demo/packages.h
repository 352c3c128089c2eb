// The demo's data: real items from Debian's package index, or from a file of one's own.
#pragma once

#include <string>
#include <vector>

namespace whycache::demo {

struct Record {
  std::string key;
  std::string body;
};

// Every package of the lists apt has fetched, by name; a later list (security) overrides an earlier
// one. Throws std::runtime_error that says what to do when there are none.
std::vector<Record> read_package_index();

// JSON lines {"key": "...", "value": "..."}.
std::vector<Record> read_json_lines(const std::string& path);

}  // namespace whycache::demo
