// Random numbers from the kernel (getrandom(2)): independent in a forked child and in each thread.
#pragma once

#include <cstdint>

#include <whycache/types.h>

namespace whycache {

// A version 4 UUID (RFC 4122).
Uuid random_uuid();
std::uint64_t random_u64();

}  // namespace whycache
