// The quick ways of reading are there twice: for every processor, and for those that have AVX2 and
// BMI2 (from Haswell or Zen on), as most servers do. Which one fits is found out when a program
// runs.
#pragma once

namespace whycache {

// Thread sanitizer has to see every load for what it is.
#if defined(__SANITIZE_THREAD__)
#define WHYCACHE_THREAD_SANITIZER 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define WHYCACHE_THREAD_SANITIZER 1
#endif
#endif

#if defined(__x86_64__) && !defined(WHYCACHE_THREAD_SANITIZER)
#define WHYCACHE_AVX2 1
// Of functions that use these instructions, and of all that are inlined into them and do.
#define WHYCACHE_TARGET_AVX2 gnu::target("avx2,bmi,bmi2")
// Tests read the other way, too.
inline constinit bool avx2_allowed = true;
inline bool has_avx2() {
  return avx2_allowed && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") &&
         __builtin_cpu_supports("bmi2");
}
#else
#define WHYCACHE_AVX2 0
#endif

}  // namespace whycache
