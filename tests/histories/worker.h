// Those whose histories are told: processes that write, read and rewrite, each in its own way,
// until they are killed or told that it is over.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include <whycache/types.h>

namespace whycache::testing {

// Memory that all of them share, in a file.
struct SharedProgress {
  std::atomic<UpdateId> archived{0};  // as far as history may be rewritten; written by the director
  std::atomic<UpdateId> token{0};     // the greatest id that was acknowledged to anybody
  std::atomic<std::uint64_t> rewrites{0};  // that have moved the base
  std::atomic<std::uint64_t> rebuilds{0};  // of machines that were behind the base
  std::atomic<bool> stop{false};

  // Maps the file, which is made if it is not there. For as long as the process lives.
  static SharedProgress& open(const std::string& folder);
};

struct WorkerSettings {
  std::string role;     // one of roles()
  std::string machine;  // each has a state file
  std::string url;
  bool flaky = false;
  std::string directory;
  std::string process_name;  // its name, and that of its history: different each time it is started
  std::uint64_t seed = 0;
};

// writer, transactor, reader, sleeper (reads so seldom that it falls behind the base), rewriter.
std::vector<std::string> worker_roles();

std::string history_path(const std::string& folder, const std::string& process);

// Plays until the board says that it is over. Throws std::runtime_error if the part makes no sense.
void run_worker(const WorkerSettings& part);

}  // namespace whycache::testing
