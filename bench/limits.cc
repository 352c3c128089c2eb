// The floor under a get: what the memory of this machine allows, whatever the program. Workloads:
//
//   touch_uniform      the cache lines that a get touches, in random order, with as many loads at
//                      once as the processor can have: nothing is searched or compared
//   copy_uniform       as touch_uniform, and a value of 100 bytes is copied to the same place
//   copy_multi         as copy_uniform, of 32 items at once, all lines prefetched first
//
// The lines are those of a state with as many items: one bucket of 64 bytes per four items, and two
// lines per entry. They are in a file in shared memory, in pages of 4 KiB, as a state is. All
// addresses are known beforehand. Figures are nanoseconds of processor time per item.
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <cstdint>
#include <cstring>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "bench/clock.h"
#include "bench/program.h"
#include "bench/report.h"
#include "bench/temporary_directory.h"

namespace bench {
namespace {

constexpr std::size_t line_bytes = 64;
constexpr std::size_t items_per_bucket = 4;
constexpr std::size_t entry_bytes = 2 * line_bytes;
constexpr std::size_t copied_bytes = 100;
constexpr std::size_t value_offset = 24;  // behind the first word and a key of 15 bytes
constexpr std::size_t items_at_once = 32;

class MappedFile {
 public:
  MappedFile(const std::string& path, std::size_t bytes) : bytes_(bytes) {
    const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0) throw std::runtime_error("cannot create " + path);
    void* mapped = MAP_FAILED;
    if (::ftruncate(file, static_cast<off_t>(bytes)) == 0)
      mapped = ::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    ::close(file);
    if (mapped == MAP_FAILED) throw std::runtime_error("cannot map " + path);
    base_ = static_cast<char*>(mapped);
    // Zeros, which the compiler does not know.
    std::memset(base_, 0, bytes);
  }
  ~MappedFile() { ::munmap(base_, bytes_); }
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;
  char* base() const { return base_; }

 private:
  char* base_;
  std::size_t bytes_;
};

// What one get touches.
struct Place {
  const char* bucket;
  const char* entry;
};

std::uint64_t load(const char* from) {
  std::uint64_t word;
  std::memcpy(&word, from, sizeof word);
  return word;
}

std::uint64_t touch(const Place& place) {
  return load(place.bucket) + load(place.entry) + load(place.entry + line_bytes);
}

// Copies as a get does, from both ends.
void copy(char* to, const char* from) {
  std::memcpy(to, from, line_bytes);
  std::memcpy(to + copied_bytes - line_bytes, from + copied_bytes - line_bytes, line_bytes);
  asm volatile("" : : "r"(to) : "memory");
}

std::uint64_t touch_all(const std::vector<Place>& places) {
  std::uint64_t sum = 0;
  for (const Place& place : places) sum += touch(place);
  return sum;
}

std::uint64_t copy_all(const std::vector<Place>& places) {
  std::uint64_t sum = 0;
  std::array<char, copied_bytes> value;
  for (const Place& place : places) {
    sum += load(place.bucket);
    copy(value.data(), place.entry + value_offset);
    sum += load(value.data());
  }
  return sum;
}

std::uint64_t copy_in_batches(const std::vector<Place>& places) {
  std::uint64_t sum = 0;
  std::array<std::array<char, copied_bytes>, items_at_once> values;
  for (std::size_t first = 0; first + items_at_once <= places.size(); first += items_at_once) {
    const Place* const batch = places.data() + first;
    for (std::size_t i = 0; i < items_at_once; ++i) __builtin_prefetch(batch[i].bucket);
    for (std::size_t i = 0; i < items_at_once; ++i) {
      __builtin_prefetch(batch[i].entry);
      __builtin_prefetch(batch[i].entry + line_bytes);
    }
    for (std::size_t i = 0; i < items_at_once; ++i) {
      sum += load(batch[i].bucket);
      copy(values[i].data(), batch[i].entry + value_offset);
      sum += load(values[i].data());
    }
  }
  return sum;
}

struct Workload {
  const char* name;
  std::uint64_t (*run)(const std::vector<Place>& places);
};

constexpr Workload workloads[] = {
    {"touch_uniform", touch_all}, {"copy_uniform", copy_all}, {"copy_multi", copy_in_batches}};

void measure(const BenchmarkOptions& options, std::uint64_t items, Report& report) {
  const TemporaryDirectory directory(options.directory);
  const std::size_t buckets = items / items_per_bucket + 1;
  const MappedFile file(directory.path() + "/lines", buckets * line_bytes + items * entry_bytes);
  std::mt19937_64 random(2);
  std::vector<Place> places(options.reads);
  for (Place& place : places) {
    place.bucket = file.base() + random() % buckets * line_bytes;
    place.entry = file.base() + buckets * line_bytes + random() % items * entry_bytes;
  }
  // The first round is a warm-up.
  for (int repetition = -1; repetition < options.repetitions; ++repetition) {
    for (const Workload& workload : workloads) {
      if (!options.wants(workload.name)) continue;
      stop_if_interrupted();
      const double begin = thread_cpu_time_ns();
      const std::uint64_t sum = workload.run(places);
      const double took = thread_cpu_time_ns() - begin;
      if (sum != 0) throw std::runtime_error("what was written is not what was read");
      if (repetition >= 0)
        report.add(workload.name, items, "memory", "ns", took / static_cast<double>(places.size()));
    }
  }
  for (const Workload& workload : workloads) report.print(workload.name, items);
}

Program program = {.description = "What memory allows; described at the top of bench/limits.cc",
                   .workloads = {"touch_uniform", "copy_uniform", "copy_multi"},
                   .measure = measure};

}  // namespace
}  // namespace bench

int main(int argument_count, char** arguments) {
  return bench::program.run(argument_count, arguments);
}
