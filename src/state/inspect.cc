#include "state/inspect.h"

#include <algorithm>
#include <cstring>
#include <iterator>
#include <memory>
#include <optional>

#include "base/boot.h"
#include "base/clock.h"
#include "state/btree/mapped_nodes.h"
#include "state/btree/node.h"
#include "state/file/machine_counters.h"
#include "state/file/state_file.h"
#include "state/file/use_locks.h"

namespace whycache {

namespace {

// The names of SegmentKind in the output of `whycache inspect`, in its order.
constexpr const char* kind_names[] = {"free",    "table", "directory",  "part",    "nodes",
                                      "entries", "large", "large_rest", "retired", "filters"};
constexpr std::size_t kind_count = std::size(kind_names);

std::uint64_t live_bytes_of(const SegmentDescriptor& descriptor) {
  switch (descriptor.kind) {
    case SegmentKind::entries: return descriptor.entries.live_bytes;
    case SegmentKind::nodes:
      return descriptor.nodes.live *
             node_bytes_of(std::min<std::size_t>(descriptor.size_class, node_class_count - 1));
    case SegmentKind::index_page: return descriptor.page.live * sizeof(IndexWord);
    case SegmentKind::filters: return descriptor.filters.live * filter_bytes;
    case SegmentKind::free:
    case SegmentKind::retired: return 0;
    default: return segment_bytes;
  }
}

void count_segments(const Mapping& mapping, StateInspection& inspection) {
  SegmentKindUsage usage[kind_count];
  const std::uint64_t count = std::min<std::uint64_t>(
      mapping.header().allocator_state.segment_count, mapping.usable_bytes() / segment_bytes);
  for (std::uint64_t segment = 0; segment < count; ++segment) {
    SegmentDescriptor descriptor;  // a copy: a writer may be changing it
    std::memcpy(&descriptor, mapping.base() + descriptor_offset(segment), sizeof descriptor);
    const auto kind = static_cast<std::size_t>(descriptor.kind);
    if (kind >= kind_count) continue;
    ++usage[kind].segment_count;
    usage[kind].bytes += segment_bytes;
    usage[kind].live_bytes += live_bytes_of(descriptor);
    if (descriptor.kind == SegmentKind::index_page) {
      ++inspection.index_pages;
      inspection.index_used += descriptor.page.live;
      inspection.index_tombstones += descriptor.page.tombstones;
      inspection.index_words += index_page_words;
    }
  }
  for (std::size_t kind = 0; kind < kind_count; ++kind) {
    usage[kind].kind = kind_names[kind];
    if (usage[kind].segment_count > 0) inspection.segments_by_kind.push_back(usage[kind]);
  }
}

}  // namespace

StateInspection inspect_state_file(const Mapping& mapping) {
  const Header& header = mapping.header();
  StateInspection inspection;
  inspection.info = state_info(mapping);
  inspection.file_bytes = mapping.usable_bytes();
  inspection.segment_bytes = segment_bytes;
  // Relaxed: each number is for display, and used alone.
  inspection.reclaim_generation =
      header.reclaim_generation.load(std::memory_order_relaxed) & ~superseded_bit;
  inspection.reclaim_horizon = header.reclaim_horizon.load(std::memory_order_relaxed);
  inspection.writer_active = header.writer_active.load(std::memory_order_relaxed) != 0;
  inspection.created_in_this_boot = header.fixed.boot_id == boot_id();
  inspection.created_us = header.fixed.created_us;
  inspection.machine_counters = read_machine_counters(header);
  count_segments(mapping, inspection);
  inspection.index_global_depth =
      global_depth(header.index_directory.load(std::memory_order_relaxed));
  inspection.processes = find_processes(mapping.descriptor());
  const PublishedBlock block = read_published(header);
  if (block.key_index_root != 0) {
    std::size_t bytes;
    const std::byte* const root = MappedNodes(mapping).node(block.key_index_root, bytes);
    inspection.tree_height =
        reinterpret_cast<const BTreeNodeHeader*>(root + sizeof(NodeHeader))->level + 1U;
  }
  return inspection;
}

StateInspection inspect_unchanged(const std::string& path) {
  constexpr int tries_max = 10;
  for (int tries = 1;; ++tries) {
    const StateFileResult found = open_state_file_read_only(path);
    const std::shared_ptr<Mapping> mapping = found.mapping ? found.mapping : found.foreign;
    if (!mapping) {
      throw Error(ErrorKind::corrupt, "state file cannot be inspected: " + found.unusable_reason +
                                          " (delete it, it is rebuilt from the log)");
    }
    const std::uint64_t applied_id = mapping->header().applied_id.load(std::memory_order_acquire);
    try {
      return inspect_state_file(*mapping);
    } catch (const Error& error) {
      // This process pins nothing: a writer may have grown the file, or reused what was just read.
      const bool unchanged =
          mapping->header().applied_id.load(std::memory_order_acquire) == applied_id;
      if (error.kind() != ErrorKind::corrupt || unchanged || tries == tries_max) throw;
    }
  }
}

}  // namespace whycache
