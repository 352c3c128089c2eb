// The reader refuses arbitrary bytes as corrupt, or reads a value. Written again, that value is
// canonical: it reads the same, and is written as the same bytes.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <optional>
#include <string>
#include <string_view>

#include <whycache/value.h>

using namespace whycache;

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

std::optional<std::string> try_copy(std::string_view bytes) {
  ValueWriter writer;
  ValueReader reader(bytes);
  std::size_t depth = 0;
  try {
    while (!reader.done()) {
      const ValueToken& token = reader.next();
      require(token.bytes.empty() ||
              (token.bytes.data() >= bytes.data() &&
               token.bytes.data() + token.bytes.size() <= bytes.data() + bytes.size()));
      if (token.is_container()) ++depth;
      if (token.kind == ValueKind::end) --depth;
      require(depth == reader.depth() && depth <= value_depth_max);
      writer.write(token);
    }
  } catch (const Error& error) {
    require(error.kind() == ErrorKind::corrupt);
    return std::nullopt;
  }
  return writer.finish();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  // The input is the object of a typed value.
  std::string bytes(typed_value_prefix);
  bytes.append(reinterpret_cast<const char*>(data), size);
  const std::optional<std::string> canonical = try_copy(bytes);
  if (!canonical) return 0;
  require(try_copy(*canonical) == canonical);
  return 0;
}
