#include "state/write/recovery.h"

#include <algorithm>
#include <cstring>
#include <string>
#include <unordered_map>
#include <vector>

#include "state/btree/mapped_nodes.h"
#include "state/btree/writer.h"

namespace whycache {
namespace {

Error damaged(const std::string& what, std::uint64_t number) {
  return Error(ErrorKind::corrupt,
               "state file damaged: " + what + "=" + std::to_string(number) + " (delete the state file)");
}

// What is known of one segment by what reaches it.
struct Reached {
  SegmentKind kind = SegmentKind::free;  // free: nothing reaches it
  std::uint8_t size_class = 0;
  std::uint32_t live = 0;
  std::uint32_t used = 0;
};

class Recovery {
 public:
  Recovery(Arena& arena, PointIndex& index)
      : arena_(arena), index_(index), applied_(arena.header().applied_id.load(std::memory_order_relaxed)) {}

  std::uint64_t run() {
    Header& header = arena_.header();
    const std::uint64_t bytes =
        std::min(header.file_bytes.load(std::memory_order_relaxed), arena_.mapping().usable_bytes());
    const std::uint64_t count = bytes / segment_bytes;
    if (count == 0) throw damaged("file bytes", bytes);
    header.books = WriterBooks{};
    header.books.segment_count = static_cast<std::uint32_t>(count);
    reached_.assign(count, Reached{});
    header.reclaim_horizon.store(applied_, std::memory_order_release);
    arena_.begin_update(applied_ + 1);

    reach_tables();
    reach_directory();
    mend_directory();
    reach_parts();
    reach_nodes();
    write_books();
    return taken_back_;
  }

 private:
  Reached& claim(std::uint64_t segment, SegmentKind kind) {
    if (segment == 0 || segment >= reached_.size()) throw damaged("segment beyond the end", segment);
    Reached& one = reached_[segment];
    if (one.kind != SegmentKind::free && one.kind != kind) throw damaged("segment used in two ways", segment);
    one.kind = kind;
    return one;
  }

  void reach_tables() {
    for (std::uint64_t segment = 0; segment < reached_.size(); segment += segments_per_table)
      reached_[segment].kind = SegmentKind::table;
  }

  void reach_directory() {
    unsigned depth;
    index_.directory(depth);
    const std::uint64_t place = directory_offset(arena_.header().directory.load(std::memory_order_relaxed));
    const std::uint64_t segments = depth <= small_directory_depth_max ? 1 : segments_for(sizeof(IndexWord) << depth);
    claim(place / segment_bytes, SegmentKind::directory).used = static_cast<std::uint32_t>(segments);
    for (std::uint64_t i = 1; i < segments; ++i) claim(place / segment_bytes + i, SegmentKind::large_rest);
  }

  // The slots a part stands in are a block of 2^(depth - its depth). A part that was being replaced when the writer
  // died still stands in the last slot of its block, as it was; it takes the whole block back.
  void mend_directory() {
    unsigned depth;
    IndexWord* const slots = index_.directory(depth);
    const std::uint64_t count = std::uint64_t{1} << depth;
    for (std::uint64_t slot = count; slot-- > 0;) {
      const std::uint64_t word = slots[slot].load(std::memory_order_relaxed);
      if (part_depth(word) > depth) throw damaged("depth of index part", part_depth(word));
      const std::uint64_t block = std::uint64_t{1} << (depth - part_depth(word));
      const std::uint64_t first = slot & ~(block - 1);
      if ((slot & (block - 1)) != block - 1) throw damaged("index directory at slot", slot);
      for (std::uint64_t i = first; i < slot; ++i) {
        if (slots[i].load(std::memory_order_relaxed) != word) slots[i].store(word, std::memory_order_release);
      }
      slot = first;
    }
  }

  void reach_parts() {
    unsigned depth;
    IndexWord* const slots = index_.directory(depth);
    const std::uint64_t count = std::uint64_t{1} << depth;
    for (std::uint64_t slot = 0; slot < count;) {
      const std::uint64_t word = slots[slot].load(std::memory_order_relaxed);
      Reached& one = claim(part_offset(word) / segment_bytes, SegmentKind::part);
      if (one.live + one.used > 0) throw damaged("index part in two places at slot", slot);
      reach_entries(part_offset(word), one);
      reach_filter(part_filter(word));
      slot += std::uint64_t{1} << (depth - part_depth(word));
    }
  }

  void reach_entries(std::uint64_t offset, Reached& book) {
    auto* const words = reinterpret_cast<IndexWord*>(arena_.mapping().writable_base() + offset);
    constexpr std::uint64_t ahead = 64;
    for (std::uint64_t i = 0; i < part_words; ++i) {
      if (i + ahead < part_words)
        __builtin_prefetch(arena_.mapping().base() + safe_offset(words[i + ahead].load(std::memory_order_relaxed)));
      const std::uint64_t word = words[i].load(std::memory_order_relaxed);
      if (word == empty_word) continue;
      if (word == filler_word) {
        ++book.used;
        continue;
      }
      std::uint64_t at = word_offset(word);
      Entry entry = index_.entry(at);
      while (entry.id() > applied_) {
        ++taken_back_;
        const UpdateId newer = entry.id();
        at = entry.previous();
        if (at == 0) break;
        entry = index_.entry(at);
        if (entry.id() >= newer) throw damaged("version older than the one before, at offset", at);
      }
      if (at == 0) {
        words[i].store(filler_word, std::memory_order_release);
        ++book.used;
        continue;
      }
      if (at != word_offset(word)) PointIndex::replace(words[i], at);
      ++book.live;
      reach_entry(at, entry.bytes());
    }
  }

  void reach_filter(std::uint64_t offset) {
    Reached& one = claim(offset / segment_bytes, SegmentKind::filters);
    const std::uint32_t bit = filter_bit(offset);
    if ((one.used & bit) != 0) throw damaged("index filter reached twice, at offset", offset);
    one.used |= bit;
    ++one.live;
  }

  std::uint64_t safe_offset(std::uint64_t word) const {
    const std::uint64_t offset = word_offset(word);
    return offset < arena_.mapping().usable_bytes() ? offset : 0;
  }

  void reach_entry(std::uint64_t offset, std::uint64_t bytes) {
    const std::uint64_t segment = offset / segment_bytes;
    if (is_large_entry(bytes)) {
      if (offset % segment_bytes != 0) throw damaged("large entry within a segment, at offset", offset);
      Reached& first = claim(segment, SegmentKind::large);
      first.live = 1;
      first.used = static_cast<std::uint32_t>(segments_for(bytes));
      for (std::uint64_t i = 1; i < first.used; ++i) claim(segment + i, SegmentKind::large_rest);
      return;
    }
    if (offset % segment_bytes + bytes > segment_bytes)
      throw damaged("entry beyond the end of its segment, at offset", offset);
    Reached& one = claim(segment, SegmentKind::entries);
    one.live += static_cast<std::uint32_t>(bytes);
    one.used = std::max(one.used, static_cast<std::uint32_t>(offset % segment_bytes + bytes));
  }

  void reach_nodes() {
    const UpdateId applied = applied_;
    const NodeOffset root = arena_.header().published[applied % published_block_count].keys_root;
    const MappedNodes nodes(arena_.mapping());
    visit_nodes(nodes, root, [this](NodeOffset offset, std::size_t size_class) {
      const std::uint64_t segment = offset / segment_bytes;
      const std::uint64_t bytes = node_bytes_of(size_class);
      if (size_class >= node_class_count || offset % bytes != 0) throw damaged("node at offset", offset);
      Reached& one = claim(segment, SegmentKind::nodes);
      if (one.live > 0 && one.size_class != size_class) throw damaged("nodes of two sizes in segment", segment);
      one.size_class = static_cast<std::uint8_t>(size_class);
      ++one.live;
      // The dead writer may have retired the node, with the stamp that the next one gives to nodes of its own: it would
      // take a node that readers are in for a private one.
      NodeHeader& header = *reinterpret_cast<NodeHeader*>(arena_.writable(offset));
      if (header.stamp > applied_) header.stamp = 0;
      std::vector<bool>& reached = nodes_[segment];
      reached.resize(segment_bytes / bytes);
      if (reached[offset % segment_bytes / bytes]) throw damaged("node reached twice, at offset", offset);
      reached[offset % segment_bytes / bytes] = true;
    });
  }

  // The segment of entries with the longest unused end; 0: there is none.
  std::uint64_t roomiest() const {
    std::uint64_t found = 0;
    for (std::uint64_t segment = 0; segment < reached_.size(); ++segment) {
      const Reached& one = reached_[segment];
      if (one.kind == SegmentKind::entries && (found == 0 || one.used < reached_[found].used)) found = segment;
    }
    return found;
  }

  void write_books() {
    WriterBooks& books = arena_.books();
    // A view that is there by now may hold what nothing reaches any more; one that comes later cannot get there.
    // Without a view, the entry segment with most room is written on. Point reads that may be in there, or in a filter
    // that nothing reaches any more, begin again.
    const bool any_views = arena_.any_views();
    const UpdateId stamp = any_views ? applied_ + 1 : applied_;
    const std::uint64_t open = any_views ? 0 : roomiest();
    arena_.raise_generation();
    for (std::uint64_t segment = 0; segment < reached_.size(); ++segment) {
      const Reached& one = reached_[segment];
      if (one.kind == SegmentKind::free) {
        arena_.link_retired(segment, stamp);
        continue;
      }
      SegmentDescriptor& book = arena_.descriptor(segment);
      book = SegmentDescriptor{};
      book.kind = one.kind;
      book.size_class = one.size_class;
      book.live = one.live;
      book.used = one.used;
      if (one.kind == SegmentKind::entries) {
        ++books.entry_segments;
        books.entry_live_bytes += one.live;
        if (segment == open) {
          books.open_fresh = static_cast<std::uint32_t>(segment);
        } else {
          arena_.link_sealed(segment);
        }
      } else if (one.kind == SegmentKind::filters) {
        if (one.live < filters_per_segment) arena_.link_filters(segment);
      } else if (one.kind == SegmentKind::nodes) {
        const std::vector<bool>& reached = nodes_[segment];
        book.used = static_cast<std::uint32_t>(reached.size());
        book.live = book.used;  // those not reached are freed one by one, when no view can hold them
        for (std::uint64_t number = 0; number < reached.size(); ++number) {
          if (!reached[number])
            arena_.link_retired_node(segment * segment_bytes + number * node_bytes_of(one.size_class), stamp);
        }
      }
    }
  }

  Arena& arena_;
  PointIndex& index_;
  UpdateId applied_;
  std::vector<Reached> reached_;
  std::unordered_map<std::uint64_t, std::vector<bool>> nodes_;
  std::uint64_t taken_back_ = 0;
};

}  // namespace

std::uint64_t recover(Arena& arena, PointIndex& index) { return Recovery(arena, index).run(); }

}  // namespace whycache
