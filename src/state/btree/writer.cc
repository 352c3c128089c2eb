#include "state/btree/writer.h"

#include <algorithm>
#include <array>
#include <cassert>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include <whycache/error.h>

#include "state/btree/node.h"

namespace whycache {

namespace {

// Stores keys, whose bytes stay in place until clear().
class KeyArena {
 public:
  std::string_view store(std::string_view front, std::string_view back = {}) {
    const std::size_t bytes = front.size() + back.size();
    if (bytes > bytes_left_) grow();
    char* const begin = next_;
    std::copy(front.begin(), front.end(), begin);
    std::copy(back.begin(), back.end(), begin + front.size());
    next_ += bytes;
    bytes_left_ -= bytes;
    return {begin, bytes};
  }
  void clear() {
    if (blocks_.empty()) return;
    blocks_.resize(1);
    next_ = blocks_[0].get();
    bytes_left_ = block_bytes;
  }

 private:
  static constexpr std::size_t block_bytes = std::size_t{64} << 10;
  static_assert(block_bytes >= tree_key_bytes_max);

  void grow() {
    blocks_.push_back(std::make_unique_for_overwrite<char[]>(block_bytes));
    next_ = blocks_.back().get();
    bytes_left_ = block_bytes;
  }

  std::vector<std::unique_ptr<char[]>> blocks_;
  char* next_ = nullptr;
  std::size_t bytes_left_ = 0;
};

// A node with less is merged with a neighbour, or shares its keys.
constexpr std::size_t btree_node_bytes_min = node_bytes_of(0) * 2 / 5;
// How far to fill a node at once: the rest is left free, so that the next key does not split it.
constexpr std::size_t fill_target_bytes(std::size_t bytes) { return bytes / 16 * 15; }

}  // namespace

// --- The writer ---

class BTreeWriter::TreeEdit {
 public:
  explicit TreeEdit(NodeStore& nodes) : nodes_(nodes) {}

  enum class Operation : std::uint8_t { insert, erase };
  using Keys = std::span<const std::string_view>;

  NodeOffset apply(NodeOffset root, Keys keys, Operation operation) {
    retired_.clear();
    separators_.clear();
    gathered_keys_.clear();
    if (keys.empty()) return root;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      if (keys[i].empty() || keys[i].size() > tree_key_bytes_max) {
        throw Error(ErrorKind::invalid,
                    "key has a wrong size: bytes=" + std::to_string(keys[i].size()) +
                        " bytes_max=" + std::to_string(tree_key_bytes_max));
      }
      if (i > 0 && keys[i - 1] >= keys[i]) {
        throw Error(ErrorKind::invalid, "keys not in ascending order: index=" + std::to_string(i));
      }
    }
    operation_ = operation;
    std::vector<Replacement>& roots = levels_.back().replacements;
    roots.clear();
    unsigned level = 0;
    if (root != 0) {
      level = BTreeNode::root(nodes_, root).level();
      if (!change_node(root, level, keys, roots)) return root;
    } else if (operation == Operation::insert) {
      build_nodes(0, keys, {}, {keys.size() - 1, keys.size() - 1}, roots);
    } else {
      return root;
    }
    const NodeOffset new_root = collapse_root(grow_root(roots, level));
    for (const NodeOffset node : retired_) nodes_.retire_node(node);
    return new_root;
  }

 private:
  // One of the nodes that replace a changed child. A child that became empty has none.
  struct Replacement {
    NodeOffset node;
    std::size_t bytes;  // of the node, or unmeasured_bytes
    // Between the previous node and this one. Meaningless in the first of several.
    std::string_view separator;
  };
  static constexpr std::size_t unmeasured_bytes = SIZE_MAX;

  // A changed child, and which of LevelBuffers::replacements replace it.
  struct ChildEdit {
    unsigned child;
    std::size_t first_replacement;
    std::size_t count;
  };

  // The keys that belong under one child.
  struct KeySlice {
    unsigned child;
    std::size_t count;
  };

  struct LevelBuffers {
    std::vector<KeySlice> slices;
    std::vector<ChildEdit> edits;
    std::vector<Replacement> replacements;
  };

  // Adds the replacements of the node to `out`. Returns false, and adds none, if nothing changed.
  bool change_node(NodeOffset offset, unsigned level, Keys keys, std::vector<Replacement>& out) {
    return level == 0 ? change_leaf(offset, keys, out) : change_inner(offset, level, keys, out);
  }

  // --- Leaves ---

  bool change_leaf(NodeOffset offset, Keys keys, std::vector<Replacement>& out) {
    const BTreeNode leaf = BTreeNode::child_at_level(nodes_, offset, 0);
    return operation_ == Operation::insert ? insert_into(leaf, keys, out)
                                           : erase_from(leaf, keys, out);
  }

  bool insert_into(const BTreeNode& leaf, Keys keys, std::vector<Replacement>& out) {
    new_keys_.clear();
    std::size_t bytes = leaf.bytes();
    bool fits = true;
    for (const std::string_view key : keys) {
      const NodePosition position = leaf.find(key);
      if (position.is_equal) continue;
      if (!new_keys_.empty() && position.index < new_keys_.back().index)
        leaf.throw_corrupt("keys out of order");
      new_keys_.push_back({position.index, key, 0});
      fits &= position.has_prefix;
      bytes += sizeof(SuffixEnd) + key.size() - leaf.prefix().size();
    }
    if (new_keys_.empty()) return false;
    if (!fits || !btree_node_fits(leaf.count() + new_keys_.size(), bytes)) {
      rebuild_leaf(leaf, out);
      return true;
    }
    const WritableNode target = copy_on_write(leaf, bytes);
    write_with_keys(leaf, target.data, new_keys_);
    out.push_back({target.node, bytes, {}});
    return true;
  }

  // Merges `new_keys_` with the keys of the leaf, into one new leaf or several.
  void rebuild_leaf(const BTreeNode& leaf, std::vector<Replacement>& out) {
    old_keys_.clear();
    gather(leaf, old_keys_);
    keys_.clear();
    auto old = old_keys_.begin();
    for (const NewKey& added : new_keys_) {
      const auto end = old_keys_.begin() + static_cast<std::ptrdiff_t>(added.index);
      keys_.insert(keys_.end(), old, end);
      keys_.push_back(added.key);
      old = end;
    }
    keys_.insert(keys_.end(), old, old_keys_.end());
    const std::size_t first = new_keys_.front().index;
    const bool together = new_keys_.back().index == first;
    build_nodes(0, keys_, {},
                together
                    ? insert_run_at(first, new_keys_.size(), keys_.size(), leaf.last_inserted())
                    : InsertRun(),
                out);
    retired_.push_back(leaf.offset());
    gathered_keys_.clear();
  }

  bool erase_from(const BTreeNode& leaf, Keys keys, std::vector<Replacement>& out) {
    erased_indexes_.clear();
    std::size_t bytes = leaf.bytes();
    std::size_t erased_end =
        0;  // of the suffixes erased so far: they ascend, so `bytes` stays >= 0
    for (const std::string_view key : keys) {
      const NodePosition position = leaf.find(key);
      if (!position.is_equal) continue;
      const BTreeNode::SuffixRange suffix = leaf.suffix_range(position.index);
      if ((!erased_indexes_.empty() && position.index <= erased_indexes_.back()) ||
          suffix.begin < erased_end || suffix.end > leaf.suffix_bytes())
        leaf.throw_corrupt("keys out of order");
      erased_end = suffix.end;
      erased_indexes_.push_back(position.index);
      bytes -= sizeof(SuffixEnd) + key.size() - leaf.prefix().size();
    }
    if (erased_indexes_.empty()) return false;
    if (erased_indexes_.size() == leaf.count()) {
      retired_.push_back(leaf.offset());
      return true;
    }
    const WritableNode target = copy_on_write(leaf, bytes);
    write_without_keys(leaf, target.data, erased_indexes_);
    out.push_back({target.node, bytes, {}});
    return true;
  }

  // --- Inner nodes ---

  bool change_inner(NodeOffset offset, unsigned level, Keys keys, std::vector<Replacement>& out) {
    const BTreeNode node = BTreeNode::child_at_level(nodes_, offset, level);
    LevelBuffers& buffers = levels_[level - 1];
    buffers.edits.clear();
    buffers.replacements.clear();
    buffers.slices.clear();
    for (Keys rest = keys; !rest.empty(); rest = rest.subspan(buffers.slices.back().count)) {
      const unsigned child = node.child_index_of(rest[0]);
      if (!buffers.slices.empty() && child <= buffers.slices.back().child)
        node.throw_corrupt("keys out of order");
      buffers.slices.push_back({child, count_below(node, child, rest)});
    }
    bool changed = false;
    for (std::size_t i = 0; i < buffers.slices.size(); ++i) {
      prefetch(node, level, buffers.slices, keys, i);
      const unsigned child = buffers.slices[i].child;
      const Keys below = keys.first(buffers.slices[i].count);
      keys = keys.subspan(below.size());
      const std::size_t first = buffers.replacements.size();
      if (!change_node(node.child(child), level - 1, below, buffers.replacements)) continue;
      changed = true;
      const std::size_t count = buffers.replacements.size() - first;
      if (count == 1 && buffers.replacements[first].node == node.child(child) &&
          !is_underfull(buffers.replacements[first])) {
        buffers.replacements.pop_back();  // changed in place, so this node does not change
      } else {
        buffers.edits.push_back({child, first, count});
      }
    }
    if (!changed) return false;
    if (buffers.edits.empty()) {
      out.push_back({offset, node.bytes(), {}});
    } else if (!try_edit_in_place(node, buffers, out)) {
      rebuild_node(node, buffers, out);
    }
    return true;
  }

  // Prefetches the children that change next, and for each the first node below it that changes. If
  // many nodes get a few keys each, nearly all time is spent waiting for them. `keys`: of the
  // slices from `slice` on.
  void prefetch(const BTreeNode& node, unsigned level, const std::vector<KeySlice>& slices,
                Keys keys, std::size_t slice) {
    constexpr std::size_t ahead = 3;
    for (std::size_t i = slice == 0 ? 1 : slice + ahead; i <= slice + ahead && i < slices.size();
         ++i)
      prefetch_node(nodes_, node.child(slices[i].child));
    if (level < 2) return;
    std::size_t first_key = slices[slice].count;
    for (std::size_t i = slice + 1; i < slice + ahead && i < slices.size();
         first_key += slices[i++].count) {
      if (slice > 0 && i + 1 < slice + ahead) continue;
      const BTreeNode child =
          BTreeNode::child_at_level(nodes_, node.child(slices[i].child), level - 1);
      prefetch_node(nodes_, child.child(child.child_index_of(keys[first_key])));
    }
  }

  // Counts the keys that belong under `child`, as the first of them does.
  std::size_t count_below(const BTreeNode& node, unsigned child, Keys keys) {
    if (keys.size() == 1 || child == node.count()) return keys.size();
    const std::string_view prefix = node.prefix();
    const std::string_view suffix = node.suffix(child);
    const auto is_below = [&](std::string_view key) {
      const int order = key.substr(0, prefix.size()).compare(prefix);
      return order < 0 || (order == 0 && key.substr(prefix.size()) < suffix);
    };
    std::size_t step = 1;
    while (step < keys.size() && is_below(keys[step])) step *= 2;
    const auto begin = keys.begin() + static_cast<std::ptrdiff_t>(step / 2);
    const auto end = keys.begin() + static_cast<std::ptrdiff_t>(std::min(step, keys.size()));
    const auto count =
        static_cast<std::size_t>(std::partition_point(begin, end, is_below) - keys.begin());
    if (count == 0) node.throw_corrupt("keys out of order");
    return count;
  }

  // Applies the edits to a copy of the node, or to the node itself if it is private. Returns false
  // if a child disappeared or is underfull, or the result does not fit one node.
  bool try_edit_in_place(const BTreeNode& node, const LevelBuffers& buffers,
                         std::vector<Replacement>& out) {
    const std::string_view prefix = node.prefix();
    std::size_t bytes = node.bytes();
    new_keys_.clear();
    for (const ChildEdit& edit : buffers.edits) {
      if (edit.count == 0 || is_underfull(buffers.replacements[edit.first_replacement]))
        return false;
      for (std::size_t i = 1; i < edit.count; ++i) {
        const Replacement& replacement = buffers.replacements[edit.first_replacement + i];
        if (!replacement.separator.starts_with(prefix)) return false;
        new_keys_.push_back({edit.child, replacement.separator, replacement.node});
        bytes +=
            sizeof(SuffixEnd) + sizeof(ChildNumber) + replacement.separator.size() - prefix.size();
      }
    }
    const std::size_t count = node.count() + new_keys_.size();
    if (!btree_node_fits(count, bytes)) return false;
    const WritableNode target = copy_on_write(node, bytes);
    if (!new_keys_.empty()) {
      write_with_keys(node, target.data, new_keys_);
    } else if (target.node != node.offset()) {
      std::memcpy(target.data + sizeof(NodeHeader), node.data() + sizeof(NodeHeader),
                  bytes - sizeof(NodeHeader));
    }
    std::size_t added = 0;
    for (const ChildEdit& edit : buffers.edits) {
      write_child(target.data, count, edit.child + added,
                  buffers.replacements[edit.first_replacement].node);
      added += edit.count - 1;
    }
    out.push_back({target.node, bytes, {}});
    return true;
  }

  // Builds one new node or several from the unchanged children and the replacements of the others;
  // none if no child is left.
  void rebuild_node(const BTreeNode& node, const LevelBuffers& buffers,
                    std::vector<Replacement>& out) {
    std::vector<Replacement> old;
    std::vector<Replacement> siblings;
    gather(node, {}, old);
    auto edit = buffers.edits.begin();
    for (unsigned i = 0; i <= node.count(); ++i) {
      if (edit == buffers.edits.end() || edit->child != i) {
        siblings.push_back(old[i]);
        continue;
      }
      for (std::size_t replacement = 0; replacement < edit->count; ++replacement) {
        siblings.push_back(buffers.replacements[edit->first_replacement + replacement]);
        if (replacement == 0) siblings.back().separator = old[i].separator;
      }
      ++edit;
    }
    retired_.push_back(node.offset());
    if (operation_ == Operation::erase) rebalance(node.level() - 1, siblings);

    InsertRun run;
    if (buffers.edits.size() == 1 && buffers.edits[0].count > 1) {
      run = insert_run_at(buffers.edits[0].child, buffers.edits[0].count - 1, siblings.size() - 1,
                          node.last_inserted());
    }
    if (!siblings.empty()) build_nodes(node.level(), siblings, run, out);
    gathered_keys_.clear();
  }

  // Merges each underfull node with a neighbour.
  void rebalance(unsigned level, std::vector<Replacement>& siblings) {
    for (std::size_t i = 0; i < siblings.size() && siblings.size() > 1;) {
      if (!is_underfull(siblings[i])) {
        ++i;
        continue;
      }
      const std::size_t left = i > 0 ? i - 1 : 0;
      std::vector<Replacement> merged;
      merge(level, siblings[left], siblings[left + 1], merged);
      assert(!merged.empty());
      merged[0].separator = siblings[left].separator;
      if (merged.size() > 1) {
        // Evenly filled: no further merge can improve them.
        for (Replacement& replacement : merged) replacement.bytes = unmeasured_bytes;
      }
      siblings.erase(siblings.begin() + static_cast<std::ptrdiff_t>(left),
                     siblings.begin() + static_cast<std::ptrdiff_t>(left + 2));
      siblings.insert(siblings.begin() + static_cast<std::ptrdiff_t>(left), merged.begin(),
                      merged.end());
      i = left;
    }
  }

  // Builds one node from the contents of two neighbours, or several that are evenly filled.
  void merge(unsigned level, const Replacement& left, const Replacement& right,
             std::vector<Replacement>& out) {
    retired_.push_back(left.node);
    retired_.push_back(right.node);
    if (level == 0) {
      std::vector<std::string_view> keys;
      gather(BTreeNode::child_at_level(nodes_, left.node, 0), keys);
      gather(BTreeNode::child_at_level(nodes_, right.node, 0), keys);
      build_nodes(0, keys, {}, InsertRun(), out);
    } else {
      std::vector<Replacement> siblings;
      gather(BTreeNode::child_at_level(nodes_, left.node, level), {}, siblings);
      gather(BTreeNode::child_at_level(nodes_, right.node, level), right.separator, siblings);
      rebalance(level - 1, siblings);
      build_nodes(level, siblings, InsertRun(), out);
    }
  }

  // --- Roots ---

  // Adds levels of inner nodes until there is one root.
  NodeOffset grow_root(std::vector<Replacement>& roots, unsigned level) {
    while (roots.size() > 1) {
      if (++level > btree_level_max) {
        throw Error(ErrorKind::limit,
                    "key index is too high: level_max=" + std::to_string(btree_level_max));
      }
      const std::vector<Replacement> siblings = std::move(roots);
      roots.clear();
      build_nodes(level, siblings, {siblings.size() - 2, siblings.size() - 2}, roots);
    }
    return roots.empty() ? 0 : roots[0].node;
  }

  // Removes roots that have one child.
  NodeOffset collapse_root(NodeOffset root) {
    if (root == 0) return 0;
    BTreeNode node = BTreeNode::root(nodes_, root);
    while (!node.is_leaf() && node.count() == 0) {
      retired_.push_back(node.offset());
      node = BTreeNode::child_at_level(nodes_, node.child(0), node.level() - 1);
    }
    return node.offset();
  }

  // --- Building nodes ---

  struct WritableNode {
    NodeOffset node;
    char* data;
  };
  // Returns a private node of `bytes` to replace `node`: the same node if it is private and has the
  // right size class.
  WritableNode copy_on_write(const BTreeNode& node, std::size_t bytes) {
    const std::size_t size_class = btree_node_size_class(bytes);
    NodeOffset target = node.offset();
    if (node.size_class() != size_class || !nodes_.is_private(target)) {
      target = nodes_.allocate_node(size_class);
      retired_.push_back(node.offset());
    }
    return {target, reinterpret_cast<char*>(nodes_.writable_node(target))};
  }

  bool is_underfull(const Replacement& replacement) const {
    return operation_ == Operation::erase && replacement.bytes < btree_node_bytes_min;
  }

  // Adds all keys of a node, each with its prefix.
  void gather(const BTreeNode& node, std::vector<std::string_view>& keys) {
    const std::string_view prefix = node.prefix();
    for (unsigned i = 0; i < node.count(); ++i) {
      const std::string_view suffix = node.suffix(i);
      const std::size_t bytes = prefix.size() + suffix.size();
      if (bytes == 0 || bytes > tree_key_bytes_max) node.throw_corrupt("a key of a wrong size");
      keys.push_back(gathered_keys_.store(prefix, suffix));
    }
  }
  // Adds all children of an inner node, the first with `separator`. An only child is measured: it
  // could not be merged before.
  void gather(const BTreeNode& node, std::string_view separator,
              std::vector<Replacement>& siblings) {
    old_keys_.clear();
    gather(node, old_keys_);
    for (unsigned i = 0; i <= node.count(); ++i) {
      siblings.push_back({node.child(i), unmeasured_bytes, i == 0 ? separator : old_keys_[i - 1]});
    }
    if (node.count() == 0)
      siblings.back().bytes =
          BTreeNode::child_at_level(nodes_, node.child(0), node.level() - 1).bytes();
  }

  // New keys that are adjacent in the node being built. If keys arrive in order, the node is split
  // next to the run. The nodes that the run has filled then stay full, and the next keys have room.
  struct InsertRun {
    std::size_t cut = 0;          // where to end a node; 0: wherever is best
    std::size_t last = SIZE_MAX;  // the last key of the run
  };
  static InsertRun insert_run_at(std::size_t index, std::size_t count, std::size_t key_count,
                                 unsigned last_inserted) {
    const std::size_t end = index + count;
    if (index == last_inserted + 1U) return {end < key_count ? end : end - 1, end - 1};
    if (index == last_inserted) return {index > 0 ? index : end, end - 1};
    return {0, end - 1};
  }

  void build_nodes(unsigned level, const std::vector<Replacement>& siblings, const InsertRun& run,
                   std::vector<Replacement>& out) {
    keys_.clear();
    children_.clear();
    for (const Replacement& replacement : siblings) {
      if (!children_.empty()) keys_.push_back(replacement.separator);
      children_.push_back(replacement.node);
    }
    build_nodes(level, keys_, children_, run, out);
  }

  // Builds as many nodes as these keys and children need.
  void build_nodes(unsigned level, Keys keys, std::span<const NodeOffset> children,
                   const InsertRun& run, std::vector<Replacement>& out) {
    shared_prefix_bytes_.assign(1, 0);
    for (std::size_t i = 1; i < keys.size(); ++i) {
      const std::size_t shared = shared_prefix_bytes(keys[i - 1], keys[i]);
      if (shared == keys[i].size() ||
          (shared < keys[i - 1].size() && static_cast<unsigned char>(keys[i - 1][shared]) >=
                                              static_cast<unsigned char>(keys[i][shared]))) {
        throw_corrupt_node(0, "keys out of order");
      }
      shared_prefix_bytes_.push_back(static_cast<std::uint16_t>(shared));
    }
    assert(level == 0 ? children.empty() : children.size() == keys.size() + 1);
    std::string_view separator;
    for (std::size_t first = 0;;) {
      const std::size_t count = next_node_key_count(level, keys, first, run.cut);
      assert(count <= keys.size() - first && (level > 0 || count > 0));
      const std::size_t bytes =
          count == 0 ? btree_node_bytes(level, 0, 0, 0) : sizes_[count - 1].bytes;
      const std::size_t prefix_bytes = count == 0 ? 0 : sizes_[count - 1].prefix_bytes;
      const bool last_is_here = run.last >= first && run.last < first + count;
      const NodeOffset node = nodes_.allocate_node(btree_node_size_class(bytes));
      write_btree_node(
          reinterpret_cast<char*>(nodes_.writable_node(node)), level, keys.subspan(first, count),
          level == 0 ? children : children.subspan(first, count + 1), prefix_bytes,
          last_is_here ? static_cast<std::uint16_t>(run.last - first) : no_key_inserted);
      out.push_back({node, bytes, separator});
      first += count;
      if (first == keys.size()) return;
      separator = separators_.store(
          level == 0 ? keys[first].substr(0, std::size_t{shared_prefix_bytes_[first]} + 1)
                     : keys[first]);
      if (level > 0) ++first;
    }
  }

  // Returns how many keys from `first` on the next node takes; `sizes_` has its size.
  std::size_t next_node_key_count(unsigned level, Keys keys, std::size_t first, std::size_t cut) {
    const std::size_t left = keys.size() - first;
    measure_sizes(level, keys, first);
    const std::size_t seen = sizes_.size();
    if (seen == left && (left == 0 || btree_node_fits(left, sizes_.back().bytes))) return left;

    const std::size_t most = level == 0 ? left - 1 : left - 2;  // the next node needs a key too
    if (cut > first && cut - first <= seen &&
        btree_node_fits(cut - first, sizes_[cut - first - 1].bytes)) {
      return std::min(cut - first, most);
    }
    // Both halves have a header and a prefix, which are most of the size of a node of one key.
    const std::size_t halves = sizes_.back().bytes + sizes_.front().bytes;
    const bool two = seen == left && (left < keys_per_large_node ||
                                      halves <= 2 * fill_target_bytes(node_bytes_of(0)));
    if (two && cut <= first) {
      const auto middle =
          std::partition_point(sizes_.begin(), sizes_.end(),
                               [&](const NodeSize& size) { return size.bytes < halves / 2; });
      const auto count = static_cast<std::size_t>(middle - sizes_.begin());
      return count_with_short_separator(level, keys, first, count,
                                        std::min(count + count / 8, most));
    }
    const std::size_t count = std::min(filled_node_key_count(), most);
    return count_with_short_separator(level, keys, first, count, count);
  }

  // Returns a count near `wanted`, at most `high`, whose separator is short: short separators keep
  // inner nodes small and prefixes long.
  std::size_t count_with_short_separator(unsigned level, Keys keys, std::size_t first,
                                         std::size_t wanted, std::size_t high) const {
    high = std::max<std::size_t>(high, 1);
    while (!btree_node_fits(high, sizes_[high - 1].bytes)) --high;  // one key always fits
    wanted = std::clamp<std::size_t>(wanted, 1, high);
    const auto separator_bytes = [&](std::size_t count) {
      return level == 0 ? std::size_t{shared_prefix_bytes_[first + count]}
                        : keys[first + count].size();
    };
    // From `wanted` outwards: among equals, the nearest wins.
    std::size_t best = wanted;
    for (std::size_t step = 1; step <= wanted / 8; ++step) {
      if (wanted + step <= high && separator_bytes(wanted + step) < separator_bytes(best))
        best = wanted + step;
      if (separator_bytes(wanted - step) < separator_bytes(best)) best = wanted - step;
    }
    return best;
  }

  // Returns how many keys go into a node that is filled at once.
  std::size_t filled_node_key_count() const {
    for (std::size_t size_class = 0;; ++size_class) {
      const bool last = size_class + 1 == node_size_class_count;
      const std::size_t room =
          last ? node_bytes_of(size_class) : fill_target_bytes(node_bytes_of(size_class));
      auto count = static_cast<std::size_t>(
          std::partition_point(sizes_.begin(), sizes_.end(),
                               [&](const NodeSize& size) { return size.bytes <= room; }) -
          sizes_.begin());
      if (size_class > 0) count = std::min(count, keys_per_large_node - 1);
      if (last || count >= keys_per_large_node / 2) return count;
    }
  }

  // Measures nodes of the first key, the first two, three ... from `first` on, up to somewhat more
  // keys than fit.
  void measure_sizes(unsigned level, Keys keys, std::size_t first) {
    sizes_.clear();
    std::size_t key_bytes = 0;
    std::size_t prefix_bytes = SIZE_MAX;
    for (std::size_t i = first; i < keys.size(); ++i) {
      const std::size_t count = i - first + 1;
      prefix_bytes = std::min<std::size_t>(prefix_bytes,
                                           count == 1 ? keys[i].size() : shared_prefix_bytes_[i]);
      key_bytes += keys[i].size();
      const std::size_t bytes =
          btree_node_bytes(level, count, prefix_bytes, key_bytes - count * prefix_bytes);
      sizes_.push_back({bytes, prefix_bytes});
      if (bytes > 2 * (count < keys_per_large_node ? btree_node_bytes_max : node_bytes_of(0)))
        return;
    }
  }

  struct NodeSize {
    std::size_t bytes;
    std::size_t prefix_bytes;
  };

  NodeStore& nodes_;
  Operation operation_ = Operation::insert;
  std::vector<NodeOffset> retired_;  // passed to the store once the edit has succeeded
  // [level - 1]. The last one holds the replacements of the root.
  std::array<LevelBuffers, btree_level_max + 1> levels_;
  KeyArena separators_;  // of replacements
  // The contents of the node being built. Not in use while one of its children changes.
  KeyArena gathered_keys_;
  std::vector<std::string_view> old_keys_;
  std::vector<std::string_view> keys_;
  std::vector<NodeOffset> children_;
  std::vector<NewKey> new_keys_;
  std::vector<std::size_t> erased_indexes_;
  std::vector<std::uint16_t> shared_prefix_bytes_;  // of each key with the previous one
  std::vector<NodeSize> sizes_;
};

BTreeWriter::BTreeWriter(NodeStore& nodes) : nodes_(nodes) {}
BTreeWriter::~BTreeWriter() = default;

BTreeWriter::TreeEdit& BTreeWriter::tree_edit() {
  if (!tree_edit_) tree_edit_ = std::make_unique<TreeEdit>(nodes_);
  return *tree_edit_;
}

NodeOffset BTreeWriter::insert(NodeOffset root, std::string_view key) {
  return tree_edit().apply(root, {&key, 1}, TreeEdit::Operation::insert);
}
NodeOffset BTreeWriter::erase(NodeOffset root, std::string_view key) {
  return tree_edit().apply(root, {&key, 1}, TreeEdit::Operation::erase);
}
NodeOffset BTreeWriter::insert_sorted(NodeOffset root, std::span<const std::string_view> keys) {
  return tree_edit().apply(root, keys, TreeEdit::Operation::insert);
}
NodeOffset BTreeWriter::erase_sorted(NodeOffset root, std::span<const std::string_view> keys) {
  return tree_edit().apply(root, keys, TreeEdit::Operation::erase);
}

}  // namespace whycache
