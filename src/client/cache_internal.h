// Access to the insides of a Cache, for what else is in this repository: the Python package, tools,
// tests and benchmarks.
#pragma once

#include <whycache/cache.h>
#include <whycache/log.h>

#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "client/write_queue.h"
#include "state/state.h"

namespace whycache {

class Session;

class CacheInternal {
 public:
  // The state of the machine, and the log as this process uses it. Both are valid as long as the
  // Cache object lives; the log also only until the process forks. Throw Error(invalid) if the
  // cache is closed.
  static State& state(const Cache& cache);
  static Log& log(const Cache& cache);
  // Both, as the protocols use them. Valid as the log is.
  static Session& session(const Cache& cache);
  // Returns null while the cache is closed.
  static State* state_if_open(const Cache& cache) noexcept;
  // As Cache::close_shared_state(), but no call opens the state again: it throws Error(invalid).
  static void close_for_good(Cache& cache);
  // Makes the next update() build the state again, as a read that finds it damaged does.
  static void note_damage(const Cache& cache) noexcept;
  // Pins the state as Cache::view() does.
  static std::shared_ptr<const detail::Pin> pin(const Cache& cache);
  // Returns the applied id if update() with these options need not ask the log, else nullopt. Costs
  // nanoseconds, and never waits.
  static std::optional<UpdateId> applied_id_if_fresh(const Cache& cache,
                                                     const UpdateOptions& options);
  // As Cache::write_async(), but gives the outcome to `completion`.
  static void write_async(Cache& cache, std::span<const Change> changes,
                          const WriteOptions& options, std::shared_ptr<WriteCompletion> completion);
  // Appends the changes that `decide` returns for the dataset as of the head of the log, if nothing
  // changes meanwhile; else calls it again. Returns nullopt if it returns no change.
  static std::optional<UpdateId> write_decided(
      Cache& cache, const std::function<std::vector<Change>(const View&)>& decide,
      const WriteOptions& options);
  // Updates the state, builds it again beside the present one, and puts that in its place. The
  // deadline limits how long the log may be silent. Throws as Cache::update(), and Error(limit) if
  // there is no room for both.
  static void rebuild(Cache& cache);
  // The same if the state is large and mostly free. Returns whether it was.
  static bool shrink(Cache& cache);
  // Changes the guards of the log in one atomic step, as client/guards.h says.
  static UpdateId change_log_guards(const Cache& cache,
                                    const std::function<void(LogGuards&)>& change,
                                    const WriteOptions& options);
};

}  // namespace whycache
