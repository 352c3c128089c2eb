// The quick ways of reading are there twice (state/processor.h). A test with a parameter reads in
// both: true is the one of this processor, false that of every other. Before a state is opened.
#pragma once

#include <gtest/gtest.h>

#include "state/index/cpu.h"

namespace whycache::testing {

class LookupVariant {
 public:
#if WHYCACHE_AVX2
  explicit LookupVariant(bool quickest) { avx2_allowed = quickest; }
  ~LookupVariant() { avx2_allowed = true; }
#else
  explicit LookupVariant(bool) {}
#endif
  LookupVariant(const LookupVariant&) = delete;
  LookupVariant& operator=(const LookupVariant&) = delete;
};

inline constexpr auto variant_name = [](const ::testing::TestParamInfo<bool>& way) {
  return way.param ? "quickest" : "anywhere";
};

}  // namespace whycache::testing
