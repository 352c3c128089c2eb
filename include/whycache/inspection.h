// What a state holds and who uses it, as plain data: Cache::inspect() and Cache::stats().
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include <whycache/types.h>

namespace whycache {

// Facts about the state as of one update id, consistent with each other.
struct StateInfo {
  UpdateId applied_id = 0;
  std::uint64_t chain = 0;
  Digest digest;
  std::uint64_t item_count = 0;
  std::uint64_t item_bytes = 0;  // keys and values of all live items
  Uuid log_uuid{};
  std::string log_name;        // redacted URL of the log that the state was built from
  std::uint64_t state_id = 0;  // random, of this file
  bool superseded = false;     // another file has replaced it
};

// A process of this machine that uses the state.
struct ProcessInfo {
  std::uint64_t process_id = 0;  // in its own PID namespace, for display only
  std::string process_name;      // of the process with this id here; empty if there is none
  // The oldest update that its views hold. A process that opens views in quick succession may hold
  // one for some milliseconds beyond its last view.
  std::optional<UpdateId> oldest_pinned_id;

  friend bool operator==(const ProcessInfo&, const ProcessInfo&) = default;
};

// All segments of one kind.
struct SegmentKindUsage {
  std::string kind;
  std::uint64_t segment_count = 0;
  std::uint64_t bytes = 0;
  std::uint64_t live_bytes = 0;  // in use
};

// Counts of events: of one Cache object in this process since it was opened (Cache::counters()), or
// of all processes of the machine (Stats::machine_counters).
struct Counters {
  std::uint64_t updates_applied = 0;
  std::uint64_t updates_written = 0;
  std::uint64_t append_conflicts = 0;  // another writer took the id first; the next one was tried
  std::uint64_t log_retries = 0;
  std::uint64_t rebuilds_behind_base = 0;  // the log was rewritten beyond the state
  std::uint64_t rebuilds_diverged = 0;     // the log was restored, forked or lost its tail
  std::uint64_t rebuilds_replaced = 0;     // the log has another uuid
  std::uint64_t rebuilds_damaged = 0;      // the state could not be used
  std::uint64_t rebuilds_to_shrink = 0;    // most of a large state was free
  std::uint64_t recoveries = 0;            // rollbacks of an update whose writer had died
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
  // Those that have the file open. A process forked from one of them appears on its own once it
  // opens a view.
  std::vector<ProcessInfo> processes;
  Counters machine_counters;  // Stats::machine_counters
};

// For health checks and metrics. Nothing in it needs a round trip to the log.
struct Stats {
  UpdateId applied_id = 0;
  // The head that the log had when a process of this machine last asked it, and how many updates
  // this machine was behind then; 0 if no process has asked since the machine started.
  UpdateId known_head = 0;
  std::uint64_t lag = 0;
  // How long ago that was, as Cache::staleness().
  std::chrono::nanoseconds staleness = std::chrono::nanoseconds::max();

  // Whether the last call of this object to the log succeeded, or another process of this machine
  // has asked the log since; true if there was no call. A call that waited in vain for another
  // process of this machine to read the log has failed, too. A call that still waits does not
  // count: watch `staleness`. If not: the error, and since when that has been so.
  bool log_is_up = true;
  std::string log_error;
  std::optional<std::chrono::system_clock::time_point> log_down_since;

  std::uint64_t item_count = 0;
  std::uint64_t item_bytes = 0;  // keys and values of all live items
  std::uint64_t file_bytes = 0;  // the size of the state file, with what views still hold

  // The oldest update that a view of this machine holds, and the process of that view.
  std::optional<UpdateId> oldest_pinned_id;
  std::uint64_t oldest_pinned_process_id = 0;
  std::string oldest_pinned_process_name;
  // Of the file, what no longer is in use and waits for that view to end, in whole segments of 256
  // KiB. 0 if there is no view. Beside it, a view holds what was overwritten in segments that are
  // still in use; inspect() counts those segments.
  std::uint64_t pinned_bytes = 0;

  // What this object has counted. Other processes of the machine apply updates, too.
  Counters counters;
  // What all processes of the machine have counted since the state was first built on it, or since
  // the machine was restarted. A state file that replaces another one takes the counts over. A
  // process adds its own when it applies an update or has rebuilt the state. What it counts later
  // is missing until then, and what processes count that may only read is missing altogether.
  Counters machine_counters;
};

}  // namespace whycache
