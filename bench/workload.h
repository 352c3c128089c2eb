// The loops that are timed. Each takes what it reads into account, so that no compiler and no store
// can leave any of it out.
#pragma once

#include <array>
#include <concepts>
#include <optional>
#include <span>
#include <string>
#include <string_view>

#include "bench/data.h"

namespace bench {

enum class ReadLoop {
  get,         // copying get into a string that is kept
  get_serial,  // the same; which key comes next depends on the value before
  get_miss,    // get of keys that are not there
  view_get,    // get without copying; the first eight bytes are read
  get_multi,   // copying get of 32 keys at once
  scan_items,  // all items in key order; first and last bytes of key and value are read
  scan_keys    // all keys in key order
};

inline constexpr std::size_t keys_per_multi_get = 32;

// Copies into `value`, or returns false.
template <typename Store>
concept CanGet = requires(Store& store, std::string_view key, std::string& value) {
  { store.get(key, value) } -> std::same_as<bool>;
};
// What it returns stays where it is until the next call.
template <typename Store>
concept CanView = requires(Store& store, std::string_view key) {
  { store.view(key) } -> std::same_as<std::optional<std::string_view>>;
};
// Copies into the string of each key that is there; returns how many are.
template <typename Store>
concept CanGetMulti = requires(Store& store, std::span<const std::string_view> keys,
                               std::span<std::string> values) {
  { store.get_multi(keys, values) } -> std::same_as<std::size_t>;
};
// Calls with each key and value, or each key, in key order.
template <typename Store>
concept CanScan = requires(Store& store) {
  store.scan_items([](std::string_view, std::string_view) {});
  store.scan_keys([](std::string_view) {});
};

// A store that has nothing better for several keys at once gets them one by one.
template <typename Store>
std::size_t get_each(Store& store, std::span<const std::string_view> keys,
                     std::span<std::string> values) {
  std::size_t found = 0;
  for (std::size_t i = 0; i < keys.size(); ++i) found += store.get(keys[i], values[i]) ? 1 : 0;
  return found;
}

template <typename Store>
ReadChecksum run(ReadLoop loop, Store& store, std::span<const std::string_view> keys) {
  ReadChecksum seen;
  std::string value;
  switch (loop) {
    case ReadLoop::get:
    case ReadLoop::get_miss:
      if constexpr (CanGet<Store>) {
        for (const std::string_view key : keys) {
          if (store.get(key, value)) add_whole_to_checksum(seen, value);
        }
      }
      break;
    case ReadLoop::get_serial:
      if constexpr (CanGet<Store>) {
        for (std::size_t i = 0; i < keys.size(); ++i) {
          if (!store.get(keys[i], value)) continue;
          add_to_checksum(seen, value);
          i += last_number(value);  // 0, but only we know
        }
      }
      break;
    case ReadLoop::view_get:
      if constexpr (CanView<Store>) {
        for (const std::string_view key : keys) {
          if (const std::optional<std::string_view> found = store.view(key))
            add_to_checksum(seen, *found);
        }
      }
      break;
    case ReadLoop::get_multi:
      if constexpr (CanGetMulti<Store>) {
        std::array<std::string, keys_per_multi_get> values;
        for (std::size_t first = 0; first < keys.size(); first += keys_per_multi_get) {
          const std::size_t count = std::min(keys_per_multi_get, keys.size() - first);
          if (store.get_multi(keys.subspan(first, count), values) != count) continue;
          for (std::size_t i = 0; i < count; ++i) add_whole_to_checksum(seen, values[i]);
        }
      }
      break;
    case ReadLoop::scan_items:
      if constexpr (CanScan<Store>) {
        store.scan_items([&](std::string_view key, std::string_view found) {
          add_whole_to_checksum(seen, found);
          seen.sum += key.size() - key_bytes + static_cast<std::uint64_t>(key.front() ^ 'u');
        });
      }
      break;
    case ReadLoop::scan_keys:
      if constexpr (CanScan<Store>) {
        store.scan_keys([&](std::string_view key) {
          ++seen.count;
          seen.sum += static_cast<unsigned char>(key.back()) * seen.count;
        });
      }
      break;
  }
  return seen;
}

// What scan_keys sees.
inline ReadChecksum expected_scan_keys(std::span<const std::string_view> keys) {
  ReadChecksum seen;
  for (const std::string_view key : keys) {
    ++seen.count;
    seen.sum += static_cast<unsigned char>(key.back()) * seen.count;
  }
  return seen;
}

}  // namespace bench
