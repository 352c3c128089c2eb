// What a scenario did, in a file that it maps: writing to it takes no system call and no
// allocation, and it survives the process. fault_injection.py and `environment_scenario verify`
// read it.
//
// One event per line, with tabs between its words:
//   try STEP ATTEMPT        an attempt begins
//   ok STEP ATTEMPT         it succeeded
//   failed STEP ATTEMPT KIND ERRNO MESSAGE
//   wrong TEXT              a read returned what no update wrote
//   died TEXT               a child of the scenario was ended by a signal
//   end                     the scenario is over; its destructors are still to run
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <atomic>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

namespace whycache::testing {

struct ReportMemory {
  static constexpr std::size_t text_bytes_max = 64UL << 10;
  std::atomic<std::uint32_t> go;           // stored by the program that injects faults
  std::atomic<std::uint32_t> text_bytes;   // of complete lines
  std::atomic<std::uint64_t> child_acked;  // rounds that a killed writer was told are written
  std::atomic<std::uint64_t> allocations;  // made by the scenario
  char text[text_bytes_max];
};
static_assert(offsetof(ReportMemory, text) == 24);  // fault_injection.py reads it

class Report {
 public:
  explicit Report(const std::string& path) {
    const int file = ::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (file < 0 || ::ftruncate(file, sizeof(ReportMemory)) != 0)
      throw std::runtime_error("cannot create " + path);
    void* const mapped =
        ::mmap(nullptr, sizeof(ReportMemory), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    ::close(file);
    if (mapped == MAP_FAILED) throw std::runtime_error("cannot map " + path);
    memory_ = static_cast<ReportMemory*>(mapped);
  }
  // Stays mapped until the process ends.
  ~Report() = default;
  Report(const Report&) = delete;
  Report& operator=(const Report&) = delete;

  ReportMemory& memory() const { return *memory_; }
  std::string_view text() const { return {memory_->text, memory_->text_bytes.load()}; }

  [[gnu::format(printf, 2, 3)]] void add(const char* format, ...) const {
    char line[1200];
    va_list values;
    va_start(values, format);
    const int printed = std::vsnprintf(line, sizeof line - 1, format, values);
    va_end(values);
    if (printed < 0) return;
    std::size_t bytes = std::min(static_cast<std::size_t>(printed), sizeof line - 2);
    for (std::size_t i = 0; i < bytes; ++i)
      if (line[i] == '\n') line[i] = ' ';
    line[bytes++] = '\n';
    const std::uint32_t before = memory_->text_bytes.load();
    if (before + bytes > ReportMemory::text_bytes_max) return;
    std::memcpy(memory_->text + before, line, bytes);
    memory_->text_bytes.store(before + static_cast<std::uint32_t>(bytes));
  }

 private:
  ReportMemory* memory_;
};

}  // namespace whycache::testing
