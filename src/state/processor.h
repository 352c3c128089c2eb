// Some functions are compiled twice: for every processor, and for those that most servers have (from Haswell or Zen
// on). The second ones need fewer instructions for the same source: three operands, shifts and products that leave the
// fixed registers alone.
#pragma once

#include <cstdint>

namespace whycache {

#if defined(__x86_64__) && !defined(__SANITIZE_THREAD__)
#define WHYCACHE_NEWER_PROCESSOR [[gnu::target("avx2,bmi,bmi2")]]
inline bool is_newer_processor() {
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2");
}
#else
#define WHYCACHE_NEWER_PROCESSOR
inline bool is_newer_processor() { return false; }
#endif

// What ends a use of the upper halves. GCC puts one there by itself, and does not see that there is one.
#if defined(__clang__)
#define WHYCACHE_VZEROUPPER "\n\tvzeroupper"
#else
#define WHYCACHE_VZEROUPPER ""
#endif

struct Product {
  std::uint64_t low;
  std::uint64_t high;
};

// All 128 bits of a product.
template <bool newer_processor>
[[gnu::always_inline]] inline Product multiply(std::uint64_t a, std::uint64_t b) {
#if defined(__x86_64__)
  if constexpr (newer_processor) {
    // Leaves its operands as they are, which compilers don't make use of.
    Product product;
    asm("mulx %[b], %[low], %[high]" : [low] "=&r"(product.low), [high] "=r"(product.high) : "d"(a), [b] "rm"(b));
    return product;
  }
#endif
  __extension__ using Wide = unsigned __int128;
  const Wide product = static_cast<Wide>(a) * b;
  return {static_cast<std::uint64_t>(product), static_cast<std::uint64_t>(product >> 64)};
}

}  // namespace whycache
