// Allocates the space of the state file: segments, and entries, nodes and filters inside them.
// Writer only.
//
// Space goes through a cycle: free, in use, retired with a stamp, free again once no reader can
// reach anything from before the stamp. The stamp is the id of the update in progress. After that
// update is published, no new reader can reach what it retired. Two kinds of readers remain:
//
//   views         hold a lock whose offset is their id; advance_horizon() looks for the lowest
//   point reads   store nothing; the allocator increments the reclaim generation before it writes
//                 over retired space, and a point read starts again if the generation has changed
//
// Entries are a log-structured storage: the writer appends to the active segment. When a segment is
// full, it is sealed and put on a list by its utilization, the share of its bytes that is live. The
// segment cleaner (Applier::clean_segment) copies live entries out of little used segments.
// (Rosenblum and Ousterhout, The Design and Implementation of a Log-Structured File System, 1992)
//
// AllocatorState and the descriptors are exact as long as writers finish. A writer that dies leaves
// them in any state. The next writer then rebuilds both from what the point index and the key index
// refer to (recovery.h), and ignores their old contents.
#pragma once

#include <cstddef>
#include <cstdint>

#include "state/btree/node_store.h"
#include "state/file/layout.h"
#include "state/file/mapping.h"

namespace whycache {

enum class Readers : std::uint8_t {
  any,
  none  // no other process can open the file yet
};

// Every function throws Error(corrupt) if it finds AllocatorState, a descriptor or a node header
// damaged. Allocation throws Error(limit) if the state may not grow or the disk is full.
class Allocator final : public NodeStore {
 public:
  Allocator(Mapping& mapping, Readers readers, std::uint64_t bytes_max)
      : mapping_(mapping), readers_(readers), bytes_max_(bytes_max) {}

  // Tells where this process keeps its views. When space runs out, what the process keeps beyond
  // its last view is released. The mapping outlives this object.
  void set_mapping_of_views(const Mapping& mapping) { mapping_of_views_ = &mapping; }

  Mapping& mapping() const { return mapping_; }
  Header& header() const { return mapping_.writable_header(); }
  AllocatorState& allocator_state() const { return header().allocator_state; }
  SegmentDescriptor& descriptor(std::uint64_t segment) const;

  // Starts update `id`, the stamp of everything that is retired from now on.
  void begin_update(UpdateId id) { update_id_ = id; }
  UpdateId update_id() const { return update_id_; }

  // Stores the applied id as the reclaim horizon, so that no view starts below it. Returns the
  // lowest id that a view may hold.
  UpdateId advance_horizon();
  // Whether there is any view. After it returns false, every new view sees all earlier stores.
  bool has_views();
  // Makes point reads that are in progress start again. Call this before writing over anything that
  // a reader may be reading.
  void increment_generation();

  // --- Segments ---

  // Returns a segment of `kind` with undefined contents.
  std::uint64_t allocate_segment(SegmentKind kind);
  // Returns the first of `count` adjacent segments. The first has kind `first_kind`, the others are
  // continuations.
  std::uint64_t allocate_span(SegmentKind first_kind, std::uint64_t count);
  void retire_segment(std::uint64_t segment);
  // Returns the offset of a filter for an index page, with undefined contents.
  std::uint64_t allocate_filter();
  // Retires an index page and its filter together. Both become free at the same time.
  void retire_index_page(std::uint64_t segment, std::uint64_t filter);
  // Frees the retired segments that no reader can reach.
  void reclaim_segments();
  // Adds at least `segments_wanted` segments to the end of the file. They may include tables.
  void grow(std::uint64_t segments_wanted);

  // For recovery, which fills in the descriptor first: put a segment on the list of its kind.
  void link_free_segment(std::uint64_t segment);
  void link_retired_segment(std::uint64_t segment, UpdateId stamp);
  void link_sealed_segment(std::uint64_t segment);
  void link_filter_segment(std::uint64_t segment);

  // --- Entries ---

  // Whether a new entry goes to the active segment, or is copied from a segment being cleaned.
  // Copies go to the cleaning segment, apart from new entries.
  enum class EntryOrigin { written, cleaned };
  // Returns the offset of `bytes` bytes for an entry, and counts them as live.
  std::uint64_t allocate_entry(std::uint64_t bytes, EntryOrigin origin);
  // Whether writing an entry of this size needs another segment. Clean before that.
  bool needs_segment(std::uint64_t bytes) const;
  // Retires an entry that the point index no longer refers to.
  void retire_entry(std::uint64_t offset, std::uint64_t bytes);
  // Returns the sealed segment to clean next, one of the least used, or 0 if cleaning does not pay.
  std::uint64_t cleaning_candidate() const;
  // Takes a sealed segment off its utilization list. The caller copies its live entries, then
  // retires the segment.
  void begin_cleaning(std::uint64_t segment);

  // --- Nodes of the key index ---

  const std::byte* node(NodeOffset offset, std::size_t& bytes) const override;
  NodeOffset allocate_node(std::size_t size_class) override;
  void retire_node(NodeOffset offset) override;
  std::byte* writable_node(NodeOffset offset) override { return mapping_.writable_base() + offset; }
  bool is_private(NodeOffset offset) const override {
    return node_header(offset).stamp == update_id_;
  }
  // For recovery: puts a node on the list of retired nodes.
  void link_retired_node(NodeOffset offset, UpdateId stamp);

 private:
  UpdateId oldest_pinned_id(UpdateId below) const;
  NodeHeader& node_header(NodeOffset offset) const;
  void unlink(std::uint32_t& head, std::uint64_t segment);
  void link(std::uint32_t& head, std::uint64_t segment);
  std::uint32_t& utilization_list_of(std::uint64_t segment) const;
  std::uint64_t take_free_segment();
  std::uint64_t find_free_run(std::uint64_t count) const;
  std::uint64_t segments_to_add(std::uint64_t segments_wanted) const;
  void seal_segment(std::uint32_t& active);
  std::uint64_t take_node(std::uint64_t segment, std::size_t size_class);
  void free_node(NodeOffset offset);
  void free_filter(std::uint64_t offset);
  void reclaim_nodes(UpdateId oldest_visible);

  Mapping& mapping_;
  const Mapping* mapping_of_views_ = nullptr;
  Readers readers_;
  std::uint64_t bytes_max_;
  UpdateId update_id_ = 0;
};

}  // namespace whycache
