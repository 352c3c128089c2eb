// The quick ways of reading are there twice (state/processor.h). A test with a parameter reads in both: true is the one
// of this processor, false that of every other. Before a state is opened.
#pragma once

#include <gtest/gtest.h>

#include "state/index/cpu.h"

namespace whycache::testing {

class WayOfReading {
 public:
#if WHYCACHE_AVX2
  explicit WayOfReading(bool quickest) { may_use_avx2 = quickest; }
  ~WayOfReading() { may_use_avx2 = true; }
#else
  explicit WayOfReading(bool) {}
#endif
  WayOfReading(const WayOfReading&) = delete;
  WayOfReading& operator=(const WayOfReading&) = delete;
};

inline constexpr auto name_of_way = [](const ::testing::TestParamInfo<bool>& way) {
  return way.param ? "quickest" : "anywhere";
};

}  // namespace whycache::testing
