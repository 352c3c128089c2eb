// The items every subject is filled with, and the orders in which they are written and read. All of
// it is made before a clock runs, and is the same in every run.
//
// Item i has the key `user:` and i in ten digits, and a value of 100 bytes. The value begins with
// eight bytes that identify the item and how often it was written, and ends with eight zeros.
// get_serial adds the zeros to its position, so that the next key depends on the value.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <random>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include <whycache/types.h>

namespace bench {

using whycache::Item;

inline constexpr std::size_t key_bytes = 15;
inline constexpr std::size_t value_bytes = 100;

// A checksum of the values that a loop saw, compared with the expected one.
struct ReadChecksum {
  std::uint64_t count = 0;
  std::uint64_t sum = 0;

  friend bool operator==(const ReadChecksum&, const ReadChecksum&) = default;
};

inline std::uint64_t load_number(const char* from) {
  std::uint64_t number;
  std::memcpy(&number, from, sizeof number);
  return number;
}

// Adds one value by its first bytes. add_whole_to_checksum() gives the same sum, since the last
// bytes are zeros.
inline void add_to_checksum(ReadChecksum& seen, std::string_view value) {
  ++seen.count;
  seen.sum += load_number(value.data()) + value.size();
}
inline std::uint64_t last_number(std::string_view value) {
  return load_number(value.data() + value.size() - 8);
}
inline void add_whole_to_checksum(ReadChecksum& seen, std::string_view value) {
  add_to_checksum(seen, value);
  seen.sum += last_number(value);
}

inline void write_key(char* to, std::uint64_t number) {
  std::memcpy(to, "user:", 5);
  for (std::size_t i = key_bytes; i-- > 5; number /= 10)
    to[i] = static_cast<char>('0' + number % 10);
}

inline std::uint64_t value_front(std::uint64_t item, std::uint64_t times_written) {
  std::uint64_t x = item * 0x9e3779b97f4a7c15 + times_written;
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  return x ^ x >> 27;
}

inline void write_value(char* to, std::uint64_t item, std::uint64_t times_written) {
  const std::uint64_t front = value_front(item, times_written);
  for (std::size_t i = 0; i < value_bytes - 8; i += 8) {
    const std::uint64_t filling = front + i * 0x0101010101010101;
    std::memcpy(to + i, &filling, std::min<std::size_t>(8, value_bytes - 8 - i));
  }
  std::memset(to + value_bytes - 8, 0, 8);
}

// All items, in random order.
class RandomOrder {
 public:
  RandomOrder(std::uint64_t items, std::uint64_t seed) : numbers_(items) {
    std::iota(numbers_.begin(), numbers_.end(), 0);
    std::mt19937_64 random(seed);
    std::shuffle(numbers_.begin(), numbers_.end(), random);
  }
  std::uint64_t operator[](std::size_t place) const { return numbers_[place]; }
  std::size_t size() const { return numbers_.size(); }

 private:
  std::vector<std::uint32_t> numbers_;
};

// The items of one update.
class WriteBatch {
 public:
  // Takes the items from `first` on in `order`, at most `count_max`.
  void fill(const RandomOrder& order, std::size_t first, std::size_t count_max,
            std::uint64_t times_written) {
    const std::size_t count = std::min(count_max, order.size() - first);
    bytes_.resize(count * (key_bytes + value_bytes));
    items_.resize(count);
    char* to = bytes_.data();
    for (std::size_t i = 0; i < count; ++i) {
      write_key(to, order[first + i]);
      write_value(to + key_bytes, order[first + i], times_written);
      items_[i] = {{to, key_bytes}, {to + key_bytes, value_bytes}};
      to += key_bytes + value_bytes;
    }
  }
  std::span<const Item> items() const { return items_; }

 private:
  std::vector<char> bytes_;
  std::vector<Item> items_;
};

// The keys to read, in order, and what a loop sees then.
class ReadSequence {
 public:
  // Drawn uniformly from all `items`.
  static ReadSequence uniform(std::uint64_t items, std::size_t count) {
    std::mt19937_64 random(2);
    std::uniform_int_distribution<std::uint64_t> draw(0, items - 1);
    return {count, [&] { return PlannedRead{draw(random), true}; }};
  }
  // Absent keys that look like present ones and lie between them.
  static ReadSequence missing(std::uint64_t items, std::size_t count) {
    std::mt19937_64 random(3);
    std::uniform_int_distribution<std::uint64_t> draw(0, items - 1);
    return {count, [&] { return PlannedRead{draw(random), false}; }};
  }
  // One key in ten is absent.
  static ReadSequence mixed(std::uint64_t items, std::size_t count) {
    std::mt19937_64 random(5);
    std::uniform_int_distribution<std::uint64_t> draw(0, items - 1);
    return {count, [&] { return PlannedRead{draw(random), random() % 10 != 0}; }};
  }
  // Zipf: the k-th most frequent item is drawn k^-0.99 times as often as the first. The ranks are
  // random.
  static ReadSequence zipf(const RandomOrder& order, std::size_t count) {
    constexpr double theta = 0.99;
    const auto items = static_cast<double>(order.size());
    double zeta = 0;
    for (std::size_t k = 1; k <= order.size(); ++k)
      zeta += std::pow(static_cast<double>(k), -theta);
    const double alpha = 1 / (1 - theta);
    const double zeta_of_two = 1 + std::pow(0.5, theta);
    const double eta = (1 - std::pow(2 / items, 1 - theta)) / (1 - zeta_of_two / zeta);
    std::mt19937_64 random(4);
    std::uniform_real_distribution<double> draw(0, 1);
    const auto next = [&]() -> std::uint64_t {
      const double u = draw(random);
      if (u * zeta < 1) return order[0];
      if (u * zeta < zeta_of_two) return order[1];
      const auto rank = static_cast<std::size_t>(items * std::pow(eta * u - eta + 1, alpha));
      return order[std::min(rank, order.size() - 1)];
    };
    return {count, [&] { return PlannedRead{next(), true}; }};
  }
  // Every item once, in key order.
  static ReadSequence all(std::uint64_t items) {
    std::uint64_t number = 0;
    return {items, [&] { return PlannedRead{number++, true}; }};
  }

  std::span<const std::string_view> keys() const { return keys_; }
  // The number of the item that the i-th read is of.
  std::uint64_t item_number(std::size_t i) const { return numbers_[i]; }
  // Returns what a loop sees that reads the first `count` keys, after every item was written
  // `times_written` times.
  ReadChecksum expected(std::uint64_t times_written, std::size_t count) const {
    ReadChecksum seen;
    for (const std::uint32_t number : std::span(numbers_).first(count)) {
      if (number == absent) continue;
      ++seen.count;
      seen.sum += value_front(number, times_written) + value_bytes;
    }
    return seen;
  }

 private:
  struct PlannedRead {
    std::uint64_t number;
    bool is_present;
  };
  static constexpr std::uint32_t absent = UINT32_MAX;

  template <typename Next>
  ReadSequence(std::size_t count, const Next& next)
      : bytes_(count * key_bytes), keys_(count), numbers_(count) {
    for (std::size_t i = 0; i < count; ++i) {
      const PlannedRead read = next();
      char* const key = &bytes_[i * key_bytes];
      write_key(key, read.number);
      if (!read.is_present) key[key_bytes - 1] = 'x';
      keys_[i] = {key, key_bytes};
      numbers_[i] = read.is_present ? static_cast<std::uint32_t>(read.number) : absent;
    }
  }

  std::vector<char> bytes_;
  std::vector<std::string_view> keys_;
  std::vector<std::uint32_t> numbers_;
};

}  // namespace bench
