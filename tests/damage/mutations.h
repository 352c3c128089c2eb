// Every way in which the bytes of a file are damaged by the tests named *Mutation*, and a count of
// what became of it.
//
// `make test` takes a sample. WHYCACHE_MUTATIONS=all takes all of them, as `make torture` does
// under the sanitizers.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <span>
#include <string>
#include <string_view>

namespace whycache::testing {

inline bool takes_all_mutations() {
  const char* const given = std::getenv("WHYCACHE_MUTATIONS");
  return given != nullptr && std::string_view(given) == "all";
}

// Values of one byte: each bit flipped, 0 and 255. Calls visit(value) for those that differ from
// `byte` and from each other.
template <typename Visit>
void for_each_byte_value(char byte, const Visit& visit) {
  const auto value = static_cast<unsigned char>(byte);
  for (unsigned bit = 0; bit < 8; ++bit) visit(static_cast<char>(value ^ 1U << bit));
  for (const unsigned other : {0x00U, 0xffU}) {
    const unsigned difference = value ^ other;
    if ((difference & (difference - 1)) != 0) visit(static_cast<char>(other));
  }
}

struct Mutation {
  std::string what;  // "bit or byte", "truncation", "splice"
  std::size_t offset;
  std::string bytes;  // of the whole file
};

// Calls visit(const Mutation&) for each byte value, each truncation, and splices: the end of
// another file from each offset on, and at each offset 1 to 64 bytes from elsewhere, removed, or
// twice. `others` are further files of the same kind. Leaves out what changes nothing.
template <typename Visit>
void for_each_mutation(std::string_view whole, std::span<const std::string> others,
                       const Visit& visit) {
  const auto emit = [&](const char* what, std::size_t offset, std::string bytes) {
    if (bytes != whole) visit(Mutation{what, offset, std::move(bytes)});
  };
  for (std::size_t offset = 0; offset < whole.size(); ++offset) {
    for_each_byte_value(whole[offset], [&](char value) {
      std::string bytes(whole);
      bytes[offset] = value;
      emit("bit or byte", offset, std::move(bytes));
    });
    emit("truncation", offset, std::string(whole.substr(0, offset)));
    for (const std::string& other : others) {
      const std::string_view end = std::string_view(other).substr(std::min(offset, other.size()));
      emit("splice", offset, std::string(whole.substr(0, offset)).append(end));
    }
    for (const std::size_t count : {1, 2, 4, 8, 16, 64}) {
      if (offset + count > whole.size()) break;
      const std::string begin(whole.substr(0, offset));
      const std::string_view span = whole.substr(offset, count);
      const std::string_view rest = whole.substr(offset + count);
      const std::size_t elsewhere = (offset * 7 + 13) % (whole.size() - count + 1);
      emit("splice", offset, begin + std::string(whole.substr(elsewhere, count)).append(rest));
      emit("splice", offset, begin + std::string(rest));
      emit("splice", offset, begin + std::string(span).append(span).append(rest));
    }
  }
}

// Whether to take a mutation: all, or about one in `interval`, no period of a format.
class Sample {
 public:
  explicit Sample(std::uint64_t interval) : interval_(takes_all_mutations() ? 1 : interval) {}
  bool takes_next() {
    const std::uint64_t number = next_++;
    return interval_ == 1 ||
           number * 0x9e3779b97f4a7c15 >> 32 < (std::uint64_t{1} << 32) / interval_;
  }

 private:
  std::uint64_t interval_;
  std::uint64_t next_ = 0;
};

// Counts outcomes, and prints them in the line that torture.py collects.
class Tally {
 public:
  explicit Tally(std::string name) : name_(std::move(name)) {}
  Tally(const Tally&) = delete;
  Tally& operator=(const Tally&) = delete;
  ~Tally() {
    std::uint64_t all = 0;
    for (const auto& [outcome, count] : counts_) all += count;
    std::printf("damage of %s: %lu cases", name_.c_str(), static_cast<unsigned long>(all));
    for (const auto& [outcome, count] : counts_)
      std::printf(", %s: %lu", outcome.c_str(), static_cast<unsigned long>(count));
    std::printf("\n");
    std::fflush(stdout);
  }
  void add(const std::string& outcome, std::uint64_t count = 1) { counts_[outcome] += count; }

 private:
  std::string name_;
  std::map<std::string, std::uint64_t> counts_;
};

}  // namespace whycache::testing
