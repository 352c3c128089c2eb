#include "state/btree/cursor.h"

#include <algorithm>
#include <cstring>

namespace whycache {
namespace {

constexpr std::size_t copy_slack_bytes = 16;

// Copies a few bytes, usually fewer than 16. `to` has room for copy_slack_bytes more; `readable`
// bytes may be read from `from` on.
inline void copy_with_slack(char* to, const char* from, std::size_t bytes, std::size_t readable) {
  if (bytes <= copy_slack_bytes && readable >= copy_slack_bytes) {
    std::memcpy(to, from, copy_slack_bytes);
  } else {
    std::memcpy(to, from, bytes);
  }
}

}  // namespace

void BTreeCursor::seek(NodeOffset root, std::string_view key) {
  at_end_ = true;
  root_level_ = 0;
  if (root == 0) return;
  BTreeNode node = BTreeNode::root(nodes_, root);
  root_level_ = node.level();
  while (!node.is_leaf()) {
    const unsigned child = node.child_index_of(key);
    path_[node.level() - 1] = {node.data() + node.children_offset(), child, node.count()};
    node = BTreeNode::child_at_level(nodes_, node.child(child), node.level() - 1);
  }
  const unsigned index = node.find(key).index;
  if (index == node.count()) {
    next_leaf(key);
  } else {
    enter_leaf(node, index);
    at_end_ = false;
  }
}

void BTreeCursor::next() {
  if (!at_end_) advance(key());
}

void BTreeCursor::advance(std::string_view last) {
  if (index_ + 1 == count_) {
    next_leaf(last);
    return;
  }
  at_end_ = true;
  const std::string_view before = suffix_;
  const std::uint64_t head = head_;
  ++index_;
  load_suffix();
  check_ascending(before, head);
  load_key();
  at_end_ = false;
}

void BTreeCursor::next_leaf(std::string_view last) {
  at_end_ = true;
  unsigned level = 1;
  while (level <= root_level_ && path_[level - 1].child == path_[level - 1].count) ++level;
  if (level > root_level_) return;
  PathNode& branch = path_[level - 1];
  ++branch.child;
  const NodeOffset child =
      child_unit_bytes *
      load_little_endian<ChildNumber>(branch.children + branch.child * sizeof(ChildNumber));
  BTreeNode node = BTreeNode::child_at_level(nodes_, child, level - 1);
  while (!node.is_leaf()) {
    path_[node.level() - 1] = {node.data() + node.children_offset(), 0, node.count()};
    node = BTreeNode::child_at_level(nodes_, node.child(0), node.level() - 1);
  }
  const std::string_view prefix = node.prefix();
  const int order = last.substr(0, prefix.size()).compare(prefix);
  if (order > 0 || (order == 0 && last.substr(prefix.size()) >= node.suffix(0)))
    node.throw_corrupt("keys out of order");
  enter_leaf(node, 0);
  at_end_ = false;
}

void BTreeCursor::enter_leaf(const BTreeNode& leaf, unsigned index) {
  leaf_ = leaf.offset();
  ends_ = leaf.data() + btree_node_header_bytes;
  suffixes_ = leaf.suffixes();
  suffix_bytes_max_ = leaf.suffix_bytes_max();
  count_ = leaf.count();
  index_ = index;
  prefix_bytes_ = static_cast<std::uint32_t>(leaf.prefix().size());
  std::memcpy(key_.data(), leaf.prefix().data(), prefix_bytes_);
  suffix_end_ =
      index == 0 ? 0 : load_little_endian<SuffixEnd>(ends_ + (index - 1) * sizeof(SuffixEnd));
  load_suffix();
  load_key();
}

inline void BTreeCursor::load_suffix() {
  const std::size_t begin = suffix_end_;
  suffix_end_ = load_little_endian<SuffixEnd>(ends_ + index_ * sizeof(SuffixEnd));
  const std::size_t key_bytes = prefix_bytes_ + suffix_end_ - begin;
  if (begin > suffix_end_ || suffix_end_ > suffix_bytes_max_ || key_bytes == 0 ||
      key_bytes > tree_key_bytes_max) [[unlikely]] {
    throw_corrupt_node(leaf_, "a key of a wrong size");
  }
  suffix_ = {suffixes_ + begin, suffix_end_ - begin};
  head_ = head_in_node(suffix_.data(), suffix_.size());
}

inline void BTreeCursor::check_ascending(std::string_view before, std::uint64_t head) const {
  if (head_ > head || (head_ == head && compare_behind_heads(before, suffix_) < 0)) [[likely]]
    return;
  throw_corrupt_node(leaf_, "keys out of order");
}

inline void BTreeCursor::load_key() {
  copy_with_slack(key_.data() + prefix_bytes_, suffix_.data(), suffix_.size(),
                  suffix_bytes_max_ - static_cast<std::size_t>(suffix_.data() - suffixes_));
  key_bytes_ = prefix_bytes_ + static_cast<std::uint32_t>(suffix_.size());
}

std::size_t BTreeCursor::next_batch(std::vector<std::string_view>& keys, std::size_t count_max) {
  keys.clear();
  if (at_end_ || count_max == 0) return 0;
  const std::size_t count = std::min<std::size_t>(count_max, count_ - index_);
  const std::size_t begin = suffix_end_ - suffix_.size();
  const std::size_t end =
      load_little_endian<SuffixEnd>(ends_ + (index_ + count - 1) * sizeof(SuffixEnd));
  at_end_ = true;
  if (end < suffix_end_ || end > suffix_bytes_max_)
    throw_corrupt_node(leaf_, "a suffix beyond its end");
  const std::size_t bytes = count * prefix_bytes_ + end - begin + copy_slack_bytes;
  keys.resize(count);
  char* to = buffer_.reserve(bytes);
  for (std::size_t i = 0;;) {
    copy_with_slack(to, key_.data(), prefix_bytes_, key_.size());
    copy_with_slack(to + prefix_bytes_, suffix_.data(), suffix_.size(),
                    suffix_bytes_max_ - static_cast<std::size_t>(suffix_.data() - suffixes_));
    keys[i] = {to, prefix_bytes_ + suffix_.size()};
    to += prefix_bytes_ + suffix_.size();
    if (++i == count) break;
    const std::string_view before = suffix_;
    const std::uint64_t head = head_;
    ++index_;
    load_suffix();
    if (suffix_end_ > end) throw_corrupt_node(leaf_, "a suffix beyond its end");
    check_ascending(before, head);
  }
  buffer_.keep(to);
  advance(keys.back());
  return count;
}

std::uint64_t BTreeCursor::count_before(const std::optional<std::string>& end) {
  std::uint64_t count = 0;
  while (!at_end_) {
    at_end_ = true;
    const BTreeNode leaf = BTreeNode::child_at_level(nodes_, leaf_, 0);
    const unsigned before = end ? leaf.find(*end).index : leaf.count();
    if (before > index_) count += before - index_;
    if (before < leaf.count()) break;
    std::string last(leaf.prefix());
    last += leaf.suffix(leaf.count() - 1);
    next_leaf(last);
  }
  return count;
}

}  // namespace whycache
