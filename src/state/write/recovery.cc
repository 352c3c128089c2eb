#include "state/write/recovery.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <unordered_map>
#include <vector>

#include "state/btree/check.h"
#include "state/btree/mapped_nodes.h"
#include "state/errors.h"

namespace whycache {
namespace {

class Recovery {
 public:
  Recovery(Allocator& arena, PointIndex& index)
      : allocator_(arena),
        index_(index),
        applied_id_(arena.header().applied_id.load(std::memory_order_relaxed)) {}

  std::uint64_t run() {
    Header& header = allocator_.header();
    const std::uint64_t bytes = std::min(header.file_bytes.load(std::memory_order_relaxed),
                                         allocator_.mapping().usable_bytes());
    const std::uint64_t count = bytes / segment_bytes;
    if (count == 0) throw corrupt_state("file bytes", bytes);
    header.allocator_state = AllocatorState{};
    header.allocator_state.segment_count = static_cast<std::uint32_t>(count);
    usage_.assign(count, SegmentDescriptor{});
    header.reclaim_horizon.store(applied_id_, std::memory_order_release);
    allocator_.begin_update(applied_id_ + 1);

    mark_tables();
    mark_directory();
    repair_directory();
    mark_index_pages();
    mark_nodes();
    write_allocator_state();
    return undone_entry_count_;
  }

 private:
  SegmentDescriptor& claim_segment(std::uint64_t segment, SegmentKind kind) {
    if (segment == 0 || segment >= usage_.size())
      throw corrupt_state("segment beyond the end", segment);
    SegmentDescriptor& one = usage_[segment];
    if (one.kind != SegmentKind::free && one.kind != kind)
      throw corrupt_state("segment used in two ways", segment);
    one.kind = kind;
    return one;
  }

  void mark_tables() {
    for (std::uint64_t segment = 0; segment < usage_.size(); segment += segments_per_table)
      usage_[segment].kind = SegmentKind::table;
  }

  void mark_directory() {
    unsigned depth;
    index_.directory(depth);
    const std::uint64_t place =
        index_directory_offset(allocator_.header().index_directory.load(std::memory_order_relaxed));
    const std::uint64_t segments =
        depth <= small_index_directory_depth_max ? 1 : segments_for(sizeof(IndexWord) << depth);
    claim_segment(place / segment_bytes, SegmentKind::index_directory).span.segment_count =
        static_cast<std::uint32_t>(segments);
    for (std::uint64_t i = 1; i < segments; ++i)
      claim_segment(place / segment_bytes + i, SegmentKind::continuation);
  }

  // The slots a part stands in are a block of 2^(depth - its depth). A part that was being replaced
  // when the writer died still stands in the last slot of its block, as it was; it takes the whole
  // block back.
  void repair_directory() {
    unsigned depth;
    IndexWord* const slots = index_.directory(depth);
    const std::uint64_t count = std::uint64_t{1} << depth;
    for (std::uint64_t slot = count; slot-- > 0;) {
      const std::uint64_t word = slots[slot].load(std::memory_order_relaxed);
      if (local_depth(word) > depth) throw corrupt_state("depth of index part", local_depth(word));
      const std::uint64_t block = std::uint64_t{1} << (depth - local_depth(word));
      const std::uint64_t first = slot & ~(block - 1);
      if ((slot & (block - 1)) != block - 1) throw corrupt_state("index directory at slot", slot);
      for (std::uint64_t i = first; i < slot; ++i) {
        if (slots[i].load(std::memory_order_relaxed) != word)
          slots[i].store(word, std::memory_order_release);
      }
      slot = first;
    }
  }

  void mark_index_pages() {
    unsigned depth;
    IndexWord* const slots = index_.directory(depth);
    const std::uint64_t count = std::uint64_t{1} << depth;
    for (std::uint64_t slot = 0; slot < count;) {
      const std::uint64_t word = slots[slot].load(std::memory_order_relaxed);
      SegmentDescriptor& one =
          claim_segment(index_page_offset(word) / segment_bytes, SegmentKind::index_page);
      if (one.page.live + one.page.tombstones > 0)
        throw corrupt_state("index part in two places at slot", slot);
      mark_entries(index_page_offset(word), one);
      mark_filter(index_page_filter_offset(word));
      slot += std::uint64_t{1} << (depth - local_depth(word));
    }
  }

  void mark_entries(std::uint64_t offset, SegmentDescriptor& book) {
    auto* const words = reinterpret_cast<IndexWord*>(allocator_.mapping().writable_base() + offset);
    constexpr std::uint64_t ahead = 64;
    for (std::uint64_t i = 0; i < index_page_words; ++i) {
      if (i + ahead < index_page_words)
        __builtin_prefetch(allocator_.mapping().base() +
                           safe_offset(words[i + ahead].load(std::memory_order_relaxed)));
      const std::uint64_t word = words[i].load(std::memory_order_relaxed);
      if (word == empty_word) continue;
      if (word == tombstone_word) {
        ++book.page.tombstones;
        continue;
      }
      std::uint64_t at = word_offset(word);
      Entry entry = index_.entry(at);
      while (entry.id() > applied_id_) {
        ++undone_entry_count_;
        const UpdateId newer = entry.id();
        at = entry.previous_offset();
        if (at == 0) break;
        entry = index_.entry(at);
        if (entry.id() >= newer)
          throw corrupt_state("version older than the one before, at offset", at);
      }
      if (at == 0) {
        words[i].store(tombstone_word, std::memory_order_release);
        ++book.page.tombstones;
        continue;
      }
      if (at != word_offset(word)) PointIndex::replace(words[i], at);
      ++book.page.live;
      mark_entry(at, entry.bytes());
    }
  }

  void mark_filter(std::uint64_t offset) {
    SegmentDescriptor& one = claim_segment(offset / segment_bytes, SegmentKind::filters);
    const std::uint32_t bit = filter_bit(offset);
    if ((one.filters.in_use_bits & bit) != 0)
      throw corrupt_state("index filter reached twice, at offset", offset);
    one.filters.in_use_bits |= bit;
    ++one.filters.live;
  }

  std::uint64_t safe_offset(std::uint64_t word) const {
    const std::uint64_t offset = word_offset(word);
    return offset < allocator_.mapping().usable_bytes() ? offset : 0;
  }

  void mark_entry(std::uint64_t offset, std::uint64_t bytes) {
    const std::uint64_t segment = offset / segment_bytes;
    if (is_large_entry(bytes)) {
      if (offset % segment_bytes != 0)
        throw corrupt_state("large entry within a segment, at offset", offset);
      SegmentDescriptor& first = claim_segment(segment, SegmentKind::large);
      first.span.live = 1;
      first.span.segment_count = static_cast<std::uint32_t>(segments_for(bytes));
      for (std::uint64_t i = 1; i < first.span.segment_count; ++i)
        claim_segment(segment + i, SegmentKind::continuation);
      return;
    }
    if (offset % segment_bytes + bytes > segment_bytes)
      throw corrupt_state("entry beyond the end of its segment, at offset", offset);
    SegmentDescriptor& one = claim_segment(segment, SegmentKind::entries);
    one.entries.live_bytes += static_cast<std::uint32_t>(bytes);
    one.entries.used_bytes = std::max(one.entries.used_bytes,
                                      static_cast<std::uint32_t>(offset % segment_bytes + bytes));
  }

  void mark_nodes() {
    const UpdateId applied = applied_id_;
    const NodeOffset root =
        allocator_.header().published[applied % published_block_count].key_index_root;
    const MappedNodes nodes(allocator_.mapping());
    visit_nodes(nodes, root, [this](NodeOffset offset, std::size_t size_class) {
      const std::uint64_t segment = offset / segment_bytes;
      const std::uint64_t bytes = node_bytes_of(size_class);
      if (size_class >= node_class_count || offset % bytes != 0)
        throw corrupt_state("node at offset", offset);
      SegmentDescriptor& one = claim_segment(segment, SegmentKind::nodes);
      if (one.nodes.live > 0 && one.size_class != size_class)
        throw corrupt_state("nodes of two sizes in segment", segment);
      one.size_class = static_cast<std::uint8_t>(size_class);
      ++one.nodes.live;
      // The dead writer may have retired the node, with the stamp that the next one gives to nodes
      // of its own: it would take a node that readers are in for a private one.
      NodeHeader& header = *reinterpret_cast<NodeHeader*>(allocator_.writable_node(offset));
      if (header.stamp > applied_id_) header.stamp = 0;
      std::vector<bool>& reached = marked_nodes_[segment];
      reached.resize(segment_bytes / bytes);
      if (reached[offset % segment_bytes / bytes])
        throw corrupt_state("node reached twice, at offset", offset);
      reached[offset % segment_bytes / bytes] = true;
    });
  }

  // The segment of entries with the longest unused end; 0: there is none.
  std::uint64_t emptiest_entry_segment() const {
    std::uint64_t found = 0;
    for (std::uint64_t segment = 0; segment < usage_.size(); ++segment) {
      const SegmentDescriptor& one = usage_[segment];
      if (one.kind == SegmentKind::entries &&
          (found == 0 || one.entries.used_bytes < usage_[found].entries.used_bytes))
        found = segment;
    }
    return found;
  }

  void write_allocator_state() {
    AllocatorState& books = allocator_.allocator_state();
    // A view that is there by now may hold what nothing reaches any more; one that comes later
    // cannot get there. Without a view, the entry segment with most room is written on. Point reads
    // that may be in there, or in a filter that nothing reaches any more, begin again.
    const bool any_views = allocator_.has_views();
    const UpdateId stamp = any_views ? applied_id_ + 1 : applied_id_;
    const std::uint64_t open = any_views ? 0 : emptiest_entry_segment();
    allocator_.increment_generation();
    for (std::uint64_t segment = 0; segment < usage_.size(); ++segment) {
      const SegmentDescriptor& one = usage_[segment];
      if (one.kind == SegmentKind::free) {
        allocator_.link_retired_segment(segment, stamp);
        continue;
      }
      SegmentDescriptor& book = allocator_.descriptor(segment);
      book = one;
      if (one.kind == SegmentKind::entries) {
        ++books.entry_segment_count;
        books.entry_live_bytes += one.entries.live_bytes;
        if (segment == open) {
          books.active_segment = static_cast<std::uint32_t>(segment);
        } else {
          allocator_.link_sealed_segment(segment);
        }
      } else if (one.kind == SegmentKind::filters) {
        if (one.filters.live < filters_per_segment) allocator_.link_filter_segment(segment);
      } else if (one.kind == SegmentKind::nodes) {
        const std::vector<bool>& reached = marked_nodes_[segment];
        book.nodes.handed_out = static_cast<std::uint32_t>(reached.size());
        // Unreached nodes are freed one by one, when no view can hold them.
        book.nodes.live = book.nodes.handed_out;
        for (std::uint64_t number = 0; number < reached.size(); ++number) {
          if (!reached[number])
            allocator_.link_retired_node(
                segment * segment_bytes + number * node_bytes_of(one.size_class), stamp);
        }
      }
    }
  }

  Allocator& allocator_;
  PointIndex& index_;
  UpdateId applied_id_;
  // What the descriptor of each segment must contain; of kind free if nothing reaches it.
  std::vector<SegmentDescriptor> usage_;
  std::unordered_map<std::uint64_t, std::vector<bool>> marked_nodes_;
  std::uint64_t undone_entry_count_ = 0;
};

}  // namespace

std::uint64_t recover(Allocator& arena, PointIndex& index) { return Recovery(arena, index).run(); }

}  // namespace whycache
