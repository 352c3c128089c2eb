// Items with other sizes than those of data.h, and the keys of a uniform read of them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "bench/data.h"

namespace bench {

// The sizes of all items of one workload.
struct ItemShape {
  const char* workload;
  std::size_t key_size;
  std::size_t value_size;
  // Values have from half of value_size to one and a half, and value_size on average.
  bool varies = false;

  std::size_t payload() const { return key_size + value_size; }
  // As many items as asked for, but no more than fit into 2 GB.
  std::uint64_t item_count(std::uint64_t wanted) const {
    return std::min<std::uint64_t>(wanted, 2'000'000'000 / payload());
  }
  // The reads of one repetition copy 4 GB at most.
  std::size_t read_count(std::size_t wanted) const {
    return std::min<std::size_t>(wanted, 4'000'000'000 / value_size);
  }
  // A store that reserves 4 kB per item reserves three times the payload.
  std::uint64_t items_to_reserve(std::uint64_t count) const {
    return std::max<std::uint64_t>(count, count * payload() * 3 / 4096);
  }
  // An update has 1,000 items as elsewhere, but no more than 16 MB.
  std::size_t items_per_update() const {
    return std::clamp<std::size_t>(16'000'000 / payload(), 1, 1000);
  }

  // The number in base 62 at the end, 'u' before it.
  std::string key(std::uint64_t number) const {
    constexpr std::string_view digits =
        "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
    std::string key(key_size, 'u');
    for (std::size_t i = key_size; i-- > 1; number /= digits.size()) {
      if (number == 0 && i + 6 < key_size) break;
      key[i] = digits[number % digits.size()];
    }
    return key;
  }
  std::size_t size_of_value(std::uint64_t number) const {
    return varies ? value_size / 2 + value_front(number, 0) % (value_size + 1) : value_size;
  }
  // Eight bytes that identify the item, then filling; zeros in the last eight as far as there is
  // room.
  std::string value(std::uint64_t number) const { return value(number, size_of_value(number)); }
  static std::string value(std::uint64_t number, std::size_t size) {
    const std::uint64_t front = value_front(number, 1);
    std::string value(size, static_cast<char>('a' + number % 26));
    const std::size_t zeros = std::min<std::size_t>(8, size - sizeof front);
    std::memset(value.data() + size - zeros, 0, zeros);
    std::memcpy(value.data(), &front, sizeof front);
    return value;
  }
};

inline constexpr ItemShape item_shapes[] = {{"get_value_10", key_bytes, 10},
                                            {"get_value_1000", key_bytes, 1'000},
                                            {"get_value_10000", key_bytes, 10'000},
                                            {"get_value_100000", key_bytes, 100'000},
                                            {"get_value_varied_66", key_bytes, 66, true},
                                            {"get_value_varied_787", key_bytes, 787, true},
                                            {"get_key_7", 7, value_bytes},
                                            {"get_key_40", 40, value_bytes},
                                            {"get_key_200", 200, value_bytes}};

// Keys drawn evenly, and what a loop sees that reads the first `count` of them.
class ShapedReads {
 public:
  ShapedReads(const ItemShape& shape, std::uint64_t items, std::size_t count)
      : shape_(shape), numbers_(count), keys_(count) {
    std::mt19937_64 random(2);
    std::uniform_int_distribution<std::uint64_t> draw(0, items - 1);
    bytes_.reserve(count * shape.key_size);
    for (std::uint64_t& number : numbers_) {
      number = draw(random);
      bytes_ += shape.key(number);
    }
    for (std::size_t i = 0; i < count; ++i)
      keys_[i] = std::string_view(bytes_).substr(i * shape.key_size, shape.key_size);
  }

  std::span<const std::string_view> keys() const { return keys_; }
  ReadChecksum expected(std::size_t count) const {
    // The loop sees only the first eight bytes of a longer value and the zeros at the end.
    constexpr std::size_t seen_bytes_max = 16;
    ReadChecksum checksum;
    for (const std::uint64_t number : std::span(numbers_).first(count)) {
      const std::size_t size = shape_.size_of_value(number);
      const std::size_t seen = std::min(size, seen_bytes_max);
      add_whole_to_checksum(checksum, ItemShape::value(number, seen));
      checksum.sum += size - seen;
    }
    return checksum;
  }

 private:
  ItemShape shape_;
  std::string bytes_;
  std::vector<std::uint64_t> numbers_;
  std::vector<std::string_view> keys_;
};

}  // namespace bench
