// Some functions are compiled twice: for every processor, and for those that most servers have (from Haswell or Zen
// on). The second ones need fewer instructions for the same source: three operands, shifts and products that leave the
// fixed registers alone.
#pragma once

namespace whycache {

#if defined(__x86_64__)
#define WHYCACHE_NEWER_PROCESSOR [[gnu::target("avx,bmi,bmi2")]]
inline bool is_newer_processor() {
  return __builtin_cpu_supports("avx") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}
#else
#define WHYCACHE_NEWER_PROCESSOR
inline bool is_newer_processor() { return false; }
#endif

}  // namespace whycache
