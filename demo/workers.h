// The processes of the demo's two machines.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "packages.h"
#include "scoreboard.h"

namespace whycache::demo {

// A simulated machine: a state file of its own and the common log.
struct Machine {
  std::string name;
  std::string log_url;
  std::string state_path;
};

// Returns the record's body, followed by its version and a checksum of key, version and body.
std::string make_value(const Record& record, std::uint32_t version);

// A process that runs `work` and ends. An exception counts as a failure.
class Worker {
 public:
  Worker(Scoreboard& board, const std::function<void()>& work);
  Worker(Worker&& other) noexcept;
  Worker& operator=(Worker&&) = delete;
  ~Worker();

  pid_t process_id() const { return process_id_; }
  // Sends SIGKILL and waits until the process has ended.
  void kill();
  // Waits until the process ends by itself.
  void join();

 private:
  pid_t process_id_;
};

// Reads random keys, checks every value, and times one read in sixteen.
void run_reader(const Machine& machine, const std::vector<Record>& records, Scoreboard& board);
// Writes new versions of every second record, from `first` on.
void run_writer(const Machine& machine, const std::vector<Record>& records, std::size_t first,
                Scoreboard& board);
// Keeps the machine up to date: asks the log at this interval.
void run_follower(const Machine& machine, std::chrono::milliseconds interval, Scoreboard& board);
// The same, but sleeps until the log tells of an update (Options::follow).
void run_notified_follower(const Machine& machine, Scoreboard& board);

// A round of probes, numbered first..last. The delays of the first ones are not recorded: they
// include the start of the processes.
struct ProbeRound {
  int first;
  int last;
};

// Measure how long after set() returns other processes see the value. The reader sleeps in
// Cache::wait() between probes.
void run_probe_writer(const Machine& machine, const ProbeRound& round, Scoreboard& board);
void run_probe_reader(const Machine& machine, const ProbeRound& round,
                      std::atomic<std::uint64_t>& seen, LatencyHistogram& latencies,
                      Scoreboard& board);

}  // namespace whycache::demo
