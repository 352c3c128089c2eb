#include "state/write/recovery.h"

#include <algorithm>
#include <atomic>
#include <cassert>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "state/btree/check.h"
#include "state/btree/cursor.h"
#include "state/btree/mapped_nodes.h"
#include "state/errors.h"
#include "state/overflow.h"

namespace whycache {
namespace {

class Recovery {
 public:
  Recovery(Allocator& allocator, PointIndex& index)
      : allocator_(allocator),
        index_(index),
        applied_id_(allocator.header().applied_id.load(std::memory_order_relaxed)) {}

  std::uint64_t run() {
    Header& header = allocator_.header();
    const std::uint64_t bytes = std::min(header.file_bytes.load(std::memory_order_relaxed),
                                         allocator_.mapping().usable_bytes());
    const std::uint64_t count = bytes / segment_bytes;
    if (count == 0) throw corrupt_state("file bytes", bytes);
    header.allocator_state = AllocatorState{};
    header.allocator_state.segment_count = static_cast<std::uint32_t>(count);
    descriptors_.assign(count, SegmentDescriptor{});
    // Release: pairs with the acquire load of the horizon in Pin (read/pin.cc).
    header.reclaim_horizon.store(applied_id_, std::memory_order_release);
    allocator_.begin_update(applied_id_ + 1);

    mark_tables();
    mark_directory();
    repair_directory();
    mark_index_pages();
    mark_nodes();
    mark_overflow();
    write_allocator_state();
    repair_overflow();
    return undone_entry_count_;
  }

 private:
  // Marks a segment. Throws Error(corrupt) if it is in use as another kind.
  SegmentDescriptor& mark_segment(std::uint64_t segment, SegmentKind kind) {
    if (segment == 0 || segment >= descriptors_.size())
      throw corrupt_state("segment beyond the end", segment);
    SegmentDescriptor& marked = descriptors_[segment];
    if (marked.kind != SegmentKind::free && marked.kind != kind)
      throw corrupt_state("segment used in two ways", segment);
    marked.kind = kind;
    return marked;
  }

  void mark_tables() {
    for (std::uint64_t segment = 0; segment < descriptors_.size(); segment += segments_per_table)
      descriptors_[segment].kind = SegmentKind::table;
  }

  void mark_directory() {
    unsigned depth;
    index_.directory(depth);
    const std::uint64_t first = index_directory_offset(allocator_.header().index_directory.load(
                                    std::memory_order_relaxed)) /
                                segment_bytes;
    const std::uint64_t count =
        depth <= small_index_directory_depth_max ? 1 : segments_for(sizeof(IndexWord) << depth);
    mark_segment(first, SegmentKind::index_directory).span.segment_count =
        static_cast<std::uint32_t>(count);
    for (std::uint64_t i = 1; i < count; ++i) mark_segment(first + i, SegmentKind::continuation);
  }

  // The slots of an index page are a block of 2^(global depth - local depth). PointIndex replaces a
  // page slot by slot, front to back. If the writer died meanwhile, the last slot of the block
  // still names the old page, which is unchanged. Give it the whole block back.
  void repair_directory() {
    unsigned depth;
    IndexWord* const slots = index_.directory(depth);
    const std::uint64_t count = std::uint64_t{1} << depth;
    for (std::uint64_t slot = count; slot-- > 0;) {
      const std::uint64_t word = slots[slot].load(std::memory_order_relaxed);
      if (local_depth(word) > depth)
        throw corrupt_state("local depth of index page", local_depth(word));
      const std::uint64_t block = std::uint64_t{1} << (depth - local_depth(word));
      const std::uint64_t first = slot & ~(block - 1);
      if ((slot & (block - 1)) != block - 1) throw corrupt_state("index directory at slot", slot);
      for (std::uint64_t i = first; i < slot; ++i) {
        if (slots[i].load(std::memory_order_relaxed) != word)
          slots[i].store(word, std::memory_order_release);  // acquired by readers
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
      SegmentDescriptor::PageCounts& counts =
          mark_segment(index_page_offset(word) / segment_bytes, SegmentKind::index_page).page;
      if (counts.live + counts.tombstones > 0)
        throw corrupt_state("index page in two blocks of the directory, at slot", slot);
      mark_entries(index_page_offset(word), counts);
      mark_filter(index_page_filter_offset(word));
      slot += std::uint64_t{1} << (depth - local_depth(word));
    }
  }

  void mark_entries(std::uint64_t page_offset, SegmentDescriptor::PageCounts& counts) {
    auto* const words =
        reinterpret_cast<IndexWord*>(allocator_.mapping().writable_base() + page_offset);
    constexpr std::uint64_t words_ahead = 64;
    for (std::uint64_t i = 0; i < index_page_words; ++i) {
      if (i + words_ahead < index_page_words)
        __builtin_prefetch(allocator_.mapping().base() +
                           clamped_offset(words[i + words_ahead].load(std::memory_order_relaxed)));
      // Relaxed: only the writer stores index words.
      const std::uint64_t word = words[i].load(std::memory_order_relaxed);
      if (word == empty_word) continue;
      std::uint64_t offset = 0;
      if (holds_entry(word)) {
        offset = word_offset(word);
        const Entry entry = roll_back(offset);
        if (offset != 0) mark_entry(offset, entry.bytes());
      }
      if (offset == 0) {
        // Release: readers acquire index words.
        if (word != tombstone_word) words[i].store(tombstone_word, std::memory_order_release);
        ++counts.tombstones;
        continue;
      }
      if (offset != word_offset(word)) PointIndex::replace(words[i], offset);
      ++counts.live;
    }
  }

  // Moves `offset` from an entry to its newest published version, and returns that. Sets `offset`
  // to 0 if there is none.
  Entry roll_back(std::uint64_t& offset) {
    Entry entry = index_.entry(offset);
    while (entry.id() > applied_id_) {
      ++undone_entry_count_;
      const UpdateId newer = entry.id();
      offset = entry.previous_offset();
      if (offset == 0) break;
      entry = index_.entry(offset);
      if (entry.id() >= newer)
        throw corrupt_state("previous version that is not older, at offset", offset);
    }
    return entry;
  }

  void mark_filter(std::uint64_t offset) {
    SegmentDescriptor::FilterCounts& filters =
        mark_segment(offset / segment_bytes, SegmentKind::filters).filters;
    const std::uint32_t bit = filter_bit(offset);
    if ((filters.in_use_bits & bit) != 0)
      throw corrupt_state("index filter of two pages, at offset", offset);
    filters.in_use_bits |= bit;
    ++filters.live;
  }

  // For prefetching: the word is not validated yet.
  std::uint64_t clamped_offset(std::uint64_t word) const {
    const std::uint64_t offset = word_offset(word);
    return offset < allocator_.mapping().usable_bytes() ? offset : 0;
  }

  void mark_entry(std::uint64_t offset, std::uint64_t bytes) {
    const std::uint64_t segment = offset / segment_bytes;
    if (is_large_entry(bytes)) {
      if (offset % segment_bytes != 0)
        throw corrupt_state("large entry within a segment, at offset", offset);
      SegmentDescriptor::SpanCounts& span = mark_segment(segment, SegmentKind::large).span;
      span.live = 1;
      span.segment_count = static_cast<std::uint32_t>(segments_for(bytes));
      for (std::uint64_t i = 1; i < span.segment_count; ++i)
        mark_segment(segment + i, SegmentKind::continuation);
      return;
    }
    if (offset % segment_bytes + bytes > segment_bytes)
      throw corrupt_state("entry beyond the end of its segment, at offset", offset);
    SegmentDescriptor::EntryCounts& entries = mark_segment(segment, SegmentKind::entries).entries;
    entries.live_bytes += static_cast<std::uint32_t>(bytes);
    entries.used_bytes =
        std::max(entries.used_bytes, static_cast<std::uint32_t>(offset % segment_bytes + bytes));
  }

  void mark_nodes() {
    const NodeOffset root =
        allocator_.header().published[applied_id_ % published_block_count].key_index_root;
    const MappedNodes nodes(allocator_.mapping());
    visit_nodes(nodes, root, [this](NodeOffset offset, std::size_t size_class) {
      mark_node(offset, size_class);
    });
  }

  // The overflow tree is the published one: with the records of update n, of n + 1, or with some of
  // each if the writer died between the two. Marks both the old and the new entry of the records
  // that repair_overflow() will change.
  void mark_overflow() {
    const NodeOffset root = allocator_.header().overflow_root.load(std::memory_order_relaxed);
    const MappedNodes nodes(allocator_.mapping());
    visit_nodes(nodes, root, [this](NodeOffset offset, std::size_t size_class) {
      mark_node(offset, size_class);
    });
    BTreeCursor cursor(nodes);
    for (cursor.seek(root, {}); !cursor.at_end(); cursor.next()) {
      const std::optional<OverflowRecord> record = decode_overflow_record(cursor.key());
      if (!record || index_.entry(record->offset).key() != record->key)
        throw corrupt_state("record of the overflow tree at node", root);
      const std::uint64_t newest = record->offset;
      const std::uint64_t newest_bytes = index_.entry(newest).bytes();
      // The key has moved to a page, and the tree without its record was not published.
      if (const IndexWord* const word = index_.find_word(record->hash, record->key)) {
        const bool is_marked = word_offset(word->load(std::memory_order_relaxed)) == newest;
        if (!is_marked) mark_entry(newest, newest_bytes);
        overflow_repairs_.push_back({record->hash, newest, 0, is_marked ? 0 : newest_bytes});
        continue;
      }
      mark_entry(newest, newest_bytes);
      std::uint64_t offset = newest;
      const Entry entry = roll_back(offset);
      if (offset == newest) continue;
      if (offset != 0) mark_entry(offset, entry.bytes());
      overflow_repairs_.push_back({record->hash, newest, offset, newest_bytes});
    }
  }

  // Readers may have pinned the old tree, so it is changed like any other: in a copy.
  void repair_overflow() {
    if (overflow_repairs_.empty()) return;
    index_.begin_update();
    for (const OverflowRepair& repair : overflow_repairs_) {
      const IndexLocation location{nullptr, repair.offset};
      if (repair.replacement != 0) {
        index_.replace(location, repair.hash, repair.replacement);
      } else {
        index_.remove(location, repair.hash);
      }
    }
    // The next writer gives the stamp of these nodes to its own, and must not take them for
    // private.
    const MappedNodes nodes(allocator_.mapping());
    visit_nodes(nodes, index_.overflow_root(), [this](NodeOffset offset, std::size_t) {
      NodeHeader& header = *reinterpret_cast<NodeHeader*>(allocator_.writable_node(offset));
      if (header.stamp > applied_id_) header.stamp = 0;
    });
    index_.publish_overflow();
    for (const OverflowRepair& repair : overflow_repairs_) {
      if (repair.bytes_to_retire != 0)
        allocator_.retire_entry(repair.offset, repair.bytes_to_retire);
    }
  }

  void mark_node(NodeOffset offset, std::size_t size_class) {
    const std::uint64_t segment = offset / segment_bytes;
    const std::uint64_t bytes = node_bytes_of(size_class);
    if (size_class >= node_class_count || offset % bytes != 0)
      throw corrupt_state("node at offset", offset);
    SegmentDescriptor& holder = mark_segment(segment, SegmentKind::nodes);
    if (holder.nodes.live > 0 && holder.size_class != size_class)
      throw corrupt_state("nodes of two sizes in segment", segment);
    holder.size_class = static_cast<std::uint8_t>(size_class);
    ++holder.nodes.live;
    // The dead writer may have retired the node with the stamp of its update. The next writer gives
    // the same stamp to its own nodes, and would take this one, which readers use, for private.
    NodeHeader& header = *reinterpret_cast<NodeHeader*>(allocator_.writable_node(offset));
    if (header.stamp > applied_id_) header.stamp = 0;
    std::vector<bool>& marked = marked_nodes_[segment];
    marked.resize(segment_bytes / bytes);
    if (marked[offset % segment_bytes / bytes])
      throw corrupt_state("node reached twice, at offset", offset);
    marked[offset % segment_bytes / bytes] = true;
  }

  // Returns the entry segment with the most space at its end, or 0 if there is no entry segment.
  std::uint64_t emptiest_entry_segment() const {
    std::uint64_t emptiest = 0;
    for (std::uint64_t segment = 0; segment < descriptors_.size(); ++segment) {
      const SegmentDescriptor& marked = descriptors_[segment];
      if (marked.kind == SegmentKind::entries &&
          (emptiest == 0 || marked.entries.used_bytes < descriptors_[emptiest].entries.used_bytes))
        emptiest = segment;
    }
    return emptiest;
  }

  // An existing view may hold unmarked memory; a later one cannot reach it. If there is no view,
  // all unmarked memory is free at once, even the end of an entry segment, which becomes the active
  // segment. Point reads may be in such memory too: the new generation makes them start again.
  void write_allocator_state() {
    AllocatorState& state = allocator_.allocator_state();
    const bool any_views = allocator_.has_views();
    const UpdateId stamp = any_views ? applied_id_ + 1 : applied_id_;
    const std::uint64_t active = any_views ? 0 : emptiest_entry_segment();
    std::uint32_t unmarked_count = 0;
    allocator_.increment_generation();
    for (std::uint64_t segment = 0; segment < descriptors_.size(); ++segment) {
      const SegmentDescriptor& marked = descriptors_[segment];
      if (marked.kind == SegmentKind::free) {
        allocator_.link_retired_segment(segment, stamp);
        ++unmarked_count;
        continue;
      }
      allocator_.descriptor(segment) = marked;
      if (marked.kind == SegmentKind::entries) {
        ++state.entry_segment_count;
        state.entry_live_bytes += marked.entries.live_bytes;
        if (segment == active) {
          state.active_segment = static_cast<std::uint32_t>(segment);
        } else {
          allocator_.link_sealed_segment(segment);
        }
      } else if (marked.kind == SegmentKind::filters) {
        if (marked.filters.live < filters_per_segment) allocator_.link_filter_segment(segment);
      } else if (marked.kind == SegmentKind::nodes) {
        retire_unmarked_nodes(segment, stamp);
      }
    }
    assert(state.retired_count == unmarked_count);
  }

  // The allocator frees unmarked nodes one by one, when no view can hold them. Until then they
  // count as live.
  void retire_unmarked_nodes(std::uint64_t segment, UpdateId stamp) {
    const std::vector<bool>& marked = marked_nodes_[segment];
    SegmentDescriptor& holder = allocator_.descriptor(segment);
    holder.nodes.handed_out = static_cast<std::uint32_t>(marked.size());
    holder.nodes.live = holder.nodes.handed_out;
    for (std::uint64_t number = 0; number < marked.size(); ++number) {
      if (marked[number]) continue;
      allocator_.link_retired_node(
          segment * segment_bytes + number * node_bytes_of(holder.size_class), stamp);
    }
  }

  // A record to change, or to remove if `replacement` is 0.
  struct OverflowRepair {
    std::uint64_t hash;
    std::uint64_t offset;
    std::uint64_t replacement;
    std::uint64_t bytes_to_retire;  // of the entry at `offset`; 0: another word refers to it
  };

  Allocator& allocator_;
  PointIndex& index_;
  UpdateId applied_id_;
  // The new descriptor of each segment. Kind free: the segment is unmarked.
  std::vector<SegmentDescriptor> descriptors_;
  std::unordered_map<std::uint64_t, std::vector<bool>> marked_nodes_;
  std::vector<OverflowRepair> overflow_repairs_;
  std::uint64_t undone_entry_count_ = 0;
};

}  // namespace

namespace {

void store_mark(Header& header, WriterMark mark, std::memory_order order) {
  header.writer_active.store(static_cast<std::uint64_t>(mark), order);
}

}  // namespace

WriterMark mark_writer_active(Header& header) {
  // Acquire: pairs with the release store of clear_writer_active().
  const std::uint64_t previous = header.writer_active.load(std::memory_order_acquire);
  // The next writer must find the mark if this one is killed after any of its changes. The kernel
  // kills a thread between two instructions: earlier stores become visible to other processes,
  // later ones do not happen. Only the order of the instructions counts, which the signal fence
  // keeps. A release store would not: it lets the compiler move later stores in front of it. No
  // machine fence is needed, because the next writer takes the writer lock, which the kernel
  // releases after all stores of the dead process.
  store_mark(header, WriterMark::active, std::memory_order_relaxed);
  std::atomic_signal_fence(std::memory_order_seq_cst);
  return previous <= static_cast<std::uint64_t>(WriterMark::failed)
             ? static_cast<WriterMark>(previous)
             : WriterMark::active;
}

void clear_writer_active(Header& header) {
  // Release: no change moves behind this store. Pairs with the load of mark_writer_active().
  store_mark(header, WriterMark::none, std::memory_order_release);
}

void mark_writer_failed(Header& header) {
  store_mark(header, WriterMark::failed, std::memory_order_release);
}

std::uint64_t recover(Allocator& allocator, PointIndex& index) {
  return Recovery(allocator, index).run();
}

}  // namespace whycache
