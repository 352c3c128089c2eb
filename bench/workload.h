// The loops that are timed. Each accounts for what it reads, so that neither compiler nor store can
// leave any of it out.
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
  // Copying get into a kept string.
  get,
  // The same; the next key depends on the previous value.
  get_serial,
  // Get of absent keys.
  get_miss,
  // Get into a new string.
  get_new,
  // Get without copying; the first eight bytes are read.
  view_get,
  // Copying get of 32 keys at once.
  get_multi,
  // All items in key order; the first and last bytes of key and value are read.
  scan_items,
  // All keys in key order.
  scan_keys
};

inline constexpr std::size_t keys_per_multi_get = 32;

// Copies into `value`, or returns false.
template <typename Store>
concept CanGet = requires(Store& store, std::string_view key, std::string& value) {
  { store.get(key, value) } -> std::same_as<bool>;
};
// Returns a copy.
template <typename Store>
concept CanGetNew = requires(Store& store, std::string_view key) {
  { store.get(key) } -> std::same_as<std::optional<std::string>>;
};
// The result stays valid until the next call.
template <typename Store>
concept CanView = requires(Store& store, std::string_view key) {
  { store.view(key) } -> std::same_as<std::optional<std::string_view>>;
};
// Copies into the string of each key that is present, and returns their number. All strings exist,
// and their memory is reused.
template <typename Store>
concept CanGetMulti = requires(Store& store, std::span<const std::string_view> keys,
                               std::span<std::optional<std::string>> values) {
  { store.get_multi(keys, values) } -> std::same_as<std::size_t>;
};
// Calls with each key and value, or each key, in key order.
template <typename Store>
concept CanScan = requires(Store& store) {
  store.scan_items([](std::string_view, std::string_view) {});
  store.scan_keys([](std::string_view) {});
};

// For stores without a function for several keys: gets them one by one.
template <typename Store>
std::size_t get_each(Store& store, std::span<const std::string_view> keys,
                     std::span<std::optional<std::string>> values) {
  std::size_t found = 0;
  for (std::size_t i = 0; i < keys.size(); ++i) found += store.get(keys[i], *values[i]) ? 1 : 0;
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
          // 0, which the compiler does not know.
          i += last_number(value);
        }
      }
      break;
    case ReadLoop::get_new:
      if constexpr (CanGetNew<Store>) {
        for (const std::string_view key : keys) {
          if (const auto found = store.get(key)) add_whole_to_checksum(seen, *found);
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
        std::array<std::optional<std::string>, keys_per_multi_get> values;
        values.fill(std::string());
        for (std::size_t first = 0; first < keys.size(); first += keys_per_multi_get) {
          const std::size_t count = std::min(keys_per_multi_get, keys.size() - first);
          if (store.get_multi(keys.subspan(first, count), std::span(values).first(count)) != count)
            continue;
          for (std::size_t i = 0; i < count; ++i) add_whole_to_checksum(seen, *values[i]);
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

// Returns what scan_keys sees.
inline ReadChecksum expected_scan_keys(std::span<const std::string_view> keys) {
  ReadChecksum seen;
  for (const std::string_view key : keys) {
    ++seen.count;
    seen.sum += static_cast<unsigned char>(key.back()) * seen.count;
  }
  return seen;
}

}  // namespace bench
