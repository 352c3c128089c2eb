// The frame of a benchmark program: options, a line about the machine, and what happens to the
// measurements.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "bench/report.h"
#include "bench/subject_kinds.h"

namespace bench {

struct BenchmarkOptions {
  std::vector<std::uint64_t> items = {1'000'000};
  std::vector<std::string> only;
  std::vector<std::string> subjects;
  int repetitions = 5;
  std::size_t reads = 1'000'000;
  std::string directory = "/dev/shm";
  std::string json;

  bool wants(const std::string& workload) const;
  // Returns the subjects to measure whose libraries were found. These are the subjects that were
  // asked for, else `usual`; an empty list means all.
  std::vector<SubjectKind> kinds_to_measure(const std::vector<std::string>& usual = {}) const;
};

// Set by SIGINT and SIGTERM.
inline std::atomic<bool> interrupted{false};

// Throws std::runtime_error if the program was interrupted.
void stop_if_interrupted();

// A numeric option that only one program has.
struct NumberOption {
  const char* name;
  double* value;
  const char* help;
  double min;
  double max;
};

// A program: what it measures, its default options, and how it measures.
struct Program {
  std::string description;
  std::vector<std::string> workloads;
  BenchmarkOptions options;
  // Called once for each number of items.
  std::function<void(const BenchmarkOptions&, std::uint64_t items, Report&)> measure;
  std::vector<NumberOption> own_options = {};

  int run(int argument_count, char** arguments);
};

}  // namespace bench
