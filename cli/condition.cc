#include "cli/condition.h"

#include <fmt/format.h>

#include "cli/escape.h"

namespace whycache::cli {

Failure condition_failed(const Cache& cache, const std::string& key, bool expects_value) {
  const char* const found = !expects_value        ? "is present"
                            : cache.contains(key) ? "has another value"
                                                  : "is absent";
  return Failure(ExitCode::conflict,
                 fmt::format("the key {}, nothing was written: key={}", found, escape(key)),
                 "`whycache get` prints the value");
}

}  // namespace whycache::cli
