// How a state is opened, and facts about its contents.
#pragma once

#include <cstdint>
#include <string>

#include <whycache/types.h>

namespace whycache {

struct StateOptions {
  std::string path;
  std::uint32_t mode = 0600;
  std::uint64_t bytes_max = std::uint64_t{64} << 30;
  std::uint32_t reader_slots = 1024;
  bool any_file_system = false;
};

// Facts about the state as of one update id, consistent with each other.
struct StateInfo {
  UpdateId applied_id = 0;
  std::uint64_t chain = 0;
  Digest digest;
  std::uint64_t item_count = 0;
  std::uint64_t item_bytes = 0;  // keys and values of all live items
  Uuid log_uuid{};
  std::string log_name;        // redacted URL of the log that the state was built from
  std::uint64_t state_id = 0;  // random, of this file
  bool superseded = false;     // another file has replaced it
};

}  // namespace whycache
