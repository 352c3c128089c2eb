// Copies of changes.
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include <whycache/types.h>
#include <whycache/view.h>

namespace whycache::cli {

class ChangeList {
 public:
  void add(const Change& change) {
    changes_.push_back({change.kind, std::string(change.key), std::string(change.value)});
  }
  void clear() { changes_.clear(); }
  bool empty() const { return changes_.empty(); }
  // Valid until the list changes.
  std::vector<Change> changes() const {
    std::vector<Change> changes;
    changes.reserve(changes_.size());
    for (const Copy& copy : changes_) changes.push_back({copy.kind, copy.key, copy.value});
    return changes;
  }

 private:
  struct Copy {
    Change::Kind kind;
    std::string key;
    std::string value;
  };
  std::vector<Copy> changes_;
};

// Whether the change would change an item of the view.
inline bool has_effect(const Change& change, const View& view) {
  const std::optional<std::string_view> value = view.get(change.key);
  return change.kind == Change::Kind::set ? value != change.value : value.has_value();
}

}  // namespace whycache::cli
