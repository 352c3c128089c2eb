// Fills, reads, opens and weighs one subject. Throws if the subject reads something wrong.
#pragma once

#include <fmt/format.h>
#include <malloc.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>

#include "bench/clock.h"
#include "bench/data.h"
#include "bench/program.h"
#include "bench/subject.h"
#include "bench/subject_kinds.h"
#include "bench/temporary_directory.h"

namespace bench {

inline constexpr std::size_t items_per_update = 1000;
// A subject that talks to a server reads no more than this in one repetition, because each read
// takes a hundred times as long.
inline constexpr std::size_t server_reads_max = 20'000;

inline std::int64_t heap_bytes() {
  const struct mallinfo2 heap = ::mallinfo2();
  return static_cast<std::int64_t>(heap.uordblks + heap.hblkhd);
}

class Runner {
 public:
  Runner(const SubjectKind& kind, const std::string& parent, std::uint64_t items_max)
      : name_(kind.name), directory_(std::make_unique<TemporaryDirectory>(parent)) {
    const std::int64_t heap_before = heap_bytes();
    subject_ = kind.make(directory_->path(), items_max);
    heap_bytes_ = heap_bytes() - heap_before;
  }

  const std::string& name() const { return name_; }
  Subject& subject() { return *subject_; }

  // Sets items as one update. Returns nanoseconds.
  double set(std::span<const Item> items) {
    return measure_ns([&] { subject_->set(items); });
  }
  double finish_writing() {
    return measure_ns([&] { subject_->finish_writing(); });
  }
  // Writes every item. Returns nanoseconds per item.
  double write(const RandomOrder& order, std::uint64_t times_written) {
    WriteBatch batch;
    double took = 0;
    for (std::size_t first = 0; first < order.size(); first += items_per_update) {
      if (first % 100'000 == 0) stop_if_interrupted();
      batch.fill(order, first, items_per_update, times_written);
      took += set(batch.items());
    }
    took += finish_writing();
    times_written_ = times_written;
    return took / static_cast<double>(order.size());
  }

  // Runs a loop. Returns nanoseconds per read.
  double read(ReadLoop loop, const ReadSequence& reads, const std::string& workload) {
    const std::span<const std::string_view> keys = keys_to_read(reads.keys());
    return read(loop, keys,
                loop == ReadLoop::scan_keys ? expected_scan_keys(keys)
                                            : reads.expected(times_written_, keys.size()),
                workload);
  }
  double read(ReadLoop loop, std::span<const std::string_view> keys, const ReadChecksum& expected,
              const std::string& workload) {
    stop_if_interrupted();
    ReadChecksum seen;
    const double took = measure_ns([&] { seen = subject_->run(loop, keys); });
    if (seen != expected) {
      throw std::runtime_error(
          fmt::format("{} read something wrong: workload={} count={} expected_count={}", name_,
                      workload, seen.count, expected.count));
    }
    return took / static_cast<double>(keys.size());
  }
  std::span<const std::string_view> keys_to_read(std::span<const std::string_view> keys) const {
    return subject_->uses_server() ? keys.first(std::min(keys.size(), server_reads_max)) : keys;
  }

  double open_us(std::string_view key) {
    measure_ns([&] { subject_->close(); });
    std::string value;
    bool found = false;
    const double took = measure_ns([&] { found = subject_->open_and_get(key, value); });
    if (!found || value.size() != value_bytes)
      throw std::runtime_error(name_ + " lost a key on opening");
    return took / 1000;
  }

  double bytes_per_item(std::uint64_t items) const {
    return (static_cast<double>(subject_->external_bytes()) + static_cast<double>(heap_bytes_)) /
           static_cast<double>(items);
  }

 private:
  // Returns the nanoseconds that `work` takes. Heap memory that remains allocated counts as the
  // subject's.
  template <typename Work>
  double measure_ns(const Work& work) {
    const std::int64_t heap_before = heap_bytes();
    const double begin = now_ns();
    work();
    const double took = now_ns() - begin;
    heap_bytes_ += heap_bytes() - heap_before;
    return took;
  }
  // While a server works, this thread only waits, so wall time counts.
  double now_ns() const {
    return subject_->uses_server() ? monotonic_time_ns() : thread_cpu_time_ns();
  }

  std::string name_;
  std::unique_ptr<TemporaryDirectory> directory_;
  std::unique_ptr<Subject> subject_;
  std::int64_t heap_bytes_ = 0;
  std::uint64_t times_written_ = 0;
};

}  // namespace bench
