// The fast path of reading exists twice: for every processor, and for those with AVX2 and BMI2
// (since Haswell and Zen), as most servers have. The choice is made at run time.
#pragma once

namespace whycache {

// Thread sanitizer has to see every load as such.
#if defined(__SANITIZE_THREAD__)
#define WHYCACHE_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define WHYCACHE_THREAD_SANITIZER 1
#endif
#endif

#if defined(__x86_64__) && !defined(WHYCACHE_THREAD_SANITIZER)
#define WHYCACHE_AVX2 1
// The attribute of functions that use these instructions, and of all that are inlined into them and
// do.
#define WHYCACHE_TARGET_AVX2 gnu::target("avx2,bmi,bmi2")
// Tests clear it to read with the portable search, too.
inline constinit bool avx2_allowed = true;
inline bool has_avx2() {
  return avx2_allowed && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2");
}
#else
#define WHYCACHE_AVX2 0
#endif

}  // namespace whycache
