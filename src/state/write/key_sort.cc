#include "state/write/key_sort.h"

#include <algorithm>
#include <array>
#include <utility>

#include "state/btree/node.h"

namespace whycache {
namespace {

// Fewer are sorted by comparing them.
constexpr std::size_t radix_sort_min = 64;

bool is_less(const KeyChange& a, const KeyChange& b) { return a.key < b.key; }

std::size_t prefix_bytes_of_all(const std::vector<KeyChange>& changes) {
  const std::string_view first = changes.front().key;
  std::size_t bytes = first.size();
  for (const KeyChange& change : changes)
    bytes = shared_prefix_bytes(first.substr(0, bytes), change.key);
  return bytes;
}

}  // namespace

void KeySort::sort(std::vector<KeyChange>& changes) {
  if (changes.size() < radix_sort_min) {
    std::sort(changes.begin(), changes.end(), is_less);
    return;
  }
  const std::size_t prefix_bytes = prefix_bytes_of_all(changes);
  heads_.clear();
  heads_.reserve(changes.size());
  for (std::size_t i = 0; i < changes.size(); ++i)
    heads_.push_back({head_of(changes[i].key.substr(prefix_bytes)), i});
  sort_heads();
  unsorted_.swap(changes);
  changes.clear();
  for (const Head& head : heads_) changes.push_back(unsorted_[head.index]);
  unsorted_.clear();
  // Keys with the same head have to be compared.
  for (std::size_t first = 0; first < heads_.size();) {
    std::size_t end = first + 1;
    while (end < heads_.size() && heads_[end].number == heads_[first].number) ++end;
    const auto begin = changes.begin();
    if (end - first > 1)
      std::sort(begin + static_cast<std::ptrdiff_t>(first),
                begin + static_cast<std::ptrdiff_t>(end), is_less);
    first = end;
  }
}

// A radix sort: one pass for each byte that is not the same in all heads, the last byte first.
void KeySort::sort_heads() {
  constexpr std::size_t byte_values = 256;
  std::array<std::array<std::size_t, byte_values>, key_head_bytes> counts{};
  const auto byte_of = [](const Head& head, std::size_t byte) {
    return static_cast<std::size_t>(head.number >> (8 * byte) & 0xff);
  };
  for (const Head& head : heads_) {
    for (std::size_t byte = 0; byte < key_head_bytes; ++byte) ++counts[byte][byte_of(head, byte)];
  }
  sorted_.resize(heads_.size());
  for (std::size_t byte = 0; byte < key_head_bytes; ++byte) {
    if (counts[byte][byte_of(heads_.front(), byte)] == heads_.size()) continue;
    std::array<std::size_t, byte_values> next;  // where the next head with that byte goes
    std::size_t sum = 0;
    for (std::size_t value = 0; value < byte_values; ++value)
      next[value] = std::exchange(sum, sum + counts[byte][value]);
    for (const Head& head : heads_) sorted_[next[byte_of(head, byte)]++] = head;
    heads_.swap(sorted_);
  }
}

}  // namespace whycache
