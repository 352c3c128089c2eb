// How a state is opened. What it contains: whycache/inspection.h.
#pragma once

#include <cstdint>
#include <string>

#include <whycache/inspection.h>

namespace whycache {

struct StateOptions {
  std::string path;
  std::uint32_t mode = 0600;
  std::uint64_t bytes_max = std::uint64_t{64} << 30;
  std::uint32_t reader_slots = 1024;
  bool any_file_system = false;
  // Whether open() waits for other processes that verify or replace the file. If not, and there are
  // some, there is no usable state yet.
  bool waits_for_others = true;
};

}  // namespace whycache
