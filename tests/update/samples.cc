#include "update/samples.h"

#include <zstd.h>

#include <stdexcept>

namespace whycache::testing {

std::string zstd_frame(std::string_view bytes) {
  std::string frame(ZSTD_compressBound(bytes.size()), '\0');
  const std::size_t size = ZSTD_compress(frame.data(), frame.size(), bytes.data(), bytes.size(), 1);
  if (ZSTD_isError(size)) throw std::runtime_error("zstd failed to compress a sample");
  frame.resize(size);
  return frame;
}

}  // namespace whycache::testing
