#include "state/btree/check.h"

#include <string>
#include <string_view>

#include "state/btree/node.h"

namespace whycache {
namespace {

class BTreeWalk {
 public:
  BTreeWalk(const NodeReader& nodes, const std::function<void(NodeOffset, std::size_t)>& visit)
      : nodes_(nodes), visit_(visit) {}

  BTreeShape shape;

  // All keys below `node` must be at or above `low` and less than `high`; nullptr: no such bound.
  void walk(const BTreeNode& node, const std::string* low, const std::string* high) {
    if (node.bytes() > node_bytes_of(node.size_class()))
      node.throw_corrupt("suffixes beyond its end");
    visit_(node.offset(), node.size_class());
    const std::string_view prefix = node.prefix();
    for (unsigned i = 0; i < node.count(); ++i) {
      const std::string_view suffix = node.suffix(i);
      const std::size_t bytes = prefix.size() + suffix.size();
      if (bytes == 0 || bytes > tree_key_bytes_max) node.throw_corrupt("a key of a wrong size");
      if (i > 0 && node.suffix(i - 1) >= suffix) node.throw_corrupt("keys out of order");
    }
    if (node.count() > 0) {
      if (low != nullptr && key(node, 0) < *low) node.throw_corrupt("keys below their separator");
      if (high != nullptr && key(node, node.count() - 1) >= *high)
        node.throw_corrupt("keys above their separator");
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
      walk(BTreeNode::child_at_level(nodes_, node.child(i), node.level() - 1),
           i == 0 ? low : &begin, i == node.count() ? high : &end);
    }
  }

 private:
  static std::string key(const BTreeNode& node, unsigned i) {
    std::string whole(node.prefix());
    return whole.append(node.suffix(i));
  }

  const NodeReader& nodes_;
  const std::function<void(NodeOffset, std::size_t)>& visit_;
};

}  // namespace

BTreeShape visit_nodes(const NodeReader& nodes, NodeOffset root,
                       const std::function<void(NodeOffset, std::size_t size_class)>& visit) {
  if (root == 0) return {};
  BTreeWalk walk(nodes, visit);
  const BTreeNode node = BTreeNode::root(nodes, root);
  walk.walk(node, nullptr, nullptr);
  walk.shape.height = node.level() + 1U;
  return walk.shape;
}

}  // namespace whycache
