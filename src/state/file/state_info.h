// How a state is opened. What it contains: whycache/inspection.h.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

#include <whycache/inspection.h>
#include <whycache/types.h>

namespace whycache {

// The log that a state was built from.
struct LogIdentity {
  Uuid uuid;
  std::string name;
};

// The position of a state, or of one being built, in its log.
struct LogPosition {
  Uuid log_uuid{};
  UpdateId id = 0;
  std::uint64_t chain = 0;

  friend bool operator==(const LogPosition&, const LogPosition&) = default;
};

struct StateOptions {
  std::string path;
  std::uint32_t mode = 0600;
  // Whether a state that exists keeps its mode. Otherwise it loses the bits that `mode` lacks.
  bool keeps_mode = false;
  std::uint64_t bytes_max = std::uint64_t{64} << 30;
  bool any_file_system = false;
  // Opens the state for reads alone: without its lock file, and without write access to anything.
  bool read_only = false;
  // Accepts a file of any user, for a caller that trusts its owner.
  bool any_owner = false;
  // Whether open() waits for other processes that verify or replace the file. If not, and there are
  // some, there is no usable state yet.
  bool waits_for_others = true;
  // The size of the ring of recent changes (change_ring.h); 0: none. nullopt: the size that it has.
  std::optional<std::uint64_t> changes_bytes{};
};

}  // namespace whycache
