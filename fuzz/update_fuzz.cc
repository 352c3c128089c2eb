// The decoder refuses arbitrary bytes as corrupt or returns an update, which survives a round trip
// through Draft.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "update/update.h"

using namespace whycache;

namespace {

void require(bool holds) {
  if (!holds) std::abort();
}

bool try_decode(std::string_view bytes, Update& update) {
  try {
    decode_update(bytes, update);
    return true;
  } catch (const Error& error) {
    require(error.kind() == ErrorKind::corrupt && update.changes.empty());
    return false;
  }
}

bool try_verify_chain(std::string_view bytes, UpdateId id, std::uint64_t previous_chain) {
  try {
    verify_chain(bytes, id, previous_chain);
    return true;
  } catch (const Error& error) {
    require(error.kind() == ErrorKind::corrupt);
    return false;
  }
}

void require_round_trip(const Update& update) {
  Draft draft(update.authorship, update.erases_all);
  for (const Change& change : update.changes) require(draft.add(change, SIZE_MAX));
  const std::string bytes(draft.seal(update.id, 5));
  require(try_verify_chain(bytes, update.id, 5));

  Update decoded;
  require(try_decode(bytes, decoded));
  require(decoded.id == update.id && decoded.erases_all == update.erases_all &&
          decoded.changes == update.changes);
  require(decoded.authorship.time_us == update.authorship.time_us &&
          decoded.authorship.writer_id == update.authorship.writer_id);
  require(decoded.authorship.writer_sequence == update.authorship.writer_sequence);
  require(decoded.authorship.writer_name == update.authorship.writer_name &&
          decoded.authorship.note == update.authorship.note);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const std::optional<UpdateHeader> header = peek_header(bytes);
  try_verify_chain(bytes, header ? header->id : 1, 5);

  static Update update;  // reused, as a follower reuses it
  if (!try_decode(bytes, update)) return 0;
  require(header && header->id == update.id && header->chain == update.chain);
  require_round_trip(update);
  return 0;
}
