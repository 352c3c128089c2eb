// Fast lookups exist in two variants: for AVX2 and portable (state/index/cpu.h). A parameterized
// test runs with both: true selects AVX2 if this CPU has it, false the portable variant. Create the
// LookupVariant before the state is opened.
#pragma once

#include <gtest/gtest.h>

#include "state/index/cpu.h"

namespace whycache::testing {

class LookupVariant {
 public:
#if WHYCACHE_AVX2
  explicit LookupVariant(bool avx2) { avx2_allowed = avx2; }
  ~LookupVariant() { avx2_allowed = true; }
#else
  explicit LookupVariant(bool) {}
#endif
  LookupVariant(const LookupVariant&) = delete;
  LookupVariant& operator=(const LookupVariant&) = delete;
};

inline constexpr auto variant_name = [](const ::testing::TestParamInfo<bool>& variant) {
  return variant.param ? "avx2" : "portable";
};

}  // namespace whycache::testing
