// Sorting the keys that an update adds to the key index or removes from it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string_view>
#include <vector>

namespace whycache {

struct KeyChange {
  std::string_view key;
  bool is_insertion;
};

// Sorts by key: by radix where the eight bytes behind the prefix of all keys differ, and otherwise
// by comparing keys. One key without the prefix of the others therefore costs the gain. Keeps its
// memory from one call to the next.
class KeySort {
 public:
  void sort(std::vector<KeyChange>& changes);

 private:
  // The eight bytes of a key behind those that all keys share, as a number (head_of()).
  struct Head {
    std::uint64_t number;
    std::size_t index;
  };
  void sort_heads();

  std::vector<Head> heads_;
  std::vector<Head> sorted_;
  std::vector<KeyChange> unsorted_;
};

}  // namespace whycache
