// Access to the insides of a Cache, for the tools, tests and benchmarks of this repository.
#pragma once

#include <whycache/cache.h>
#include <whycache/log.h>

#include "state/state.h"

namespace whycache {

class CacheInternal {
 public:
  // The state of the machine, and the log as this process uses it. Both are valid as long as the
  // Cache object lives; the log also only until the process forks. Throw Error(invalid) if the
  // cache is closed.
  static State& state(const Cache& cache);
  static Log& log(const Cache& cache);
};

}  // namespace whycache
