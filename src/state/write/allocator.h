// The space of the state file: segments, and what is carved out of them. Writer only.
//
// Space goes round: free -> in use -> retired with a stamp -> free again, when no reader can hold
// anything from before the stamp. The stamp is the id of the update under way: once that one is
// published, nobody new comes to what was retired. Two kinds of reader have to be waited for or
// warned off:
//   views        say in a reader slot which id they hold; visible_from() looks at the slots
//   point reads  say nothing; the reclaim generation is raised before the space is written over, and they start again
//
// The books (WriterBooks and the descriptors) are exact while writers leave cleanly. A writer that
// died leaves them in any state: the next one rebuilds them from what the index and the tree reach
// (recovery.h) and believes nothing else.
#pragma once

#include <cstddef>
#include <cstdint>

#include "state/btree/node_store.h"
#include "state/file/layout.h"
#include "state/file/lock_file.h"
#include "state/file/mapping.h"

namespace whycache {

class Allocator final : public NodeStore {
 public:
  // `readers` is null for a file that nobody else can open yet.
  Allocator(Mapping& mapping, LockFile* readers, std::uint64_t bytes_max)
      : mapping_(mapping), readers_(readers), bytes_max_(bytes_max) {}

  Mapping& mapping() const { return mapping_; }
  Header& header() const { return mapping_.writable_header(); }
  AllocatorState& allocator_state() const { return header().allocator_state; }
  // Throws Error corrupt for a number that cannot be.
  SegmentDescriptor& descriptor(std::uint64_t segment) const;

  // The update under way: what is retired gets its stamp.
  void begin_update(UpdateId id) { update_id_ = id; }
  UpdateId update_id() const { return update_id_; }

  // The least id a reader may be at: raises the horizon to the applied id, so that no view starts
  // below, and looks at the slots.
  UpdateId advance_horizon();
  // Whether there is any view at all. Who pins after this was answered with no finds what is stored
  // by now.
  bool has_views();
  // From here on, point reads that began before start again. Before anything a reader may be
  // looking at is written over.
  void increment_generation();

  // --- Segments ---

  // A segment of `kind`, contents undefined. Throws Error limit: the state may not grow, or the
  // disk is full.
  std::uint64_t allocate_segment(SegmentKind kind);
  // `count` segments in a row: the first of kind `first`, the others large_rest.
  std::uint64_t allocate_span(SegmentKind first, std::uint64_t count);
  void retire_segment(std::uint64_t segment);
  // Room for the filter of a part, contents undefined. Throws Error limit.
  std::uint64_t allocate_filter();
  // Both at once: they are free again at the same time.
  void retire_index_page(std::uint64_t segment, std::uint64_t filter);
  // Makes retired space free as far as readers allow.
  void reclaim_segments();
  // Adds segments to an empty or growing file.
  void grow(std::uint64_t segments_wanted);
  // For rebuilding the books: forgets all lists; every segment's descriptor is then set by hand.
  void link_free_segment(std::uint64_t segment);
  void link_retired_segment(std::uint64_t segment, UpdateId stamp);
  void link_sealed_segment(std::uint64_t segment);
  void link_filter_segment(std::uint64_t segment);

  // --- Entries ---

  // Room for an entry of entry_bytes() `bytes`, counted as live. `copy`: it is moved, not new; kept
  // apart from new ones.
  std::uint64_t allocate_entry(std::uint64_t bytes, bool copy);
  // Whether allocate_entry needs a segment: the moment to win space back first.
  bool needs_segment(std::uint64_t bytes) const;
  // The index no longer points to this entry.
  void retire_entry(std::uint64_t offset, std::uint64_t bytes);
  // The sealed segment of entries with least live in it, if winning space back pays; 0: it does
  // not.
  std::uint64_t cleaning_candidate() const;
  // Takes it off its list, for moving its live entries away; retire it afterwards.
  void begin_cleaning(std::uint64_t segment);

  // --- Nodes of the key index ---

  const std::byte* node(NodeOffset offset, std::size_t& bytes) const override;
  NodeOffset allocate_node(std::size_t size_class) override;
  void retire_node(NodeOffset offset) override;
  std::byte* writable_node(NodeOffset offset) override { return mapping_.writable_base() + offset; }
  bool is_private(NodeOffset offset) const override {
    return node_header(offset).stamp == update_id_;
  }
  // Puts a node on the list of retired ones; for rebuilding the books.
  void link_retired_node(NodeOffset offset, UpdateId stamp);

 private:
  // Throws Error corrupt for an offset that cannot be a node's.
  NodeHeader& node_header(NodeOffset offset) const;
  void unlink(std::uint32_t& head, std::uint64_t segment);
  void link(std::uint32_t& head, std::uint64_t segment);
  std::uint64_t take_free_segment();
  std::uint64_t find_free_run(std::uint64_t count) const;
  void seal_segment(std::uint32_t& open);
  void free_node(NodeOffset offset);
  void free_filter(std::uint64_t offset);
  void reclaim_nodes(UpdateId visible_from);

  Mapping& mapping_;
  LockFile* readers_;
  std::uint64_t bytes_max_;
  UpdateId update_id_ = 0;
};

}  // namespace whycache
