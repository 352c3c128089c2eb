#include "state/btree/node.h"

#include <string>

#include "state/errors.h"

namespace whycache {

namespace {

ChildNumber child_number(NodeOffset child) {
  if (child % child_unit_bytes != 0 || child / child_unit_bytes > UINT32_MAX)
    throw_corrupt_node(child, "a child at a wrong offset");
  return static_cast<ChildNumber>(child / child_unit_bytes);
}

void write_header(char* to, const BTreeNodeHeader& header) {
  std::memcpy(to + sizeof(NodeHeader), &header, sizeof header);
}

// Copies a node: runs of old keys, with new keys between them.
class NodeCopy {
 public:
  // `count`: the number of keys that the copy will have.
  NodeCopy(const BTreeNode& from, char* to, std::size_t count) : from_(from) {
    const std::size_t prefix_at = btree_node_bytes(from.level(), count, 0, 0);
    std::memcpy(to + prefix_at, from.prefix().data(), from.prefix().size());
    ends_ = to + btree_node_header_bytes;
    children_ = ends_ + count * sizeof(SuffixEnd);
    suffixes_ = to + prefix_at + from.prefix().size();
    if (!from.is_leaf()) add_children(0, 1);
  }

  // Copies the old keys from the end of the last run up to number `end`.
  void copy_keys_up_to(std::size_t end) {
    if (end == next_) return;
    const std::size_t count = end - next_;
    const std::size_t end_bytes = from_.suffix_range(end - 1).end;
    if (end_bytes < next_bytes_ || end_bytes > from_.suffix_bytes())
      from_.throw_corrupt("keys out of order");
    const std::size_t bytes = end_bytes - next_bytes_;
    std::memcpy(suffixes_ + bytes_, from_.suffixes() + next_bytes_, bytes);
    const char* const old_ends = from_.data() + btree_node_header_bytes + next_ * sizeof(SuffixEnd);
    const std::ptrdiff_t by =
        static_cast<std::ptrdiff_t>(bytes_) - static_cast<std::ptrdiff_t>(next_bytes_);
    for (std::size_t i = 0; i < count; ++i) {
      const auto old_end = load_little_endian<SuffixEnd>(old_ends + i * sizeof(SuffixEnd));
      store_little_endian(ends_ + i * sizeof(SuffixEnd), static_cast<SuffixEnd>(old_end + by));
    }
    ends_ += count * sizeof(SuffixEnd);
    if (!from_.is_leaf()) add_children(next_ + 1, count);
    bytes_ += bytes;
    next_ = end;
    next_bytes_ = end_bytes;
  }
  void skip_key() {
    next_bytes_ = from_.suffix_range(next_).end;
    ++next_;
  }
  void add_key(const NewKey& added) {
    const std::string_view suffix = added.key.substr(from_.prefix().size());
    std::memcpy(suffixes_ + bytes_, suffix.data(), suffix.size());
    bytes_ += suffix.size();
    store_little_endian(ends_, static_cast<SuffixEnd>(bytes_));
    ends_ += sizeof(SuffixEnd);
    if (from_.is_leaf()) return;
    store_little_endian(children_, child_number(added.child));
    children_ += sizeof(ChildNumber);
  }

 private:
  void add_children(std::size_t first, std::size_t count) {
    std::memcpy(children_, from_.data() + from_.children_offset() + first * sizeof(ChildNumber),
                count * sizeof(ChildNumber));
    children_ += count * sizeof(ChildNumber);
  }

  const BTreeNode& from_;
  std::size_t next_ = 0;        // number of the next old key
  std::size_t next_bytes_ = 0;  // where its suffix begins
  char* ends_;
  char* children_;
  char* suffixes_;
  std::size_t bytes_ = 0;  // of suffixes written
};

// A node, copied first if its bytes are about to be overwritten.
class UnaliasedNode {
 public:
  UnaliasedNode(const BTreeNode& node, const char* target) : node_(node) {
    if (node.data() != target) return;
    const std::size_t bytes = node.bytes();
    std::memcpy(copy_, node.data(), bytes);
    node_ = BTreeNode(copy_, node.offset(), bytes);
  }
  const BTreeNode& node() const { return node_; }

 private:
  BTreeNode node_;
  char copy_[btree_node_bytes_max];
};

}  // namespace

void throw_corrupt_node(NodeOffset node, const char* what) {
  throw corrupt_state("tree node with " + std::string(what) + ": offset=" + std::to_string(node));
}

void write_btree_node(char* to, unsigned level, std::span<const std::string_view> keys,
                      std::span<const NodeOffset> children, std::size_t prefix_bytes,
                      std::uint16_t last_inserted) {
  write_header(to, {.level = static_cast<std::uint8_t>(level),
                    .reserved = 0,
                    .count = static_cast<std::uint16_t>(keys.size()),
                    .prefix_bytes = static_cast<std::uint16_t>(prefix_bytes),
                    .last_inserted = last_inserted});
  char* ends = to + btree_node_header_bytes;
  for (std::size_t i = 0; i < children.size(); ++i) write_child(to, keys.size(), i, children[i]);
  char* prefix = to + btree_node_bytes(level, keys.size(), 0, 0);
  if (!keys.empty()) std::memcpy(prefix, keys[0].data(), prefix_bytes);
  char* const suffixes = prefix + prefix_bytes;
  std::size_t end = 0;
  for (const std::string_view key : keys) {
    const std::string_view suffix = key.substr(prefix_bytes);
    std::memcpy(suffixes + end, suffix.data(), suffix.size());
    end += suffix.size();
    store_little_endian(ends, static_cast<SuffixEnd>(end));
    ends += sizeof(SuffixEnd);
  }
}

void write_with_keys(const BTreeNode& from, char* to, std::span<const NewKey> added) {
  const UnaliasedNode source(from, to);
  const std::size_t count = from.count() + added.size();
  NodeCopy copy(source.node(), to, count);
  for (const NewKey& key : added) {
    copy.copy_keys_up_to(key.index);
    copy.add_key(key);
  }
  copy.copy_keys_up_to(from.count());
  write_header(
      to, {.level = static_cast<std::uint8_t>(from.level()),
           .reserved = 0,
           .count = static_cast<std::uint16_t>(count),
           .prefix_bytes = static_cast<std::uint16_t>(from.prefix().size()),
           .last_inserted = static_cast<std::uint16_t>(added.back().index + added.size() - 1)});
}

void write_without_keys(const BTreeNode& from, char* to, std::span<const std::size_t> erased) {
  const UnaliasedNode source(from, to);
  const std::size_t count = from.count() - erased.size();
  NodeCopy copy(source.node(), to, count);
  for (const std::size_t index : erased) {
    copy.copy_keys_up_to(index);
    copy.skip_key();
  }
  copy.copy_keys_up_to(from.count());
  write_header(to, {.level = 0,
                    .reserved = 0,
                    .count = static_cast<std::uint16_t>(count),
                    .prefix_bytes = static_cast<std::uint16_t>(from.prefix().size()),
                    .last_inserted = no_key_inserted});
}

void write_child(char* to, std::size_t count, std::size_t index, NodeOffset child) {
  store_little_endian(
      to + btree_node_header_bytes + count * sizeof(SuffixEnd) + index * sizeof(ChildNumber),
      child_number(child));
}

}  // namespace whycache
