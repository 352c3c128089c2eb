#include "update/compression.h"

#include <zstd.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <memory>
#include <new>

#include "base/bytes.h"
#include "base/thread_end_key.h"

namespace whycache {
namespace {

constexpr std::uint32_t zstd_magic = 0xFD2FB528;
constexpr std::size_t compressed_bytes_min = 256;  // below, a frame hardly ever saves an eighth
constexpr int default_level = 1;
// Finds repetitions only, and three times as fast. It does not give frequent bytes shorter codes.
constexpr int repetitions_level = -4;
// Input that is several times as long as a sample is sampled, so that this takes little time.
constexpr std::size_t sample_pieces = 4;
constexpr std::size_t sample_piece_bytes = 512;
constexpr std::size_t sampled_bytes_min = 8 * sample_pieces * sample_piece_bytes;
// Codes of single bytes do not pay if a byte of the sample carries this many bits. Numbers, text
// and base64 carry fewer; media, keys, and what is compressed already carry more. Random bytes show
// 7.9 bits in a sample this short.
constexpr double byte_entropy_max = 7.25;

// A context takes hundreds of kilobytes, so each thread keeps one.
constinit thread_local ZSTD_CCtx* kept_compression_context = nullptr;
constinit thread_local ZSTD_DCtx* kept_decompression_context = nullptr;

constinit ThreadEndKey end_of_compression([](void* context) {
  kept_compression_context = nullptr;
  ZSTD_freeCCtx(static_cast<ZSTD_CCtx*>(context));
});
constinit ThreadEndKey end_of_decompression([](void* context) {
  kept_decompression_context = nullptr;
  ZSTD_freeDCtx(static_cast<ZSTD_DCtx*>(context));
});
[[maybe_unused]] const ThreadEndKey::Lifetime compression_lifetime(end_of_compression);
[[maybe_unused]] const ThreadEndKey::Lifetime decompression_lifetime(end_of_decompression);

// Returns the context of this thread. If there is no memory for it, the next call tries again.
template <typename Context>
Context* keep_context(Context*& kept, Context* (*create)(), std::size_t (*free)(Context*),
                      ThreadEndKey& end) {
  if (kept != nullptr) return kept;
  std::unique_ptr<Context, std::size_t (*)(Context*)> created(create(), free);
  if (!created) throw std::bad_alloc();
  end.set(created.get());
  return kept = created.release();
}

ZSTD_CCtx* compression_context() {
  return keep_context(kept_compression_context, ZSTD_createCCtx, ZSTD_freeCCtx, end_of_compression);
}

ZSTD_DCtx* decompression_context() {
  return keep_context(kept_decompression_context, ZSTD_createDCtx, ZSTD_freeDCtx,
                      end_of_decompression);
}

// Returns how many bits a byte carries, going by how often each value occurs in pieces of the
// input.
double sampled_byte_entropy(std::string_view bytes) {
  std::array<std::uint32_t, 256> counts{};
  for (std::size_t piece = 0; piece < sample_pieces; ++piece) {
    // In the middle of each quarter.
    const std::size_t begin =
        (2 * piece + 1) * bytes.size() / (2 * sample_pieces) - sample_piece_bytes / 2;
    for (const char byte : bytes.substr(begin, sample_piece_bytes))
      ++counts[static_cast<unsigned char>(byte)];
  }
  constexpr double sample_bytes = sample_pieces * sample_piece_bytes;
  double bits = 0;
  for (const std::uint32_t count : counts) {
    if (count > 0) bits -= count * std::log2(count / sample_bytes);
  }
  return bits / sample_bytes;
}

int level_for(std::string_view bytes) {
  return bytes.size() >= sampled_bytes_min && sampled_byte_entropy(bytes) > byte_entropy_max
             ? repetitions_level
             : default_level;
}

Error corrupt(const char* what, const std::string& why) {
  return Error(ErrorKind::corrupt, std::string(what) + why);
}

}  // namespace

bool append_compressed(std::string& to, std::string_view bytes) {
  if (bytes.size() < compressed_bytes_min || bytes.size() > decompressed_bytes_max) return false;
  const std::size_t begin = to.size();
  const std::size_t frame_bytes_max = bytes.size() - bytes.size() / 8;
  to.resize(begin + frame_bytes_max);
  // Too little room for the worst case, on purpose: a frame that does not fit does not pay.
  const std::size_t size =
      ZSTD_compressCCtx(compression_context(), to.data() + begin, frame_bytes_max, bytes.data(),
                        bytes.size(), level_for(bytes));
  to.resize(begin + (ZSTD_isError(size) ? 0 : size));
  return !ZSTD_isError(size);
}

std::size_t decompressed_bytes(std::string_view frame, const char* what) {
  const bool is_frame = frame.size() >= sizeof zstd_magic &&
                        load_little_endian<std::uint32_t>(frame.data()) == zstd_magic;
  if (!is_frame || ZSTD_findFrameCompressedSize(frame.data(), frame.size()) != frame.size()) {
    throw corrupt(what, " is not one whole zstd frame, although its flag says so: bytes=" +
                            std::to_string(frame.size()));
  }
  const unsigned long long size = ZSTD_getFrameContentSize(frame.data(), frame.size());
  if (size == ZSTD_CONTENTSIZE_UNKNOWN || size == ZSTD_CONTENTSIZE_ERROR) {
    throw corrupt(what,
                  " does not state its decompressed size: bytes=" + std::to_string(frame.size()));
  }
  if (size > decompressed_bytes_max) {
    throw corrupt(what,
                  " is longer than it can be when decompressed: bytes=" + std::to_string(size) +
                      " bytes_max=" + std::to_string(decompressed_bytes_max));
  }
  return static_cast<std::size_t>(size);
}

// Decompresses in one call, so zstd needs no window: it uses only `to` and the context.
void decompress(std::string_view frame, char* to, std::size_t size, const char* what) {
  const std::size_t got =
      ZSTD_decompressDCtx(decompression_context(), to, size, frame.data(), frame.size());
  if (ZSTD_isError(got)) {
    throw corrupt(what,
                  std::string(" cannot be decompressed: reason=\"") + ZSTD_getErrorName(got) + '"');
  }
  if (got != size) {
    throw corrupt(what, " has another length than it states: bytes=" + std::to_string(got) +
                            " stated=" + std::to_string(size));
  }
}

}  // namespace whycache
