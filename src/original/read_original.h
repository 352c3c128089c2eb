// Brings the data of the original program into a log of this one. Formats:
// docs/formats/original.md.
#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace whycache {

// Visits the updates of an original log in ascending order of their ids. The source is
// file:///directory, or mysql://user@host/database?table=whycache. Throws Error(invalid) if the
// source cannot be used, Error(unavailable) if the server does not answer.
void visit_original_updates(const std::string& source,
                            const std::function<void(std::uint64_t, std::string_view)>& visit);

// Visits the keys of an update with their pickled values, which are empty for keys that it erases.
// Throws Error(corrupt), which names the update.
void visit_original_items(std::uint64_t id, std::string_view update,
                          const std::function<void(std::string_view, std::string_view)>& visit);

struct OriginalData {
  std::uint64_t updates_read = 0;
  // Keys, and what their values are stored as.
  std::map<std::string, std::string, std::less<>> items;
  // Keys whose values cannot be imported, and why.
  struct Skipped {
    std::string key;
    std::string reason;
  };
  std::vector<Skipped> skipped;
};

// Replays the updates in memory, and returns what they leave. Values that cannot be imported are
// skipped, or else Error(invalid) is thrown. Otherwise throws as visit_original_updates(), and
// Error(corrupt) if an update is damaged.
OriginalData read_original(const std::string& source, bool skips);

}  // namespace whycache
