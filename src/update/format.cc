#include "update/format.h"

namespace whycache {

CommonHeader take_common_header(ByteReader& reader, std::uint8_t known_flags) {
  const std::uint8_t version = reader.take_byte();
  if (version != format_version) {
    reader.throw_corrupt(
        "has a version this program does not know (if a newer whycache wrote it, upgrade this "
        "machine)",
        "version", version);
  }
  CommonHeader header;
  header.flags = reader.take_byte();
  if ((header.flags & ~known_flags) != 0) {
    reader.throw_corrupt(
        "has a flag this program does not know (if a newer whycache wrote it, upgrade this "
        "machine)",
        "flags", header.flags);
  }
  header.id = reader.take_little_endian<std::uint64_t>();
  if (header.id == 0) reader.throw_corrupt("has no id", "id", 0);
  header.chain_or_number = reader.take_little_endian<std::uint64_t>();
  return header;
}

void append_text_field(std::string& fields, std::uint64_t tag, std::string_view text,
                       const char* name) {
  if (text.size() > name_bytes_max) {
    throw Error(ErrorKind::invalid, std::string(name) +
                                        " too long: bytes=" + std::to_string(text.size()) +
                                        " bytes_max=" + std::to_string(name_bytes_max));
  }
  if (!text.empty()) append_field(fields, tag, text);
}

}  // namespace whycache
