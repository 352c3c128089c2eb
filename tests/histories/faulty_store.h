// Where histories take place: a log in a store that fails every now and then, as stores do.
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
  // Straight to the log.
  virtual std::string url() const = 0;
  // As those who play reach it.
  virtual std::string worker_url() const { return url(); }
  // Whether failures have to be put between the players and the log (flaky_log.h), since nothing
  // else brings them.
  virtual bool needs_flaky_log() const { return true; }
  // Now and then: something that hurts all at once. For as long as calm() nothing follows, and at
  // most twice as long.
  virtual void inject_fault() {}
  virtual std::chrono::milliseconds quiet_period_min() const { return std::chrono::seconds(8); }
  // Nothing fails any more, and the store is done with all that it was asked for before.
  virtual void stop_faults() {}
  // What was done to the store so far, by name: connections cut, servers killed.
  virtual std::vector<std::pair<std::string, std::uint64_t>> fault_counts() { return {}; }
};

// `log`: file, sqlite, mysql, memcached (in front of mysql). Throws std::runtime_error, with the
// names there are, for any other.
std::unique_ptr<FaultyStore> make_faulty_store(const std::string& log, const std::string& folder,
                                               std::uint64_t seed);

}  // namespace whycache::testing
