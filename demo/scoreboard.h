// Counters that the demo's processes share, in memory inherited by fork. whycache does not use
// them.
#pragma once

#include <sys/mman.h>

#include <array>
#include <atomic>
#include <bit>
#include <cstdint>
#include <new>
#include <stdexcept>

namespace whycache::demo {

// Counts durations in buckets; each power of two has sixteen of equal width.
class LatencyHistogram {
 public:
  void record(std::uint64_t nanoseconds) {
    counts_[bucket_of(nanoseconds)].fetch_add(1, std::memory_order_relaxed);
  }

  // Returns the upper bound of the bucket that contains the quantile.
  std::uint64_t quantile(double fraction) const {
    std::uint64_t total = 0;
    for (const auto& count : counts_) total += count.load(std::memory_order_relaxed);
    auto remaining = static_cast<std::uint64_t>(static_cast<double>(total) * fraction);
    for (std::size_t i = 0; i < counts_.size(); ++i) {
      const std::uint64_t count = counts_[i].load(std::memory_order_relaxed);
      if (count > remaining) return upper_end(i);
      remaining -= count;
    }
    return 0;
  }

 private:
  static std::size_t bucket_of(std::uint64_t value) {
    if (value < 16) return static_cast<std::size_t>(value);
    const auto power = static_cast<unsigned>(std::bit_width(value) - 1);
    return std::size_t{16} * (power - 3) + (value >> (power - 4) & 15);
  }
  static std::uint64_t upper_end(std::size_t bucket) {
    if (bucket < 16) return bucket;
    const std::size_t power = bucket / 16 + 3;
    return ((std::uint64_t{16} + bucket % 16 + 1) << (power - 4)) - 1;
  }
  std::array<std::atomic<std::uint64_t>, 16 * 62> counts_{};
};

struct Scoreboard {
  // Every process adds to these counters.
  std::atomic<std::uint64_t> reads{0};
  // Reads of a value whose checksum is wrong.
  std::atomic<std::uint64_t> invalid_reads{0};
  // Reads of an older version than the process had read before.
  std::atomic<std::uint64_t> non_monotonic_reads{0};
  std::atomic<std::uint64_t> missing_reads{0};
  std::atomic<std::uint64_t> writes{0};
  std::atomic<std::uint64_t> changes{0};
  std::atomic<std::uint64_t> write_errors{0};
  std::atomic<std::uint64_t> recoveries{0};
  // Processes that ended with an exception.
  std::atomic<std::uint64_t> failures{0};
  std::atomic<bool> stop{false};
  LatencyHistogram get_latencies;

  // The visibility test: when the set() of the current probe returned (0: not yet), and the number
  // of the last probe that was seen.
  std::atomic<std::int64_t> set_returned_ns{0};
  std::atomic<std::uint64_t> probe_seen_by_same_machine{0};
  std::atomic<std::uint64_t> probe_seen_by_other_machine{0};
  LatencyHistogram same_machine_delays;
  LatencyHistogram polling_machine_delays;
  LatencyHistogram notified_machine_delays;

  static Scoreboard& create() {
    void* const memory = ::mmap(nullptr, sizeof(Scoreboard), PROT_READ | PROT_WRITE,
                                MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED) throw std::runtime_error("cannot share memory");
    return *new (memory) Scoreboard;
  }
};

}  // namespace whycache::demo
