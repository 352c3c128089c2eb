// The store that holds the log of the histories, with injected faults.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace whycache::testing {

class FaultyStore {
 public:
  virtual ~FaultyStore() = default;
  // Returns the URL without faults.
  virtual std::string url() const = 0;
  // Returns the URL that the workers use.
  virtual std::string worker_url() const { return url(); }
  // The same for the hurried writer: here each answer takes a part of its deadlines.
  virtual std::string hurried_url() const { return worker_url(); }
  // Returns true if workers must wrap the log in a FlakyLog, because the store itself never fails.
  virtual bool needs_flaky_log() const { return true; }
  // Injects a fault that affects all workers. Calls are between one and two quiet_period_min()
  // apart.
  virtual void inject_fault() {}
  virtual std::chrono::milliseconds quiet_period_min() const { return std::chrono::seconds(8); }
  // Stops all faults, and returns once the store has completed all earlier requests.
  virtual void stop_faults() {}
  // Returns the faults so far, by name: connections cut, servers killed.
  virtual std::vector<std::pair<std::string, std::uint64_t>> fault_counts() { return {}; }
};

// `log` is file, sqlite, mysql, postgres, memcached or redis (in front of mysql). Throws
// std::runtime_error, which lists the known names, for any other.
std::unique_ptr<FaultyStore> make_faulty_store(const std::string& log, const std::string& directory,
                                               std::uint64_t seed);

}  // namespace whycache::testing
