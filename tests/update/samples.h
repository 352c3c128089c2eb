// Sample updates and base parts: valid ones with random contents, and hostile ones assembled byte
// by byte.
#pragma once

#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <whycache/types.h>

#include "base/bytes.h"
#include "update/format.h"
#include "update/update.h"

namespace whycache::testing {

inline constexpr std::size_t no_bytes_max = std::size_t{1} << 40;

// A change that owns its bytes.
struct OwnedChange {
  Change::Kind kind = Change::Kind::set;
  std::string key;
  std::string value;

  Change change() const { return {kind, key, value}; }
};

inline std::string random_bytes(std::mt19937_64& random, std::size_t size) {
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random());
  return bytes;
}

// Most sizes are small, some values are empty, and a few keys have the maximum length.
inline std::string random_key(std::mt19937_64& random) {
  const std::size_t size = random() % 50 == 0 ? key_bytes_max : 1 + random() % 40;
  return random_bytes(random, size);
}
inline std::string random_value(std::mt19937_64& random) {
  const std::size_t size = random() % 5 == 0 ? 0 : random() % (random() % 20 == 0 ? 5000 : 100);
  // Half of them compress well.
  return random() % 2 == 0 ? std::string(size, static_cast<char>(random()))
                           : random_bytes(random, size);
}

inline std::vector<OwnedChange> random_changes(std::mt19937_64& random, std::size_t count) {
  std::vector<OwnedChange> changes;
  for (std::size_t i = 0; i < count; ++i) {
    if (random() % 4 == 0) {
      changes.push_back({Change::Kind::erase, random_key(random), ""});
    } else {
      changes.push_back({Change::Kind::set, random_key(random), random_value(random)});
    }
  }
  return changes;
}

inline Authorship full_authorship() {
  Authorship authorship;
  authorship.time_us = 1'700'000'000'123'456;
  for (std::uint8_t i = 0; i < 16; ++i) authorship.writer_id[i] = static_cast<std::uint8_t>(i + 1);
  authorship.writer_sequence = 42;
  authorship.writer_name = "host.example.com/4711";
  authorship.note = "why: because";
  return authorship;
}

inline std::string sealed(const std::vector<OwnedChange>& changes, UpdateId id,
                          std::uint64_t previous_chain,
                          const Authorship& authorship = full_authorship(),
                          bool erases_all = false) {
  Draft draft(authorship, erases_all);
  for (const OwnedChange& change : changes) draft.add(change.change(), no_bytes_max);
  return std::string(draft.seal(id, previous_chain));
}

// Returns an update with a valid header, and the given bytes as its contents.
inline std::string framed(std::uint8_t flags, std::string_view fields, std::uint64_t count,
                          std::string_view rest) {
  std::string bytes;
  bytes += static_cast<char>(format_version);
  bytes += static_cast<char>(flags);
  append_little_endian<std::uint64_t>(bytes, 7);   // id
  append_little_endian<std::uint64_t>(bytes, 99);  // chain
  append_varint(bytes, fields.size());
  bytes += fields;
  append_varint(bytes, count);
  bytes += rest;
  return bytes;
}

// Returns a base part with a valid header and checksum, and the given bytes as its contents.
inline std::string framed_part(std::uint8_t flags, std::string_view fields, std::uint64_t count,
                               std::uint64_t key_bytes, std::string_view rest) {
  std::string bytes;
  bytes += static_cast<char>(format_version);
  bytes += static_cast<char>(flags);
  append_little_endian<std::uint64_t>(bytes, 7);  // base
  append_little_endian<std::uint64_t>(bytes, 0);  // number
  append_varint(bytes, fields.size());
  bytes += fields;
  append_varint(bytes, count);
  append_varint(bytes, key_bytes);
  bytes += rest;
  append_little_endian(bytes, hash64(bytes));
  return bytes;
}

inline std::string varint(std::uint64_t number) {
  std::string bytes;
  append_varint(bytes, number);
  return bytes;
}

// Returns `bytes` compressed by zstd as one frame.
std::string zstd_frame(std::string_view bytes);

}  // namespace whycache::testing
