// The decoder refuses arbitrary bytes with a correct checksum as corrupt, or returns a part of a
// base, which survives a round trip through BasePartEncoder.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "base/bytes.h"
#include "base/hash.h"
#include "update/update.h"

using namespace whycache;

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

bool try_decode(std::string_view bytes, BasePart& part) {
  try {
    decode_base_part(bytes, part);
    return true;
  } catch (const Error& error) {
    require(error.kind() == ErrorKind::corrupt && part.items.empty());
    return false;
  }
}

void require_round_trip(const BasePart& part) {
  BasePartEncoder encoder(part.base, part.authorship);
  for (const Item& item : part.items) require(encoder.add(item, SIZE_MAX));
  const std::string bytes(encoder.finish(part.last));

  BasePart decoded;
  require(try_decode(bytes, decoded));
  require(decoded.base == part.base && decoded.number == 0 && decoded.last == part.last &&
          decoded.authorship == part.authorship && decoded.items == part.items);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  std::string bytes(reinterpret_cast<const char*>(data), size);
  static BasePart part;  // reused, as a rebuild reuses it
  try_decode(bytes, part);
  append_little_endian(bytes, hash64(bytes));
  if (try_decode(bytes, part)) require_round_trip(part);
  return 0;
}
