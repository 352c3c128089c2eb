// Allocations that fail. Replaces the operators of the C++ library for the whole program; only one
// file of a program may include it.
#pragma once

#include <cstddef>
#include <cstdlib>
#include <functional>
#include <new>
#include <utility>

namespace whycache::testing {

// The allocation of this thread that fails, counted from now; 0: none.
inline thread_local long allocations_until_failure = 0;
// Every later allocation of this thread fails, too, until the count is set again.
inline thread_local bool allocations_keep_failing = false;
// Number of allocations of this thread.
inline thread_local long allocation_count = 0;

// Called by the next allocation of this thread, once.
inline thread_local std::function<void()> during_allocation;

inline bool count_allocation() {
  ++allocation_count;
  if (during_allocation) std::exchange(during_allocation, nullptr)();
  if (allocations_until_failure == 0 || --allocations_until_failure > 0) return false;
  if (allocations_keep_failing) allocations_until_failure = 1;
  return true;
}

}  // namespace whycache::testing

// If these were inlined, g++ would report a mismatched pair.
[[gnu::noinline]] void* operator new(std::size_t bytes) {
  void* const memory =
      whycache::testing::count_allocation() ? nullptr : std::malloc(bytes == 0 ? 1 : bytes);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void* operator new(std::size_t bytes, std::align_val_t alignment) {
  const auto align = static_cast<std::size_t>(alignment);
  void* const memory = whycache::testing::count_allocation()
                           ? nullptr
                           : std::aligned_alloc(align, (bytes + align - 1) / align * align);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::align_val_t) noexcept {
  std::free(memory);
}
[[gnu::noinline]] void operator delete(void* memory, std::size_t, std::align_val_t) noexcept {
  std::free(memory);
}
