#include "state/btree/reverse_cursor.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace whycache {

void ReverseBTreeCursor::seek_before(NodeOffset root, const std::optional<std::string>& end) {
  leaf_.reset();
  last_.clear();
  if (root == 0) return;
  const BTreeNode node = BTreeNode::root(nodes_, root);
  root_level_ = node.level();
  enter(node, end);
}

// Moves to the last key before `end` under `node`. If there is none, moves to the previous leaf.
void ReverseBTreeCursor::enter(BTreeNode node, const std::optional<std::string>& end) {
  const auto count_before_end = [&] { return end ? node.find(*end).index : node.count(); };
  while (!node.is_leaf()) {
    const unsigned child = count_before_end();
    path_[node.level() - 1] = {node.data() + node.children_offset(), child};
    node = BTreeNode::child_at_level(nodes_, node.child(child), node.level() - 1);
  }
  left_ = count_before_end();
  leaf_ = left_ > 0 ? node : enter_previous_leaf();
}

// Returns the leaf before the current path, and makes all its keys the next ones. Returns nullopt
// if there is none.
std::optional<BTreeNode> ReverseBTreeCursor::enter_previous_leaf() {
  unsigned level = 1;
  while (level <= root_level_ && path_[level - 1].child == 0) ++level;
  if (level > root_level_) return std::nullopt;
  Branch& branch = path_[level - 1];
  --branch.child;
  const NodeOffset child =
      child_unit_bytes *
      load_little_endian<ChildNumber>(branch.children + branch.child * sizeof(ChildNumber));
  BTreeNode node = BTreeNode::child_at_level(nodes_, child, level - 1);
  while (!node.is_leaf()) {
    path_[node.level() - 1] = {node.data() + node.children_offset(), node.count()};
    node = BTreeNode::child_at_level(nodes_, node.child(node.count()), node.level() - 1);
  }
  left_ = node.count();
  return node;
}

std::size_t ReverseBTreeCursor::next_batch(std::vector<std::string_view>& keys,
                                           std::size_t count_max) {
  keys.clear();
  if (!leaf_ || count_max == 0) return 0;
  // At the end unless this returns.
  const BTreeNode leaf = *std::exchange(leaf_, std::nullopt);
  const std::string_view prefix = leaf.prefix();
  const std::size_t count = std::min<std::size_t>(count_max, left_);
  const std::size_t suffixes_begin = leaf.suffix_range(left_ - count).begin;
  const std::size_t suffixes_end = leaf.suffix_range(left_ - 1).end;
  if (suffixes_begin > suffixes_end) leaf.throw_corrupt("a suffix beyond its end");
  const std::size_t bytes = count * prefix.size() + suffixes_end - suffixes_begin;
  char* to = buffer_.reserve(bytes);
  const char* const end = to + bytes;
  std::string_view last = last_;
  for (; keys.size() < count; --left_) {
    const std::string_view suffix = leaf.suffix(left_ - 1);
    const std::size_t key_bytes = prefix.size() + suffix.size();
    if (key_bytes == 0 || key_bytes > tree_key_bytes_max ||
        key_bytes > static_cast<std::size_t>(end - to)) {
      leaf.throw_corrupt("a key of a wrong size");
    }
    std::memcpy(to, prefix.data(), prefix.size());
    std::memcpy(to + prefix.size(), suffix.data(), suffix.size());
    const std::string_view key(to, key_bytes);
    if (!last.empty() && key >= last) leaf.throw_corrupt("keys out of order");
    keys.push_back(key);
    last = key;
    to += key_bytes;
  }
  last_ = last;
  buffer_.keep(to);
  leaf_ = left_ > 0 ? leaf : enter_previous_leaf();
  return count;
}

}  // namespace whycache
