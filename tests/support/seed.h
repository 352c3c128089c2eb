// Random tests: each run has another seed, which a failing test prints. WHYCACHE_TEST_SEED repeats
// a run.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdlib>
#include <random>
#include <string>

namespace whycache::testing {

inline std::uint64_t test_seed() {
  static const std::uint64_t seed = [] {
    const char* given = std::getenv("WHYCACHE_TEST_SEED");
    return given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  }();
  return seed;
}

// Returns the text that a failing test prints: SCOPED_TRACE(seed_note()).
inline std::string seed_note() { return "WHYCACHE_TEST_SEED=" + std::to_string(test_seed()); }

}  // namespace whycache::testing
