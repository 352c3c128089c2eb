// Types that every other header uses.
#pragma once

#if __cplusplus < 202002L
#error "whycache needs C++20: compile with -std=c++20"
#include <stop_here>  // which does not exist, so that no other errors follow
#endif

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

// Position of an update in the log: dense, from 1. 0 means "before the first update".
using UpdateId = std::uint64_t;

// The random name that a log gets when it is created. A log that replaces another has a new one.
using Uuid = std::array<std::uint8_t, 16>;

// A key with its value, as the user sees them. Both are opaque bytes.
struct Item {
  std::string_view key;
  std::string_view value;

  friend bool operator==(const Item&, const Item&) = default;
};

// One change to one key. Erasing an absent key is allowed.
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

// Hash of a set of items, independent of their order: equal sets have equal digests. Each change
// updates it in O(1).
struct Digest {
  std::uint64_t low = 0;
  std::uint64_t high = 0;

  friend bool operator==(const Digest&, const Digest&) = default;
};

// The largest key and value. A value must also fit into one update (Options::update_bytes_max).
inline constexpr std::uint32_t key_bytes_max = 1024;
inline constexpr std::uint32_t value_bytes_max = (1U << 24) - 1;

// The item with this key has the guards of the log (Cache::set_log_guards).
inline constexpr std::string_view log_guards_key = "whycache:guards";

// 32 lower-case hexadecimal digits, as messages show uuids and digests.
WHYCACHE_API std::string to_string(const Uuid& uuid);
WHYCACHE_API std::string to_string(const Digest& digest);

}  // namespace whycache
