// Workers: processes that write, read or rewrite, and record their histories, until they are killed
// or stopped.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include <whycache/types.h>

namespace whycache::testing {

// Memory in a file that all workers share.
struct SharedProgress {
  // History may be rewritten up to this id; set by HistoryRun.
  std::atomic<UpdateId> archived{0};
  // The greatest id that was acknowledged to any worker.
  std::atomic<UpdateId> token{0};
  std::atomic<std::uint64_t> rewrites{0};  // that moved the base
  std::atomic<std::uint64_t> rebuilds{0};  // of machines behind the base
  std::atomic<bool> stop{false};

  // Maps the file until the process exits, and creates it if it is missing.
  static SharedProgress& open(const std::string& directory);
};

struct WorkerSettings {
  std::string role;     // one of worker_roles()
  std::string machine;  // each has a state file
  std::string url;
  bool flaky = false;
  std::string directory;
  // Names the process and its history; different for every start.
  std::string process_name;
  std::uint64_t seed = 0;
};

// Returns writer, transactor, reader, sleeper (reads so rarely that it falls behind the base) and
// rewriter.
std::vector<std::string> worker_roles();

std::string history_path(const std::string& directory, const std::string& process);

// Runs until SharedProgress::stop is set. Throws std::runtime_error if the role is unknown.
void run_worker(const WorkerSettings& settings);

}  // namespace whycache::testing
