// The bytes of the ring of recent changes: the file STATE.changes beside a state. It holds the last
// updates that were applied to the state, as they are in the log, so that feeds of changes need not
// ask the log (docs/formats/changes.md).
//
//   page 0      ChangeRingHeader
//   page 1 ..   records, one after the other; position p is at byte p % data_bytes
//
// Positions only grow. The records between `tail` and `head` are complete, and continue each other
// without a gap up to the newest update of the state. Only the holder of the state's writer lock
// writes. Readers take no lock, and copy by pread(2), so that nothing that others do to the file
// can end them by a signal.
//
//   writer                                      reader
//   1  tail = past what will be overwritten     a  load tail and head
//   2  write the record beyond head             b  copy records
//   3  head = past the record                   c  load tail: older positions may be torn
//   4  apply the update to the state            d  compare id, place and checksum of each record
//
// A reader looks for an update once the state has applied it, so the record is there. A writer that
// dies between 3 and 4 leaves a record of an update that was not applied. The next writer applies
// the same update, and finds it there.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <string_view>

#include <whycache/types.h>

#include "base/hash.h"

namespace whycache {

inline constexpr const char* change_ring_suffix = ".changes";

// Written before the file gets its name.
struct ChangeRingFixed {
  char magic[8];
  std::uint32_t byte_order;
  std::uint32_t reserved;
  std::uint64_t data_bytes;  // a multiple of a page
  std::uint64_t checksum;    // hash64 of all before

  std::uint64_t expected_checksum() const {
    return hash64({reinterpret_cast<const char*>(this), offsetof(ChangeRingFixed, checksum)});
  }
};
static_assert(sizeof(ChangeRingFixed) == 32);

// All but `fixed` is written under the writer lock.
struct ChangeRingHeader {
  ChangeRingFixed fixed;
  // HeaderFixed::state_id of the state whose updates these are. Stored (release) once `tail` equals
  // `head`. Readers compare it before they copy, and it is part of every checksum.
  alignas(64) std::atomic<std::uint64_t> state_id;
  // The first record. Stored (release) before a release fence and the bytes that overwrite the
  // records before it.
  std::atomic<std::uint64_t> tail;
  // The end of the last record. Stored (release) once the record is complete.
  std::atomic<std::uint64_t> head;
};
static_assert(offsetof(ChangeRingHeader, state_id) == 64);
static_assert(offsetof(ChangeRingHeader, tail) == 72);
static_assert(offsetof(ChangeRingHeader, head) == 80);

inline constexpr char change_ring_magic[8] = {'w', 'h', 'y', 'f', 'e', 'e', 'd', '1'};
inline constexpr std::uint32_t change_ring_byte_order = 0x01020304;
inline constexpr std::uint64_t change_ring_page_bytes = 4096;
inline constexpr std::uint64_t change_ring_bytes_min = std::uint64_t{64} << 10;
inline constexpr std::uint64_t change_ring_bytes_most = std::uint64_t{4} << 30;
inline constexpr std::uint64_t change_ring_bytes_default = std::uint64_t{16} << 20;

// Before the encoded update, which is padded to a multiple of eight bytes. After the padding, the
// position of the record follows once more (ChangeRecordEnd).
struct ChangeRecord {
  UpdateId id;
  std::uint64_t update_bytes;
  std::uint64_t checksum;
};
static_assert(sizeof(ChangeRecord) == 24);
using ChangeRecordEnd = std::uint64_t;

inline constexpr std::uint64_t change_record_bytes(std::uint64_t update_bytes) {
  return sizeof(ChangeRecord) + (update_bytes + 7) / 8 * 8 + sizeof(ChangeRecordEnd);
}

// The state and the place are part of the checksum, so that no record is taken for one that was
// there earlier.
inline std::uint64_t change_record_checksum(std::uint64_t state_id, std::uint64_t position,
                                            UpdateId id, std::string_view update) {
  const std::uint64_t place[3] = {state_id, position, id};
  return hash64(update, hash64({reinterpret_cast<const char*>(place), sizeof place}));
}

// Whether the file is a ring that this version can use.
inline bool is_usable(const ChangeRingFixed& fixed) {
  return std::memcmp(fixed.magic, change_ring_magic, sizeof fixed.magic) == 0 &&
         fixed.byte_order == change_ring_byte_order &&
         fixed.checksum == fixed.expected_checksum() && fixed.data_bytes >= change_ring_bytes_min &&
         fixed.data_bytes <= change_ring_bytes_most &&
         fixed.data_bytes % change_ring_page_bytes == 0;
}
// Whether the file may be replaced: it is a ring of some version, or what a power cut left of one.
inline bool is_ring_or_nothing(const ChangeRingFixed& fixed) {
  constexpr ChangeRingFixed nothing{};
  return std::memcmp(fixed.magic, change_ring_magic, sizeof fixed.magic - 1) == 0 ||
         std::memcmp(&fixed, &nothing, sizeof fixed) == 0;
}

}  // namespace whycache
