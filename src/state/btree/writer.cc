#include "state/btree/writer.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <string>

#include <whycache/error.h>

#include "state/btree/node.h"

namespace whycache {

namespace {

// Bytes that stay where they are until clear().
class Scratch {
 public:
  std::string_view keep(std::string_view front, std::string_view back = {}) {
    const std::size_t bytes = front.size() + back.size();
    if (bytes > left_) grow();
    char* const begin = next_;
    std::copy(front.begin(), front.end(), begin);
    std::copy(back.begin(), back.end(), begin + front.size());
    next_ += bytes;
    left_ -= bytes;
    return {begin, bytes};
  }
  void clear() {
    if (blocks_.empty()) return;
    blocks_.resize(1);
    next_ = blocks_[0].get();
    left_ = block_bytes;
  }

 private:
  static constexpr std::size_t block_bytes = std::size_t{64} << 10;
  static_assert(block_bytes >= key_bytes_max);

  void grow() {
    blocks_.push_back(std::make_unique_for_overwrite<char[]>(block_bytes));
    next_ = blocks_.back().get();
    left_ = block_bytes;
  }

  std::vector<std::unique_ptr<char[]>> blocks_;
  char* next_ = nullptr;
  std::size_t left_ = 0;
};

// A node that has less is merged with a neighbour, or given some of its keys.
constexpr std::size_t key_node_bytes_min = node_bytes_of(0) * 2 / 5;
// What is left free in a node that is filled in one go, so that the first key that comes late does not split it.
constexpr std::size_t filled(std::size_t bytes) { return bytes / 16 * 15; }

}  // namespace

// --- The writer ---

class KeysWriter::Work {
 public:
  explicit Work(NodeStore& nodes) : nodes_(nodes) {}

  enum class What : std::uint8_t { insert, erase };
  using Keys = std::span<const std::string_view>;

  NodeOffset change(NodeOffset root, Keys keys, What what) {
    retired_.clear();
    separators_.clear();
    gathered_.clear();
    if (keys.empty()) return root;
    for (std::size_t i = 0; i < keys.size(); ++i) {
      if (keys[i].empty() || keys[i].size() > key_bytes_max) {
        throw Error(ErrorKind::invalid, "key of a wrong size: bytes=" + std::to_string(keys[i].size()) +
                                            " bytes_max=" + std::to_string(key_bytes_max));
      }
      if (i > 0 && keys[i - 1] >= keys[i]) {
        throw Error(ErrorKind::invalid, "keys not in ascending order: index=" + std::to_string(i));
      }
    }
    what_ = what;
    std::vector<Piece>& top = levels_.back().pieces;
    top.clear();
    unsigned level = 0;
    if (root != 0) {
      level = KeyNode::root(nodes_, root).level();
      if (!change_node(root, level, keys, top)) return root;
    } else if (what == What::insert) {
      lay_out(0, keys, {}, {keys.size() - 1, keys.size() - 1}, top);
    } else {
      return root;
    }
    const NodeOffset new_root = lower(raise(top, level));
    for (const NodeOffset node : retired_) nodes_.retire(node);
    return new_root;
  }

 private:
  // What became of a child that was changed: the nodes that take its place. None if it became empty.
  struct Piece {
    NodeOffset node;
    std::size_t bytes;           // how many it has; unchanged_bytes: was not looked at
    std::string_view separator;  // between the node before and this one; meaningless in the first of a list
  };
  static constexpr std::size_t unchanged_bytes = SIZE_MAX;

  struct Edit {
    unsigned child;
    std::size_t first;  // of its pieces
    std::size_t count;
  };

  // The keys that belong under one child.
  struct Part {
    unsigned child;
    std::size_t count;
  };

  struct Level {
    std::vector<Part> parts;
    std::vector<Edit> edits;
    std::vector<Piece> pieces;
  };

  // Adds to `out` what takes the place of the node. False, and nothing added, if nothing changed.
  bool change_node(NodeOffset offset, unsigned level, Keys keys, std::vector<Piece>& out) {
    return level == 0 ? change_leaf(offset, keys, out) : change_inner(offset, level, keys, out);
  }

  // --- Leaves ---

  bool change_leaf(NodeOffset offset, Keys keys, std::vector<Piece>& out) {
    const KeyNode leaf = KeyNode::at(nodes_, offset, 0);
    return what_ == What::insert ? insert_into(leaf, keys, out) : erase_from(leaf, keys, out);
  }

  bool insert_into(const KeyNode& leaf, Keys keys, std::vector<Piece>& out) {
    new_keys_.clear();
    std::size_t bytes = leaf.bytes();
    bool fits = true;
    for (const std::string_view key : keys) {
      const KeyPlace place = leaf.find(key);
      if (place.is_there) continue;
      if (!new_keys_.empty() && place.index < new_keys_.back().index) leaf.damaged("keys out of order");
      new_keys_.push_back({place.index, key, 0});
      fits &= place.has_prefix;
      bytes += sizeof(KeyEnd) + key.size() - leaf.prefix().size();
    }
    if (new_keys_.empty()) return false;
    if (!fits || !key_node_fits(leaf.count() + new_keys_.size(), bytes)) {
      rewrite_with(leaf, out);
      return true;
    }
    const Own own = make_own(leaf, bytes);
    write_with_keys(leaf, own.data, new_keys_);
    out.push_back({own.node, bytes, {}});
    return true;
  }

  // Puts `new_keys_` between those of the leaf, in one new leaf or several.
  void rewrite_with(const KeyNode& leaf, std::vector<Piece>& out) {
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
    lay_out(0, keys_, {}, together ? run_of(first, new_keys_.size(), keys_.size(), leaf.last_inserted()) : Run(), out);
    retired_.push_back(leaf.offset());
    gathered_.clear();
  }

  bool erase_from(const KeyNode& leaf, Keys keys, std::vector<Piece>& out) {
    gone_.clear();
    std::size_t bytes = leaf.bytes();
    for (const std::string_view key : keys) {
      const KeyPlace place = leaf.find(key);
      if (!place.is_there) continue;
      if (!gone_.empty() && place.index <= gone_.back()) leaf.damaged("keys out of order");
      gone_.push_back(place.index);
      bytes -= sizeof(KeyEnd) + key.size() - leaf.prefix().size();
    }
    if (gone_.empty()) return false;
    if (gone_.size() == leaf.count()) {
      retired_.push_back(leaf.offset());
      return true;
    }
    const Own own = make_own(leaf, bytes);
    write_without_keys(leaf, own.data, gone_);
    out.push_back({own.node, bytes, {}});
    return true;
  }

  // --- Inner nodes ---

  bool change_inner(NodeOffset offset, unsigned level, Keys keys, std::vector<Piece>& out) {
    const KeyNode node = KeyNode::at(nodes_, offset, level);
    Level& mine = levels_[level - 1];
    mine.edits.clear();
    mine.pieces.clear();
    mine.parts.clear();
    for (Keys rest = keys; !rest.empty(); rest = rest.subspan(mine.parts.back().count)) {
      const unsigned child = node.child_of(rest[0]);
      if (!mine.parts.empty() && child <= mine.parts.back().child) node.damaged("keys out of order");
      mine.parts.push_back({child, count_below(node, child, rest)});
    }
    bool changed = false;
    for (std::size_t i = 0; i < mine.parts.size(); ++i) {
      ask_ahead(node, level, mine.parts, keys, i);
      const unsigned child = mine.parts[i].child;
      const Keys below = keys.first(mine.parts[i].count);
      keys = keys.subspan(below.size());
      const std::size_t first = mine.pieces.size();
      if (!change_node(node.child(child), level - 1, below, mine.pieces)) continue;
      changed = true;
      const std::size_t count = mine.pieces.size() - first;
      if (count == 1 && mine.pieces[first].node == node.child(child) && !wants_merging(mine.pieces[first])) {
        mine.pieces.pop_back();  // changed in place: nothing to do here
      } else {
        mine.edits.push_back({child, first, count});
      }
    }
    if (!changed) return false;
    if (mine.edits.empty()) {
      out.push_back({offset, node.bytes(), {}});
    } else if (!edit(node, mine, out)) {
      rewrite(node, mine, out);
    }
    return true;
  }

  // Asks for memory that will be wanted soon: children, and of each the first below it that will be changed. If there
  // are many nodes and each gets few of the keys, nearly all of the time goes by waiting for these. `keys`: of the
  // parts from `part` on.
  void ask_ahead(const KeyNode& node, unsigned level, const std::vector<Part>& parts, Keys keys, std::size_t part) {
    constexpr std::size_t ahead = 3;
    for (std::size_t i = part == 0 ? 1 : part + ahead; i <= part + ahead && i < parts.size(); ++i)
      prefetch_node(nodes_, node.child(parts[i].child));
    if (level < 2) return;
    std::size_t first_key = parts[part].count;
    for (std::size_t i = part + 1; i < part + ahead && i < parts.size(); first_key += parts[i++].count) {
      if (part > 0 && i + 1 < part + ahead) continue;
      const KeyNode child = KeyNode::at(nodes_, node.child(parts[i].child), level - 1);
      prefetch_node(nodes_, child.child(child.child_of(keys[first_key])));
    }
  }

  // How many of the keys, the first of which belongs under `child`, belong there.
  std::size_t count_below(const KeyNode& node, unsigned child, Keys keys) {
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
    const auto count = static_cast<std::size_t>(std::partition_point(begin, end, is_below) - keys.begin());
    if (count == 0) node.damaged("keys out of order");
    return count;
  }

  // Carries the edits out if no child vanished or wants merging and what comes to it fits.
  bool edit(const KeyNode& node, const Level& level, std::vector<Piece>& out) {
    const std::string_view prefix = node.prefix();
    std::size_t bytes = node.bytes();
    new_keys_.clear();
    for (const Edit& edit : level.edits) {
      if (edit.count == 0 || wants_merging(level.pieces[edit.first])) return false;
      for (std::size_t i = 1; i < edit.count; ++i) {
        const Piece& piece = level.pieces[edit.first + i];
        if (!piece.separator.starts_with(prefix)) return false;
        new_keys_.push_back({edit.child, piece.separator, piece.node});
        bytes += sizeof(KeyEnd) + sizeof(KeyChild) + piece.separator.size() - prefix.size();
      }
    }
    const std::size_t count = node.count() + new_keys_.size();
    if (!key_node_fits(count, bytes)) return false;
    const Own own = make_own(node, bytes);
    if (!new_keys_.empty()) {
      write_with_keys(node, own.data, new_keys_);
    } else if (own.node != node.offset()) {
      std::memcpy(own.data + sizeof(NodeHeader), node.data() + sizeof(NodeHeader), bytes - sizeof(NodeHeader));
    }
    std::size_t added = 0;
    for (const Edit& edit : level.edits) {
      write_child(own.data, count, edit.child + added, level.pieces[edit.first].node);
      added += edit.count - 1;
    }
    out.push_back({own.node, bytes, {}});
    return true;
  }

  // Makes the node anew from its old children and the pieces, in one new node or several; in none if no child is left.
  void rewrite(const KeyNode& node, const Level& level, std::vector<Piece>& out) {
    std::vector<Piece> old;
    std::vector<Piece> list;
    gather(node, {}, old);
    auto edit = level.edits.begin();
    for (unsigned i = 0; i <= node.count(); ++i) {
      if (edit == level.edits.end() || edit->child != i) {
        list.push_back(old[i]);
        continue;
      }
      for (std::size_t piece = 0; piece < edit->count; ++piece) {
        list.push_back(level.pieces[edit->first + piece]);
        if (piece == 0) list.back().separator = old[i].separator;
      }
      ++edit;
    }
    retired_.push_back(node.offset());
    if (what_ == What::erase) mend(node.level() - 1, list);

    Run run;
    if (level.edits.size() == 1 && level.edits[0].count > 1) {
      run = run_of(level.edits[0].child, level.edits[0].count - 1, list.size() - 1, node.last_inserted());
    }
    if (!list.empty()) lay_out(node.level(), list, run, out);
    gathered_.clear();
  }

  // Merges what is underfull with a neighbour.
  void mend(unsigned level, std::vector<Piece>& list) {
    for (std::size_t i = 0; i < list.size() && list.size() > 1;) {
      if (!wants_merging(list[i])) {
        ++i;
        continue;
      }
      const std::size_t left = i > 0 ? i - 1 : 0;
      std::vector<Piece> merged;
      merge(level, list[left], list[left + 1], merged);
      merged[0].separator = list[left].separator;
      if (merged.size() > 1) {
        for (Piece& piece : merged) piece.bytes = unchanged_bytes;  // it cannot get better
      }
      list.erase(list.begin() + static_cast<std::ptrdiff_t>(left),
                 list.begin() + static_cast<std::ptrdiff_t>(left + 2));
      list.insert(list.begin() + static_cast<std::ptrdiff_t>(left), merged.begin(), merged.end());
      i = left;
    }
  }

  // One node of the content of two neighbours, or several that are evenly filled.
  void merge(unsigned level, const Piece& left, const Piece& right, std::vector<Piece>& out) {
    retired_.push_back(left.node);
    retired_.push_back(right.node);
    if (level == 0) {
      std::vector<std::string_view> keys;
      gather(KeyNode::at(nodes_, left.node, 0), keys);
      gather(KeyNode::at(nodes_, right.node, 0), keys);
      lay_out(0, keys, {}, Run(), out);
    } else {
      std::vector<Piece> list;
      gather(KeyNode::at(nodes_, left.node, level), {}, list);
      gather(KeyNode::at(nodes_, right.node, level), right.separator, list);
      mend(level - 1, list);
      lay_out(level, list, Run(), out);
    }
  }

  // --- Roots ---

  // Puts inner nodes on top until there is one root.
  NodeOffset raise(std::vector<Piece>& top, unsigned level) {
    while (top.size() > 1) {
      if (++level > keys_level_max) {
        throw Error(ErrorKind::limit, "key index too high: keys_level_max=" + std::to_string(keys_level_max));
      }
      const std::vector<Piece> list = std::move(top);
      top.clear();
      lay_out(level, list, {list.size() - 2, list.size() - 2}, top);
    }
    return top.empty() ? 0 : top[0].node;
  }

  // Takes roots with one child away.
  NodeOffset lower(NodeOffset root) {
    if (root == 0) return 0;
    KeyNode node = KeyNode::root(nodes_, root);
    while (!node.is_leaf() && node.count() == 0) {
      retired_.push_back(node.offset());
      node = KeyNode::at(nodes_, node.child(0), node.level() - 1);
    }
    return node.offset();
  }

  // --- Making nodes ---

  struct Own {
    NodeOffset node;
    char* data;
  };
  // A private node for `bytes` in place of `node`: the same, if it is private and of the right size.
  Own make_own(const KeyNode& node, std::size_t bytes) {
    const std::size_t size_class = key_node_class(bytes);
    NodeOffset own = node.offset();
    if (node.size_class() != size_class || !nodes_.is_private(own)) {
      own = nodes_.allocate(size_class);
      retired_.push_back(node.offset());
    }
    return {own, reinterpret_cast<char*>(nodes_.writable(own))};
  }

  bool wants_merging(const Piece& piece) const { return what_ == What::erase && piece.bytes < key_node_bytes_min; }

  // Adds all keys of a node, whole.
  void gather(const KeyNode& node, std::vector<std::string_view>& keys) {
    const std::string_view prefix = node.prefix();
    for (unsigned i = 0; i < node.count(); ++i) {
      const std::string_view suffix = node.suffix(i);
      const std::size_t bytes = prefix.size() + suffix.size();
      if (bytes == 0 || bytes > key_bytes_max) node.damaged("a key of a wrong size");
      keys.push_back(gathered_.keep(prefix, suffix));
    }
  }
  // Adds all children of an inner node, the first with `separator`. One that had no neighbour could not be merged
  // before.
  void gather(const KeyNode& node, std::string_view separator, std::vector<Piece>& list) {
    old_keys_.clear();
    gather(node, old_keys_);
    for (unsigned i = 0; i <= node.count(); ++i) {
      list.push_back({node.child(i), unchanged_bytes, i == 0 ? separator : old_keys_[i - 1]});
    }
    if (node.count() == 0) list.back().bytes = KeyNode::at(nodes_, node.child(0), node.level() - 1).bytes();
  }

  // Keys that were put side by side into what is being laid out. If keys come in ascending or descending order, here or
  // all over the tree, it is divided next to them: what they have filled stays full, and what comes next has room.
  struct Run {
    std::size_t cut = 0;          // where to end a node; 0: wherever is best
    std::size_t last = SIZE_MAX;  // the last of them
  };
  static Run run_of(std::size_t index, std::size_t count, std::size_t key_count, unsigned last_inserted) {
    const std::size_t end = index + count;
    if (index == last_inserted + 1U) return {end < key_count ? end : end - 1, end - 1};
    if (index == last_inserted) return {index > 0 ? index : end, end - 1};
    return {0, end - 1};
  }

  void lay_out(unsigned level, const std::vector<Piece>& list, const Run& run, std::vector<Piece>& out) {
    keys_.clear();
    children_.clear();
    for (const Piece& piece : list) {
      if (!children_.empty()) keys_.push_back(piece.separator);
      children_.push_back(piece.node);
    }
    lay_out(level, keys_, children_, run, out);
  }

  // Makes nodes of these keys and children, as many as it takes.
  void lay_out(unsigned level, Keys keys, std::span<const NodeOffset> children, const Run& run,
               std::vector<Piece>& out) {
    shared_.assign(1, 0);
    for (std::size_t i = 1; i < keys.size(); ++i) {
      const std::size_t shared = shared_bytes(keys[i - 1], keys[i]);
      if (shared == keys[i].size() ||
          (shared < keys[i - 1].size() &&
           static_cast<unsigned char>(keys[i - 1][shared]) >= static_cast<unsigned char>(keys[i][shared]))) {
        throw_damaged_keys(0, "keys out of order");
      }
      shared_.push_back(static_cast<std::uint16_t>(shared));
    }
    std::string_view separator;
    for (std::size_t first = 0;;) {
      const std::size_t count = count_of_next(level, keys, first, run.cut);
      const std::size_t bytes = count == 0 ? key_node_bytes(level, 0, 0, 0) : sizes_[count - 1].bytes;
      const std::size_t prefix_bytes = count == 0 ? 0 : sizes_[count - 1].prefix_bytes;
      const bool last_is_here = run.last >= first && run.last < first + count;
      const NodeOffset node = nodes_.allocate(key_node_class(bytes));
      write_key_node(reinterpret_cast<char*>(nodes_.writable(node)), level, keys.subspan(first, count),
                     level == 0 ? children : children.subspan(first, count + 1), prefix_bytes,
                     last_is_here ? static_cast<std::uint16_t>(run.last - first) : no_key_inserted);
      out.push_back({node, bytes, separator});
      first += count;
      if (first == keys.size()) return;
      separator = separators_.keep(level == 0 ? keys[first].substr(0, std::size_t{shared_[first]} + 1) : keys[first]);
      if (level > 0) ++first;
    }
  }

  // How many of the keys from `first` on go into the next node; `sizes_` tells its size.
  std::size_t count_of_next(unsigned level, Keys keys, std::size_t first, std::size_t cut) {
    const std::size_t left = keys.size() - first;
    measure(level, keys, first);
    const std::size_t seen = sizes_.size();
    if (seen == left && (left == 0 || key_node_fits(left, sizes_.back().bytes))) return left;

    const std::size_t most = level == 0 ? left - 1 : left - 2;  // the next node needs a key too
    if (cut > first && cut - first <= seen && key_node_fits(cut - first, sizes_[cut - first - 1].bytes)) {
      return std::min(cut - first, most);
    }
    // What one key takes, most of which is the header and the prefix, is in both halves.
    const std::size_t halves = sizes_.back().bytes + sizes_.front().bytes;
    const bool two = seen == left && (left < keys_per_large_node || halves <= 2 * filled(node_bytes_of(0)));
    if (two && cut <= first) {
      const auto middle =
          std::partition_point(sizes_.begin(), sizes_.end(), [&](const Size& size) { return size.bytes < halves / 2; });
      const auto count = static_cast<std::size_t>(middle - sizes_.begin());
      return count_with_short_separator(level, keys, first, count, std::min(count + count / 8, most));
    }
    const std::size_t count = std::min(count_filled(), most);
    return count_with_short_separator(level, keys, first, count, count);
  }

  // About `wanted`, `high` at most, but so that the separator behind it is short: that makes inner nodes small, and
  // prefixes long.
  std::size_t count_with_short_separator(unsigned level, Keys keys, std::size_t first, std::size_t wanted,
                                         std::size_t high) const {
    high = std::max<std::size_t>(high, 1);
    while (!key_node_fits(high, sizes_[high - 1].bytes)) --high;  // one key always fits
    wanted = std::clamp<std::size_t>(wanted, 1, high);
    const auto separator_bytes = [&](std::size_t count) {
      return level == 0 ? std::size_t{shared_[first + count]} : keys[first + count].size();
    };
    // From the wanted one outwards, so that of equals the nearest is taken.
    std::size_t best = wanted;
    for (std::size_t step = 1; step <= wanted / 8; ++step) {
      if (wanted + step <= high && separator_bytes(wanted + step) < separator_bytes(best)) best = wanted + step;
      if (separator_bytes(wanted - step) < separator_bytes(best)) best = wanted - step;
    }
    return best;
  }

  // How many keys go into a node that is filled in one go.
  std::size_t count_filled() const {
    for (std::size_t size_class = 0;; ++size_class) {
      const bool last = size_class + 1 == node_size_class_count;
      const std::size_t room = last ? node_bytes_of(size_class) : filled(node_bytes_of(size_class));
      auto count = static_cast<std::size_t>(
          std::partition_point(sizes_.begin(), sizes_.end(), [&](const Size& size) { return size.bytes <= room; }) -
          sizes_.begin());
      if (size_class > 0) count = std::min(count, keys_per_large_node - 1);
      if (last || count >= keys_per_large_node / 2) return count;
    }
  }

  // The sizes of nodes of the first, the first two, three ... keys from `first` on, somewhat further than fits.
  void measure(unsigned level, Keys keys, std::size_t first) {
    sizes_.clear();
    std::size_t key_bytes = 0;
    std::size_t prefix_bytes = SIZE_MAX;
    for (std::size_t i = first; i < keys.size(); ++i) {
      const std::size_t count = i - first + 1;
      prefix_bytes = std::min<std::size_t>(prefix_bytes, count == 1 ? keys[i].size() : shared_[i]);
      key_bytes += keys[i].size();
      const std::size_t bytes = key_node_bytes(level, count, prefix_bytes, key_bytes - count * prefix_bytes);
      sizes_.push_back({bytes, prefix_bytes});
      if (bytes > 2 * (count < keys_per_large_node ? key_node_bytes_max : node_bytes_of(0))) return;
    }
  }

  struct Size {
    std::size_t bytes;
    std::size_t prefix_bytes;
  };

  NodeStore& nodes_;
  What what_ = What::insert;
  std::vector<NodeOffset> retired_;               // told to the store when everything went well
  std::array<Level, keys_level_max + 1> levels_;  // [level - 1]; the last one is for what becomes of the root
  Scratch separators_;                            // of pieces
  // What a node is being made of. Not in use while one of its children is being changed.
  Scratch gathered_;
  std::vector<std::string_view> old_keys_;
  std::vector<std::string_view> keys_;
  std::vector<NodeOffset> children_;
  std::vector<NewKey> new_keys_;
  std::vector<std::size_t> gone_;
  std::vector<std::uint16_t> shared_;  // with the key before
  std::vector<Size> sizes_;
};

KeysWriter::KeysWriter(NodeStore& nodes) : work_(std::make_unique<Work>(nodes)) {}
KeysWriter::~KeysWriter() = default;

NodeOffset KeysWriter::insert(NodeOffset root, std::string_view key) {
  return work_->change(root, {&key, 1}, Work::What::insert);
}
NodeOffset KeysWriter::erase(NodeOffset root, std::string_view key) {
  return work_->change(root, {&key, 1}, Work::What::erase);
}
NodeOffset KeysWriter::insert_sorted(NodeOffset root, std::span<const std::string_view> keys) {
  return work_->change(root, keys, Work::What::insert);
}
NodeOffset KeysWriter::erase_sorted(NodeOffset root, std::span<const std::string_view> keys) {
  return work_->change(root, keys, Work::What::erase);
}

// --- The cursor ---

namespace {

// Copies a few bytes, mostly less than 16. There has to be room for 16 more behind `to`; `readable`: how many bytes
// there are from `from` on.
constexpr std::size_t copy_short_bytes = 16;

inline void copy_short(char* to, const char* from, std::size_t bytes, std::size_t readable) {
  if (bytes <= copy_short_bytes && readable >= copy_short_bytes) {
    std::memcpy(to, from, copy_short_bytes);
  } else {
    std::memcpy(to, from, bytes);
  }
}

}  // namespace

void KeysCursor::seek(NodeOffset root, std::string_view key) {
  at_end_ = true;
  height_ = 0;
  if (root == 0) return;
  KeyNode node = KeyNode::root(nodes_, root);
  height_ = node.level();
  while (!node.is_leaf()) {
    const unsigned child = node.child_of(key);
    path_[node.level() - 1] = {node.data() + node.children_at(), child, node.count()};
    node = KeyNode::at(nodes_, node.child(child), node.level() - 1);
  }
  const unsigned index = node.find(key).index;
  if (index == node.count()) {
    next_leaf(key);
  } else {
    enter(node, index);
    at_end_ = false;
  }
}

void KeysCursor::next() {
  if (!at_end_) step(key());
}

void KeysCursor::step(std::string_view last) {
  if (index_ + 1 == count_) {
    next_leaf(last);
    return;
  }
  at_end_ = true;
  const std::string_view before = suffix_;
  const std::uint64_t head = head_;
  ++index_;
  take_suffix();
  check_ascends(before, head);
  take_key();
  at_end_ = false;
}

void KeysCursor::next_leaf(std::string_view last) {
  at_end_ = true;
  unsigned level = 1;
  while (level <= height_ && path_[level - 1].child == path_[level - 1].count) ++level;
  if (level > height_) return;
  Step& fork = path_[level - 1];
  ++fork.child;
  const NodeOffset child = key_child_unit * load_little_endian<KeyChild>(fork.children + fork.child * sizeof(KeyChild));
  KeyNode node = KeyNode::at(nodes_, child, level - 1);
  while (!node.is_leaf()) {
    path_[node.level() - 1] = {node.data() + node.children_at(), 0, node.count()};
    node = KeyNode::at(nodes_, node.child(0), node.level() - 1);
  }
  const std::string_view prefix = node.prefix();
  const int order = last.substr(0, prefix.size()).compare(prefix);
  if (order > 0 || (order == 0 && last.substr(prefix.size()) >= node.suffix(0))) node.damaged("keys out of order");
  enter(node, 0);
  at_end_ = false;
}

void KeysCursor::enter(const KeyNode& leaf, unsigned index) {
  leaf_ = leaf.offset();
  ends_ = leaf.data() + key_node_header_bytes;
  suffixes_ = leaf.suffixes();
  suffix_bytes_max_ = leaf.suffix_bytes_max();
  count_ = leaf.count();
  index_ = index;
  prefix_bytes_ = static_cast<std::uint32_t>(leaf.prefix().size());
  std::memcpy(key_.data(), leaf.prefix().data(), prefix_bytes_);
  end_ = index == 0 ? 0 : load_little_endian<KeyEnd>(ends_ + (index - 1) * sizeof(KeyEnd));
  take_suffix();
  take_key();
}

inline void KeysCursor::take_suffix() {
  const std::size_t begin = end_;
  end_ = load_little_endian<KeyEnd>(ends_ + index_ * sizeof(KeyEnd));
  const std::size_t key_bytes = prefix_bytes_ + end_ - begin;
  if (begin > end_ || end_ > suffix_bytes_max_ || key_bytes == 0 || key_bytes > key_bytes_max) [[unlikely]] {
    throw_damaged_keys(leaf_, "a key of a wrong size");
  }
  suffix_ = {suffixes_ + begin, end_ - begin};
  head_ = head_in_node(suffix_.data(), suffix_.size());
}

inline void KeysCursor::check_ascends(std::string_view before, std::uint64_t head) const {
  if (head_ > head || (head_ == head && compare_behind_heads(before, suffix_) < 0)) [[likely]]
    return;
  throw_damaged_keys(leaf_, "keys out of order");
}

inline void KeysCursor::take_key() {
  copy_short(key_.data() + prefix_bytes_, suffix_.data(), suffix_.size(),
             suffix_bytes_max_ - static_cast<std::size_t>(suffix_.data() - suffixes_));
  key_bytes_ = prefix_bytes_ + static_cast<std::uint32_t>(suffix_.size());
}

std::size_t KeysCursor::next_batch(std::vector<std::string_view>& keys, std::size_t count_max) {
  keys.clear();
  if (at_end_ || count_max == 0) return 0;
  const std::size_t count = std::min<std::size_t>(count_max, count_ - index_);
  const std::size_t begin = end_ - suffix_.size();
  const std::size_t end = load_little_endian<KeyEnd>(ends_ + (index_ + count - 1) * sizeof(KeyEnd));
  at_end_ = true;
  if (end < end_ || end > suffix_bytes_max_) throw_damaged_keys(leaf_, "a suffix beyond its end");
  const std::size_t bytes = count * prefix_bytes_ + end - begin + copy_short_bytes;
  if (batch_.size() < bytes) batch_.resize(bytes);
  keys.resize(count);
  char* to = batch_.data();
  for (std::size_t i = 0;;) {
    copy_short(to, key_.data(), prefix_bytes_, key_.size());
    copy_short(to + prefix_bytes_, suffix_.data(), suffix_.size(),
               suffix_bytes_max_ - static_cast<std::size_t>(suffix_.data() - suffixes_));
    keys[i] = {to, prefix_bytes_ + suffix_.size()};
    to += prefix_bytes_ + suffix_.size();
    if (++i == count) break;
    const std::string_view before = suffix_;
    const std::uint64_t head = head_;
    ++index_;
    take_suffix();
    if (end_ > end) throw_damaged_keys(leaf_, "a suffix beyond its end");
    check_ascends(before, head);
  }
  step(keys.back());
  return count;
}

// --- All nodes ---

namespace {

class Walk {
 public:
  Walk(const NodeReader& nodes, const std::function<void(NodeOffset, std::size_t)>& visit)
      : nodes_(nodes), visit_(visit) {}

  KeysShape shape;

  // All keys below have to be at or above `low` and less than `high`; nullptr: there is no such bound.
  void walk(const KeyNode& node, const std::string* low, const std::string* high) {
    if (node.bytes() > node_bytes_of(node.size_class())) node.damaged("suffixes beyond its end");
    visit_(node.offset(), node.size_class());
    const std::string_view prefix = node.prefix();
    for (unsigned i = 0; i < node.count(); ++i) {
      const std::string_view suffix = node.suffix(i);
      const std::size_t bytes = prefix.size() + suffix.size();
      if (bytes == 0 || bytes > key_bytes_max) node.damaged("a key of a wrong size");
      if (i > 0 && node.suffix(i - 1) >= suffix) node.damaged("keys out of order");
    }
    if (node.count() > 0) {
      if (low != nullptr && key(node, 0) < *low) node.damaged("keys below their separator");
      if (high != nullptr && key(node, node.count() - 1) >= *high) node.damaged("keys above their separator");
    }
    if (node.is_leaf()) {
      shape.key_count += node.count();
      return;
    }
    std::string begin;
    std::string end;
    for (unsigned i = 0; i <= node.count(); ++i) {
      begin.swap(end);
      if (i < node.count()) end = key(node, i);
      walk(KeyNode::at(nodes_, node.child(i), node.level() - 1), i == 0 ? low : &begin,
           i == node.count() ? high : &end);
    }
  }

 private:
  static std::string key(const KeyNode& node, unsigned i) {
    std::string whole(node.prefix());
    return whole.append(node.suffix(i));
  }

  const NodeReader& nodes_;
  const std::function<void(NodeOffset, std::size_t)>& visit_;
};

}  // namespace

KeysShape visit_nodes(const NodeReader& nodes, NodeOffset root,
                      const std::function<void(NodeOffset, std::size_t size_class)>& visit) {
  if (root == 0) return {};
  Walk walk(nodes, visit);
  const KeyNode node = KeyNode::root(nodes, root);
  walk.walk(node, nullptr, nullptr);
  walk.shape.height = node.level() + 1U;
  return walk.shape;
}

}  // namespace whycache
