#include "state/inspect.h"

#include <algorithm>
#include <cstring>
#include <iterator>

#include "base/clock.h"
#include "state/btree/mapped_nodes.h"
#include "state/btree/node.h"
#include "state/file/state_file.h"

namespace whycache {

StateInspection inspect_state_file(const Mapping& mapping) {
  const Header& header = mapping.header();
  StateInspection insides;
  insides.info = state_info(mapping);
  insides.file_bytes = mapping.usable_bytes();
  insides.segment_bytes = segment_bytes;
  insides.reclaim_generation =
      header.reclaim_generation.load(std::memory_order_relaxed) & ~superseded_bit;
  insides.reclaim_horizon = header.reclaim_horizon.load(std::memory_order_relaxed);
  insides.writer_active = header.writer_active.load(std::memory_order_relaxed) != 0;
  insides.created_in_this_boot = header.fixed.boot_id == boot_id();
  insides.created_us = header.fixed.created_us;

  constexpr const char* kinds[] = {"free",    "table", "directory",  "part",    "nodes",
                                   "entries", "large", "large_rest", "retired", "filters"};
  constexpr std::size_t kind_count = std::size(kinds);
  SegmentKindUsage uses[kind_count];
  const std::uint64_t count = std::min<std::uint64_t>(header.allocator_state.segment_count,
                                                      mapping.usable_bytes() / segment_bytes);
  for (std::uint64_t segment = 0; segment < count; ++segment) {
    SegmentDescriptor book;
    std::memcpy(&book, mapping.base() + descriptor_offset(segment), sizeof book);
    const auto kind = static_cast<std::size_t>(book.kind);
    if (kind >= kind_count) continue;
    SegmentKindUsage& use = uses[kind];
    ++use.segment_count;
    use.bytes += segment_bytes;
    switch (book.kind) {
      case SegmentKind::entries: use.live_bytes += book.entries.live_bytes; break;
      case SegmentKind::nodes:
        use.live_bytes +=
            book.nodes.live * node_bytes_of(std::min<std::size_t>(book.size_class, node_class_count - 1));
        break;
      case SegmentKind::index_page:
        use.live_bytes += book.page.live * sizeof(IndexWord);
        ++insides.index_pages;
        insides.index_used += book.page.live;
        insides.index_tombstones += book.page.tombstones;
        insides.index_words += index_page_words;
        break;
      case SegmentKind::filters: use.live_bytes += book.filters.live * filter_bytes; break;
      case SegmentKind::free:
      case SegmentKind::retired: break;
      default: use.live_bytes += segment_bytes;
    }
  }
  for (std::size_t kind = 0; kind < kind_count; ++kind) {
    uses[kind].kind = kinds[kind];
    if (uses[kind].segment_count > 0) insides.segments_by_kind.push_back(uses[kind]);
  }
  insides.index_global_depth = global_depth(header.index_directory.load(std::memory_order_relaxed));
  const PublishedBlock block = read_published(header);
  if (block.key_index_root != 0) {
    std::size_t bytes;
    const std::byte* const root = MappedNodes(mapping).node(block.key_index_root, bytes);
    insides.tree_height =
        reinterpret_cast<const BTreeNodeHeader*>(root + sizeof(NodeHeader))->level + 1U;
  }
  return insides;
}

}  // namespace whycache
