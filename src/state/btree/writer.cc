#include "state/btree/writer.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <iterator>
#include <string>
#include <vector>

#include <whycache/error.h>

#include "state/btree/node.h"

namespace whycache {

namespace {

// Bytes that stay where they are until clear().
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
  static_assert(block_bytes >= key_bytes_max);

  void grow() {
    blocks_.push_back(std::make_unique_for_overwrite<char[]>(block_bytes));
    next_ = blocks_.back().get();
    bytes_left_ = block_bytes;
  }

  std::vector<std::unique_ptr<char[]>> blocks_;
  char* next_ = nullptr;
  std::size_t bytes_left_ = 0;
};

// A node that has less is merged with a neighbour, or given some of its keys.
constexpr std::size_t btree_node_bytes_min = node_bytes_of(0) * 2 / 5;
// What is left free in a node that is filled in one go, so that the first key that comes late does
// not split it.
constexpr std::size_t fill_target_bytes(std::size_t bytes) { return bytes / 16 * 15; }

}  // namespace

// --- The writer ---

class BTreeWriter::TreeEdit {
 public:
  explicit TreeEdit(NodeStore& nodes) : nodes_(nodes) {}

  enum class Operation : std::uint8_t { insert, erase };
  using Keys = std::span<const std::string_view>;

  NodeOffset apply(NodeOffset root, Keys keys, Operation what) {
    retired_.clear();
    separators_.clear();
    gathered_keys_.clear();
    if (keys.empty()) return root;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      if (keys[i].empty() || keys[i].size() > key_bytes_max) {
        throw Error(ErrorKind::invalid,
                    "key of a wrong size: bytes=" + std::to_string(keys[i].size()) +
                        " bytes_max=" + std::to_string(key_bytes_max));
      }
      if (i > 0 && keys[i - 1] >= keys[i]) {
        throw Error(ErrorKind::invalid, "keys not in ascending order: index=" + std::to_string(i));
      }
    }
    operation_ = what;
    std::vector<Replacement>& top = levels_.back().replacements;
    top.clear();
    unsigned level = 0;
    if (root != 0) {
      level = BTreeNode::root(nodes_, root).level();
      if (!change_node(root, level, keys, top)) return root;
    } else if (what == Operation::insert) {
      build_nodes(0, keys, {}, {keys.size() - 1, keys.size() - 1}, top);
    } else {
      return root;
    }
    const NodeOffset new_root = collapse_root(grow_root(top, level));
    for (const NodeOffset node : retired_) nodes_.retire_node(node);
    return new_root;
  }

 private:
  // What became of a child that was changed: the nodes that take its place. None if it became
  // empty.
  struct Replacement {
    NodeOffset node;
    std::size_t bytes;  // how many it has; unchanged_bytes: was not looked at
    std::string_view
        separator;  // between the node before and this one; meaningless in the first of a list
  };
  static constexpr std::size_t unmeasured_bytes = SIZE_MAX;

  struct ChildEdit {
    unsigned child;
    std::size_t first_replacement;  // of its pieces
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

  // Adds to `out` what takes the place of the node. False, and nothing added, if nothing changed.
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
      const NodePosition place = leaf.find(key);
      if (place.is_equal) continue;
      if (!new_keys_.empty() && place.index < new_keys_.back().index)
        leaf.throw_corrupt("keys out of order");
      new_keys_.push_back({place.index, key, 0});
      fits &= place.has_prefix;
      bytes += sizeof(SuffixEnd) + key.size() - leaf.prefix().size();
    }
    if (new_keys_.empty()) return false;
    if (!fits || !btree_node_fits(leaf.count() + new_keys_.size(), bytes)) {
      rebuild_leaf(leaf, out);
      return true;
    }
    const WritableNode own = copy_on_write(leaf, bytes);
    write_with_keys(leaf, own.data, new_keys_);
    out.push_back({own.node, bytes, {}});
    return true;
  }

  // Puts `new_keys_` between those of the leaf, in one new leaf or several.
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
    for (const std::string_view key : keys) {
      const NodePosition place = leaf.find(key);
      if (!place.is_equal) continue;
      if (!erased_indexes_.empty() && place.index <= erased_indexes_.back())
        leaf.throw_corrupt("keys out of order");
      erased_indexes_.push_back(place.index);
      bytes -= sizeof(SuffixEnd) + key.size() - leaf.prefix().size();
    }
    if (erased_indexes_.empty()) return false;
    if (erased_indexes_.size() == leaf.count()) {
      retired_.push_back(leaf.offset());
      return true;
    }
    const WritableNode own = copy_on_write(leaf, bytes);
    write_without_keys(leaf, own.data, erased_indexes_);
    out.push_back({own.node, bytes, {}});
    return true;
  }

  // --- Inner nodes ---

  bool change_inner(NodeOffset offset, unsigned level, Keys keys, std::vector<Replacement>& out) {
    const BTreeNode node = BTreeNode::child_at_level(nodes_, offset, level);
    LevelBuffers& mine = levels_[level - 1];
    mine.edits.clear();
    mine.replacements.clear();
    mine.slices.clear();
    for (Keys rest = keys; !rest.empty(); rest = rest.subspan(mine.slices.back().count)) {
      const unsigned child = node.child_index_of(rest[0]);
      if (!mine.slices.empty() && child <= mine.slices.back().child)
        node.throw_corrupt("keys out of order");
      mine.slices.push_back({child, count_below(node, child, rest)});
    }
    bool changed = false;
    for (std::size_t i = 0; i < mine.slices.size(); ++i) {
      prefetch(node, level, mine.slices, keys, i);
      const unsigned child = mine.slices[i].child;
      const Keys below = keys.first(mine.slices[i].count);
      keys = keys.subspan(below.size());
      const std::size_t first = mine.replacements.size();
      if (!change_node(node.child(child), level - 1, below, mine.replacements)) continue;
      changed = true;
      const std::size_t count = mine.replacements.size() - first;
      if (count == 1 && mine.replacements[first].node == node.child(child) &&
          !is_underfull(mine.replacements[first])) {
        mine.replacements.pop_back();  // changed in place: nothing to do here
      } else {
        mine.edits.push_back({child, first, count});
      }
    }
    if (!changed) return false;
    if (mine.edits.empty()) {
      out.push_back({offset, node.bytes(), {}});
    } else if (!try_edit_in_place(node, mine, out)) {
      rebuild_node(node, mine, out);
    }
    return true;
  }

  // Asks for memory that will be wanted soon: children, and of each the first below it that will be
  // changed. If there are many nodes and each gets few of the keys, nearly all of the time goes by
  // waiting for these. `keys`: of the parts from `part` on.
  void prefetch(const BTreeNode& node, unsigned level, const std::vector<KeySlice>& parts,
                Keys keys, std::size_t part) {
    constexpr std::size_t ahead = 3;
    for (std::size_t i = part == 0 ? 1 : part + ahead; i <= part + ahead && i < parts.size(); ++i)
      prefetch_node(nodes_, node.child(parts[i].child));
    if (level < 2) return;
    std::size_t first_key = parts[part].count;
    for (std::size_t i = part + 1; i < part + ahead && i < parts.size();
         first_key += parts[i++].count) {
      if (part > 0 && i + 1 < part + ahead) continue;
      const BTreeNode child =
          BTreeNode::child_at_level(nodes_, node.child(parts[i].child), level - 1);
      prefetch_node(nodes_, child.child(child.child_index_of(keys[first_key])));
    }
  }

  // How many of the keys, the first of which belongs under `child`, belong there.
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

  // Carries the edits out if no child vanished or wants merging and what comes to it fits.
  bool try_edit_in_place(const BTreeNode& node, const LevelBuffers& level,
                         std::vector<Replacement>& out) {
    const std::string_view prefix = node.prefix();
    std::size_t bytes = node.bytes();
    new_keys_.clear();
    for (const ChildEdit& edit : level.edits) {
      if (edit.count == 0 || is_underfull(level.replacements[edit.first_replacement])) return false;
      for (std::size_t i = 1; i < edit.count; ++i) {
        const Replacement& piece = level.replacements[edit.first_replacement + i];
        if (!piece.separator.starts_with(prefix)) return false;
        new_keys_.push_back({edit.child, piece.separator, piece.node});
        bytes += sizeof(SuffixEnd) + sizeof(ChildNumber) + piece.separator.size() - prefix.size();
      }
    }
    const std::size_t count = node.count() + new_keys_.size();
    if (!btree_node_fits(count, bytes)) return false;
    const WritableNode own = copy_on_write(node, bytes);
    if (!new_keys_.empty()) {
      write_with_keys(node, own.data, new_keys_);
    } else if (own.node != node.offset()) {
      std::memcpy(own.data + sizeof(NodeHeader), node.data() + sizeof(NodeHeader),
                  bytes - sizeof(NodeHeader));
    }
    std::size_t added = 0;
    for (const ChildEdit& edit : level.edits) {
      write_child(own.data, count, edit.child + added,
                  level.replacements[edit.first_replacement].node);
      added += edit.count - 1;
    }
    out.push_back({own.node, bytes, {}});
    return true;
  }

  // Makes the node anew from its old children and the pieces, in one new node or several; in none
  // if no child is left.
  void rebuild_node(const BTreeNode& node, const LevelBuffers& level,
                    std::vector<Replacement>& out) {
    std::vector<Replacement> old;
    std::vector<Replacement> list;
    gather(node, {}, old);
    auto edit = level.edits.begin();
    for (unsigned i = 0; i <= node.count(); ++i) {
      if (edit == level.edits.end() || edit->child != i) {
        list.push_back(old[i]);
        continue;
      }
      for (std::size_t piece = 0; piece < edit->count; ++piece) {
        list.push_back(level.replacements[edit->first_replacement + piece]);
        if (piece == 0) list.back().separator = old[i].separator;
      }
      ++edit;
    }
    retired_.push_back(node.offset());
    if (operation_ == Operation::erase) rebalance(node.level() - 1, list);

    InsertRun run;
    if (level.edits.size() == 1 && level.edits[0].count > 1) {
      run = insert_run_at(level.edits[0].child, level.edits[0].count - 1, list.size() - 1,
                          node.last_inserted());
    }
    if (!list.empty()) build_nodes(node.level(), list, run, out);
    gathered_keys_.clear();
  }

  // Merges what is underfull with a neighbour.
  void rebalance(unsigned level, std::vector<Replacement>& list) {
    for (std::size_t i = 0; i < list.size() && list.size() > 1;) {
      if (!is_underfull(list[i])) {
        ++i;
        continue;
      }
      const std::size_t left = i > 0 ? i - 1 : 0;
      std::vector<Replacement> merged;
      merge(level, list[left], list[left + 1], merged);
      merged[0].separator = list[left].separator;
      if (merged.size() > 1) {
        for (Replacement& piece : merged) piece.bytes = unmeasured_bytes;  // it cannot get better
      }
      list.erase(list.begin() + static_cast<std::ptrdiff_t>(left),
                 list.begin() + static_cast<std::ptrdiff_t>(left + 2));
      list.insert(list.begin() + static_cast<std::ptrdiff_t>(left), merged.begin(), merged.end());
      i = left;
    }
  }

  // One node of the content of two neighbours, or several that are evenly filled.
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
      std::vector<Replacement> list;
      gather(BTreeNode::child_at_level(nodes_, left.node, level), {}, list);
      gather(BTreeNode::child_at_level(nodes_, right.node, level), right.separator, list);
      rebalance(level - 1, list);
      build_nodes(level, list, InsertRun(), out);
    }
  }

  // --- Roots ---

  // Puts inner nodes on top until there is one root.
  NodeOffset grow_root(std::vector<Replacement>& top, unsigned level) {
    while (top.size() > 1) {
      if (++level > btree_level_max) {
        throw Error(ErrorKind::limit,
                    "key index too high: keys_level_max=" + std::to_string(btree_level_max));
      }
      const std::vector<Replacement> list = std::move(top);
      top.clear();
      build_nodes(level, list, {list.size() - 2, list.size() - 2}, top);
    }
    return top.empty() ? 0 : top[0].node;
  }

  // Takes roots with one child away.
  NodeOffset collapse_root(NodeOffset root) {
    if (root == 0) return 0;
    BTreeNode node = BTreeNode::root(nodes_, root);
    while (!node.is_leaf() && node.count() == 0) {
      retired_.push_back(node.offset());
      node = BTreeNode::child_at_level(nodes_, node.child(0), node.level() - 1);
    }
    return node.offset();
  }

  // --- Making nodes ---

  struct WritableNode {
    NodeOffset node;
    char* data;
  };
  // A private node for `bytes` in place of `node`: the same, if it is private and of the right
  // size.
  WritableNode copy_on_write(const BTreeNode& node, std::size_t bytes) {
    const std::size_t size_class = btree_node_size_class(bytes);
    NodeOffset own = node.offset();
    if (node.size_class() != size_class || !nodes_.is_private(own)) {
      own = nodes_.allocate_node(size_class);
      retired_.push_back(node.offset());
    }
    return {own, reinterpret_cast<char*>(nodes_.writable_node(own))};
  }

  bool is_underfull(const Replacement& piece) const {
    return operation_ == Operation::erase && piece.bytes < btree_node_bytes_min;
  }

  // Adds all keys of a node, whole.
  void gather(const BTreeNode& node, std::vector<std::string_view>& keys) {
    const std::string_view prefix = node.prefix();
    for (unsigned i = 0; i < node.count(); ++i) {
      const std::string_view suffix = node.suffix(i);
      const std::size_t bytes = prefix.size() + suffix.size();
      if (bytes == 0 || bytes > key_bytes_max) node.throw_corrupt("a key of a wrong size");
      keys.push_back(gathered_keys_.store(prefix, suffix));
    }
  }
  // Adds all children of an inner node, the first with `separator`. One that had no neighbour could
  // not be merged before.
  void gather(const BTreeNode& node, std::string_view separator, std::vector<Replacement>& list) {
    old_keys_.clear();
    gather(node, old_keys_);
    for (unsigned i = 0; i <= node.count(); ++i) {
      list.push_back({node.child(i), unmeasured_bytes, i == 0 ? separator : old_keys_[i - 1]});
    }
    if (node.count() == 0)
      list.back().bytes =
          BTreeNode::child_at_level(nodes_, node.child(0), node.level() - 1).bytes();
  }

  // Keys that were put side by side into what is being laid out. If keys come in ascending or
  // descending order, here or all over the tree, it is divided next to them: what they have filled
  // stays full, and what comes next has room.
  struct InsertRun {
    std::size_t cut = 0;          // where to end a node; 0: wherever is best
    std::size_t last = SIZE_MAX;  // the last of them
  };
  static InsertRun insert_run_at(std::size_t index, std::size_t count, std::size_t key_count,
                                 unsigned last_inserted) {
    const std::size_t end = index + count;
    if (index == last_inserted + 1U) return {end < key_count ? end : end - 1, end - 1};
    if (index == last_inserted) return {index > 0 ? index : end, end - 1};
    return {0, end - 1};
  }

  void build_nodes(unsigned level, const std::vector<Replacement>& list, const InsertRun& run,
                   std::vector<Replacement>& out) {
    keys_.clear();
    children_.clear();
    for (const Replacement& piece : list) {
      if (!children_.empty()) keys_.push_back(piece.separator);
      children_.push_back(piece.node);
    }
    build_nodes(level, keys_, children_, run, out);
  }

  // Makes nodes of these keys and children, as many as it takes.
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
    std::string_view separator;
    for (std::size_t first = 0;;) {
      const std::size_t count = next_node_key_count(level, keys, first, run.cut);
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

  // How many of the keys from `first` on go into the next node; `sizes_` tells its size.
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
    // What one key takes, most of which is the header and the prefix, is in both halves.
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

  // About `wanted`, `high` at most, but so that the separator behind it is short: that makes inner
  // nodes small, and prefixes long.
  std::size_t count_with_short_separator(unsigned level, Keys keys, std::size_t first,
                                         std::size_t wanted, std::size_t high) const {
    high = std::max<std::size_t>(high, 1);
    while (!btree_node_fits(high, sizes_[high - 1].bytes)) --high;  // one key always fits
    wanted = std::clamp<std::size_t>(wanted, 1, high);
    const auto separator_bytes = [&](std::size_t count) {
      return level == 0 ? std::size_t{shared_prefix_bytes_[first + count]}
                        : keys[first + count].size();
    };
    // From the wanted one outwards, so that of equals the nearest is taken.
    std::size_t best = wanted;
    for (std::size_t step = 1; step <= wanted / 8; ++step) {
      if (wanted + step <= high && separator_bytes(wanted + step) < separator_bytes(best))
        best = wanted + step;
      if (separator_bytes(wanted - step) < separator_bytes(best)) best = wanted - step;
    }
    return best;
  }

  // How many keys go into a node that is filled in one go.
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

  // The sizes of nodes of the first, the first two, three ... keys from `first` on, somewhat
  // further than fits.
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
  std::vector<NodeOffset> retired_;  // told to the store when everything went well
  std::array<LevelBuffers, btree_level_max + 1>
      levels_;           // [level - 1]; the last one is for what becomes of the root
  KeyArena separators_;  // of pieces
  // What a node is being made of. Not in use while one of its children is being changed.
  KeyArena gathered_keys_;
  std::vector<std::string_view> old_keys_;
  std::vector<std::string_view> keys_;
  std::vector<NodeOffset> children_;
  std::vector<NewKey> new_keys_;
  std::vector<std::size_t> erased_indexes_;
  std::vector<std::uint16_t> shared_prefix_bytes_;  // with the key before
  std::vector<NodeSize> sizes_;
};

BTreeWriter::BTreeWriter(NodeStore& nodes) : tree_edit_(std::make_unique<TreeEdit>(nodes)) {}
BTreeWriter::~BTreeWriter() = default;

NodeOffset BTreeWriter::insert(NodeOffset root, std::string_view key) {
  return tree_edit_->apply(root, {&key, 1}, TreeEdit::Operation::insert);
}
NodeOffset BTreeWriter::erase(NodeOffset root, std::string_view key) {
  return tree_edit_->apply(root, {&key, 1}, TreeEdit::Operation::erase);
}
NodeOffset BTreeWriter::insert_sorted(NodeOffset root, std::span<const std::string_view> keys) {
  return tree_edit_->apply(root, keys, TreeEdit::Operation::insert);
}
NodeOffset BTreeWriter::erase_sorted(NodeOffset root, std::span<const std::string_view> keys) {
  return tree_edit_->apply(root, keys, TreeEdit::Operation::erase);
}

}  // namespace whycache
