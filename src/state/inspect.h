// Inspection of a state file, for tools: its header, its segments, the sizes of its indexes.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "state/file/lock_file.h"
#include "state/file/state_info.h"

namespace whycache {

class Mapping;

// All segments of one kind.
struct SegmentKindUsage {
  std::string kind;
  std::uint64_t segment_count = 0;
  std::uint64_t bytes = 0;
  std::uint64_t live_bytes = 0;  // in use
};

struct StateInspection {
  StateInfo info;
  std::uint64_t file_bytes = 0;
  std::uint64_t segment_bytes = 0;
  std::uint64_t reclaim_generation = 0;
  std::uint64_t reclaim_horizon = 0;
  bool writer_active = false;  // a process is writing, or died while writing
  bool created_in_this_boot = false;
  std::int64_t created_us = 0;
  std::vector<SegmentKindUsage> segments_by_kind;
  std::uint64_t index_pages = 0;
  std::uint64_t index_global_depth = 0;
  std::uint64_t index_words = 0;  // of all pages
  std::uint64_t index_used = 0;   // words that hold an entry
  std::uint64_t index_tombstones = 0;
  std::uint64_t tree_height = 0;
  std::uint32_t reader_slots = 0;
  std::vector<ReaderSlotInfo> slots_taken;
  std::vector<ReaderSlotInfo> processes;  // slot = process row
};

// Counts what the mapped file holds. Leaves reader_slots, slots_taken and processes, which are in
// the lock file, to the caller. Throws Error(corrupt).
StateInspection inspect_state_file(const Mapping& mapping);

}  // namespace whycache
