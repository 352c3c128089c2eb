// Compression with zstd, where it pays. Frames are untrusted.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include <whycache/error.h>

namespace whycache {

// The most that a frame may hold: longer input is not compressed, longer frames are rejected.
inline constexpr std::size_t decompressed_bytes_max = std::size_t{64} << 20;

// Appends `bytes` to `to` as one zstd frame if that saves at least an eighth. Otherwise returns
// false and leaves `to` unchanged.
bool append_compressed(std::string& to, std::string_view bytes);

// Returns the decompressed size that `frame` states. Throws Error(corrupt) unless it is exactly one
// zstd frame that states a size of at most decompressed_bytes_max. `what` names it in messages.
std::size_t decompressed_bytes(std::string_view frame, const char* what);
// Decompresses to the `size` bytes at `to`; decompressed_bytes() returned `size`. Throws
// Error(corrupt).
void decompress(std::string_view frame, char* to, std::size_t size, const char* what);

}  // namespace whycache
