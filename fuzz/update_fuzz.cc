// Any bytes are refused as corrupt or are an update; and an update that is drafted anew says the
// same.
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

  Update again;
  require(try_decode(bytes, again));
  require(again.id == update.id && again.erases_all == update.erases_all &&
          again.changes == update.changes);
  require(again.authorship.time_us == update.authorship.time_us &&
          again.authorship.writer_id == update.authorship.writer_id);
  require(again.authorship.writer_sequence == update.authorship.writer_sequence);
  require(again.authorship.writer_name == update.authorship.writer_name &&
          again.authorship.note == update.authorship.note);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const std::optional<UpdatePlace> place = peek_place(bytes);
  try_verify_chain(bytes, place ? place->id : 1, 5);

  static Update update;  // reused, as a follower does it
  if (!try_decode(bytes, update)) return 0;
  require(place && place->id == update.id && place->chain == update.chain);
  require_round_trip(update);
  return 0;
}
