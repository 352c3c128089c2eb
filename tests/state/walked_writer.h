// A writer that is walked through its work store by store.
//
// A writer may be killed between any two instructions. A killed process leaves the page cache as it
// was, so what it leaves behind is what the file holds at that moment, and that changes by stores
// only: who has seen the file before each store has seen it between all instructions. So the child
// that does the work has the file mapped for reading. Each store to it faults, which is where the
// child can be stopped; then the page is opened for that one instruction (the processor's trap flag
// ends it).
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <vector>

#include "support/child_process.h"

namespace whycache::testing {

// At which stores the walk stops, besides those that are asked for by their number.
struct WalkPlan {
  struct FileRange {
    std::uint64_t offset;  // in the file
    std::uint64_t bytes;
  };

  bool every_store = false;
  std::uint64_t stop_at_store = 0;  // at the store of this number, from 1
  std::uint64_t stride = 0;         // at one of so many, at random; 0: not by number
  std::uint64_t seed = 0;           // of that choice
  std::uint64_t stores_per_instruction =
      0;  // at the first so many stores of each instruction there is
  std::vector<FileRange> watched_ranges;  // before and behind each store to these
};

class WalkedWriter {
 public:
  // Calls ready() when what follows is to be watched.
  using Work = std::function<void(const std::function<void()>& ready)>;

  // Why this cannot be done here; nullptr: it can.
  static const char* unsupported_reason();

  // The file is the one that `work` maps for writing with `mapped_bytes` of address space. Returns
  // when the child is ready.
  WalkedWriter(const WalkPlan& plan, std::uint64_t mapped_bytes, const Work& work);
  // Kills the child, wherever it stands.
  ~WalkedWriter();
  WalkedWriter(const WalkedWriter&) = delete;
  WalkedWriter& operator=(const WalkedWriter&) = delete;

  // On to the next store that the plan names: the child stands before it. False: the work is done.
  bool walk();
  // How many stores the child came to so far.
  std::uint64_t stores() const { return progress_->stores; }

  struct Progress {
    std::uint64_t stores = 0;
    bool done = false;
  };

 private:
  void wait_for_stop();

  SharedWithChildren<Progress> progress_;  // before child_: made before the fork
  pid_t child_;
};

}  // namespace whycache::testing
