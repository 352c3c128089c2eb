// Which changes of an update count: of several changes of one key, the last one.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include <whycache/types.h>

namespace whycache {

// Keeps its memory from one call of find() to the next.
class LastChanges {
 public:
  // Finds the last change of each key. `hashes` has a hash of each change's key. Keys may be chosen
  // to have the same hash: this then takes the time of sorting them, and no longer.
  void find(std::span<const Change> changes, std::span<const std::uint64_t> hashes);

  bool is_last(std::size_t i) const { return is_last_[i]; }
  // How many changes are the last of their key.
  std::size_t count() const { return count_; }

 private:
  bool try_find_by_hash(std::span<const Change> changes, std::span<const std::uint64_t> hashes);
  void find_by_sorting(std::span<const Change> changes);

  std::vector<bool> is_last_;
  std::size_t count_ = 0;
  std::vector<std::uint32_t> slots_;  // of try_find_by_hash()
};

}  // namespace whycache
