// zstd, where it pays, and with nothing believed that a frame says about itself.
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

#include <whycache/error.h>

namespace whycache {

// No frame is decompressed to more than this, and nothing longer is compressed.
inline constexpr std::size_t decompressed_bytes_max = std::size_t{64} << 20;

// Appends `bytes` to `to` as one zstd frame if that spares an eighth at least. Else returns false,
// and `to` is as it was.
bool append_compressed(std::string& to, std::string_view bytes);

// What `frame` says it will be. Throws Error corrupt unless it is exactly one zstd frame that
// states a size of at most decompressed_bytes_max. `what` names the thing in messages.
std::size_t decompressed_bytes(std::string_view frame, const char* what);
// Decompresses to the `size` bytes at `to`; `size` as decompressed_bytes() gave it. Throws Error
// corrupt.
void decompress(std::string_view frame, char* to, std::size_t size, const char* what);

}  // namespace whycache
