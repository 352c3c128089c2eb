// The encoding of updates and base parts alone: nanoseconds per change to draft and seal, to verify
// the chain, and to decode.
//
//   build/release/bin/bench_update [changes] [rounds]
//
// Encodes a million changes in updates of 1 MiB, with values that do not compress, that compress
// like JSON, and that are all equal. Every figure is processor time, the minimum of the rounds,
// because other programs may use the machine.
#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <functional>
#include <limits>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include "update/update.h"

namespace {

using whycache::BasePart;
using whycache::BasePartEncoder;
using whycache::Change;
using whycache::Draft;
using whycache::Item;
using whycache::Update;
using whycache::UpdateId;

constexpr std::size_t bytes_max = std::size_t{1} << 20;

struct OwnedItem {
  std::string key;
  std::string value;
};

struct Workload {
  const char* name;
  std::size_t value_bytes;
  void (*fill)(std::string& value, std::mt19937_64& random);
};

void fill_noise(std::string& value, std::mt19937_64& random) {
  for (char& byte : value) byte = static_cast<char>(random());
}
void fill_alike(std::string& value, std::mt19937_64& /*random*/) {
  constexpr std::string_view text =
      R"({"name":"x","age":17,"city":"Berlin","flags":[1,0,1],"token":")";
  for (std::size_t i = 0; i < value.size(); ++i) value[i] = text[i % text.size()];
}
// One character in eight is random.
void fill_json(std::string& value, std::mt19937_64& random) {
  fill_alike(value, random);
  for (std::size_t i = 0; i < value.size() / 8; ++i)
    value[random() % value.size()] = "0123456789abcdef"[random() % 16];
}

double process_cpu_time_ns() {
  struct timespec now;
  ::clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e9 + static_cast<double>(now.tv_nsec);
}

// Returns the minimum time of `work` per item.
double measure(std::size_t rounds, std::size_t items, const std::function<void()>& work) {
  double least = std::numeric_limits<double>::max();
  for (std::size_t round = 0; round < rounds; ++round) {
    const double begin = process_cpu_time_ns();
    work();
    least = std::min(least, process_cpu_time_ns() - begin);
  }
  return least / static_cast<double>(items);
}

double bytes_per_item(const std::vector<std::string>& pieces, std::size_t items) {
  std::size_t bytes = 0;
  for (const std::string& piece : pieces) bytes += piece.size();
  return static_cast<double>(bytes) / static_cast<double>(items);
}

void require(bool holds) {
  if (!holds) std::abort();
}

std::vector<std::string> seal_updates(const std::vector<OwnedItem>& items) {
  std::vector<std::string> updates;
  std::uint64_t chain = 0;
  Draft draft({});
  const auto seal = [&] {
    updates.emplace_back(draft.seal(updates.size() + 1, chain));
    chain = draft.chain();
    draft = Draft({});
  };
  for (const OwnedItem& item : items) {
    const Change change = Change::set(item.key, item.value);
    if (draft.add(change, bytes_max)) continue;
    seal();
    require(draft.add(change, bytes_max));
  }
  seal();
  return updates;
}

std::vector<std::string> encode_base(const std::vector<OwnedItem>& items) {
  std::vector<std::string> parts;
  BasePartEncoder encoder(1);
  for (const OwnedItem& item : items) {
    if (encoder.add({item.key, item.value}, bytes_max)) continue;
    parts.emplace_back(encoder.finish(std::nullopt));
    require(encoder.add({item.key, item.value}, bytes_max));
  }
  parts.emplace_back(encoder.finish(std::nullopt));
  return parts;
}

void run(const Workload& workload, std::size_t count, std::size_t rounds) {
  std::mt19937_64 random(1);
  std::vector<OwnedItem> items(count);
  for (std::size_t i = 0; i < count; ++i) {
    items[i] = {fmt::format("user:{:010}", i), std::string(workload.value_bytes, '\0')};
    workload.fill(items[i].value, random);
  }

  std::vector<std::string> updates;
  const double seal_ns = measure(rounds, count, [&] { updates = seal_updates(items); });
  const double verify_ns = measure(rounds, count, [&] {
    std::uint64_t chain = 0;
    for (UpdateId id = 1; id <= updates.size(); ++id)
      chain = whycache::verify_chain(updates[id - 1], id, chain);
  });
  Update update;
  const double decode_ns = measure(rounds, count, [&] {
    std::size_t decoded = 0;
    for (const std::string& bytes : updates) {
      whycache::decode_update(bytes, update);
      decoded += update.changes.size();
    }
    require(decoded == count);
  });

  std::vector<std::string> parts;
  const double part_encode_ns = measure(rounds, count, [&] { parts = encode_base(items); });
  BasePart part;
  const double part_decode_ns = measure(rounds, count, [&] {
    for (const std::string& bytes : parts) whycache::decode_base_part(bytes, part);
  });

  fmt::print("{:<8}{:>7}{:>9.1f}{:>8.1f}{:>8.1f}{:>8.1f}{:>12.1f}{:>8.1f}{:>8.1f}\n", workload.name,
             workload.value_bytes, bytes_per_item(updates, count), seal_ns, verify_ns, decode_ns,
             bytes_per_item(parts, count), part_encode_ns, part_decode_ns);
}

}  // namespace

int main(int argc, char** argv) {
  const std::size_t count = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 1'000'000;
  const std::size_t rounds = argc > 2 ? std::strtoull(argv[2], nullptr, 10) : 3;
  fmt::print("{} changes, ns per change\n\n", count);
  fmt::print("                update                           base part\n");
  fmt::print("{:<8}{:>7}{:>9}{:>8}{:>8}{:>8}{:>12}{:>8}{:>8}\n", "values", "bytes", "bytes", "seal",
             "verify", "decode", "bytes", "encode", "decode");
  for (const Workload& workload :
       {Workload{"noise", 8, fill_noise}, Workload{"noise", 100, fill_noise},
        Workload{"json", 100, fill_json}, Workload{"alike", 100, fill_alike}}) {
    run(workload, count, rounds);
  }
}
