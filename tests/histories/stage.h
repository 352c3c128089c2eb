// Where histories take place: a log in a store that fails every now and then, as stores do.
#pragma once

#include <cstdint>
#include <memory>
#include <string>

namespace whycache::testing {

class Stage {
 public:
  virtual ~Stage() = default;
  // Straight to the log.
  virtual std::string url() const = 0;
  // As those who play reach it.
  virtual std::string players_url() const { return url(); }
  // Whether failures have to be put between the players and the log (flaky_log.h), since nothing else brings them.
  virtual bool wants_flaky_log() const { return true; }
  // Now and then: something that hurts all at once.
  virtual void disturb() {}
  // Nothing fails any more, and the store is done with all that it was asked for before.
  virtual void calm_down() {}
  // Connections cut so far, and disturbances.
  virtual std::uint64_t cuts() const { return 0; }
  virtual std::uint64_t disturbances() const { return 0; }
};

// `log`: file, sqlite, mysql. Throws std::runtime_error, with the names there are, for any other.
std::unique_ptr<Stage> make_stage(const std::string& log, const std::string& folder, std::uint64_t seed);

}  // namespace whycache::testing
