// The small words every other header uses.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

#if defined(__GNUC__)
#define WHYCACHE_API __attribute__((visibility("default")))
#else
#define WHYCACHE_API
#endif

namespace whycache {

// Position of an update in the log: dense, from 1. 0 is "before the first".
using UpdateId = std::uint64_t;

// The random name a log gets when it is made. A log that is emptied or replaced has another one.
using Uuid = std::array<std::uint8_t, 16>;

// A key with its value, as handed to the user. Both are opaque bytes.
struct Item {
  std::string_view key;
  std::string_view value;

  friend bool operator==(const Item&, const Item&) = default;
};

// One change to one key. `erase` leaves no value behind; erasing an absent key is fine.
struct Change {
  enum class Kind : std::uint8_t { set, erase };

  static Change set(std::string_view key, std::string_view value) {
    return Change{Kind::set, key, value};
  }
  static Change erase(std::string_view key) { return Change{Kind::erase, key, {}}; }

  Kind kind = Kind::set;
  std::string_view key;
  std::string_view value;

  friend bool operator==(const Change&, const Change&) = default;
};

// Order-free hash of a set of items: equal on equal sets. Updated in O(1) per change.
struct Digest {
  std::uint64_t low = 0;
  std::uint64_t high = 0;

  friend bool operator==(const Digest&, const Digest&) = default;
};

// Bounds of keys and values. A value also has to fit into one update, see
// Options::update_bytes_max.
inline constexpr std::uint32_t key_bytes_max = 1024;
inline constexpr std::uint32_t value_bytes_max = (1U << 24) - 1;

// 32 lower-case hexadecimal digits, as used for uuids and digests in messages.
WHYCACHE_API std::string to_string(const Uuid& uuid);
WHYCACHE_API std::string to_string(const Digest& digest);

}  // namespace whycache
