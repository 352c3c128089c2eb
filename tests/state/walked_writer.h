// A writer that is walked through its work store by store.
//
// A writer may be killed between any two instructions. A killed process leaves the page cache
// unchanged, so its successor finds what the file holds at that moment. Only stores change the
// file: a test that examines the file before each store has examined it between all instructions.
//
// The child that does the work has the file mapped read-only. Each store to the file faults, and
// the child can be stopped in the fault handler. The handler then makes the page writable for that
// one instruction; the CPU's trap flag ends it.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "support/child_process.h"

namespace whycache::testing {

// The stores at which the walk stops: the union of what the members select.
struct WalkPlan {
  struct FileRange {
    std::uint64_t offset;  // in the file
    std::uint64_t bytes;
  };

  bool every_store = false;
  // The store of this number, counted from 1. 0: none.
  std::uint64_t stop_at_store = 0;
  // One random store out of each `stride`, chosen by `seed`. 0: none.
  std::uint64_t stride = 0;
  std::uint64_t seed = 0;
  // The first so many stores of each instruction.
  std::uint64_t stores_per_instruction = 0;
  // Each store to these ranges, and the store after it.
  std::vector<FileRange> watched_ranges;
};

class WalkedWriter {
 public:
  // Work to be walked. It calls ready() before the part that is watched.
  using Work = std::function<void(const std::function<void()>& ready)>;

  // Returns why walking is impossible in this build, or nullptr if it is possible.
  static const char* unsupported_reason();

  // Forks a child that runs `work`, and returns when the child is ready. The watched file is the
  // one that `work` maps for writing with `mapped_bytes` of address space.
  WalkedWriter(const WalkPlan& plan, std::uint64_t mapped_bytes, const Work& work);
  // Kills the child, wherever it is.
  ~WalkedWriter();
  WalkedWriter(const WalkedWriter&) = delete;
  WalkedWriter& operator=(const WalkedWriter&) = delete;

  // Continues to the next store that the plan selects, and stops before it. Returns false if the
  // work is done.
  bool walk();
  // The number of stores that the child has reached.
  std::uint64_t stores() const { return progress_->stores; }

  struct Progress {
    std::uint64_t stores = 0;
    bool done = false;
  };

 private:
  void wait_for_stop();

  SharedWithChildren<Progress> progress_;  // before child_: created before the fork
  pid_t child_;
};

}  // namespace whycache::testing
