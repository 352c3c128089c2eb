// What the programs have in common: options, the line about the machine, what becomes of the
// figures.
#pragma once

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <functional>
#include <stdexcept>
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

  bool wants(const std::string& workload) const {
    return only.empty() || std::find(only.begin(), only.end(), workload) != only.end();
  }
  // The subjects to measure: those asked for, else `usual`; of these, those whose library was
  // there. Empty: all.
  std::vector<SubjectKind> kinds_to_measure(const std::vector<std::string>& usual = {}) const {
    const std::vector<std::string>& wanted = subjects.empty() ? usual : subjects;
    std::vector<SubjectKind> result;
    for (const SubjectKind& kind : subject_kinds) {
      const bool asked =
          wanted.empty() || std::find(wanted.begin(), wanted.end(), kind.name) != wanted.end();
      if (asked && kind.make != nullptr) result.push_back(kind);
    }
    return result;
  }
};

inline std::atomic<bool> interrupted{false};

inline void stop_if_interrupted() {
  if (interrupted) throw std::runtime_error("interrupted");
}

inline std::string read_first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line.empty() ? "?" : line;
}

inline void print_machine() {
  std::string model = "?";
  std::ifstream cpus("/proc/cpuinfo");
  for (std::string line; std::getline(cpus, line);) {
    if (line.starts_with("model name")) {
      model = line.substr(line.find(':') + 2);
      break;
    }
  }
  fmt::print("machine: {}, {} cpus; huge pages: {}; in shared memory: {}; compiler: {}\n", model,
             ::sysconf(_SC_NPROCESSORS_ONLN),
             read_first_line("/sys/kernel/mm/transparent_hugepage/enabled"),
             read_first_line("/sys/kernel/mm/transparent_hugepage/shmem_enabled"), __VERSION__);
  double load = 0;
  if (::getloadavg(&load, 1) == 1 && load > 0.7)
    fmt::print("note: the machine is busy (load {:.1f})\n", load);
  for (const SubjectKind& kind : subject_kinds) {
    if (kind.make == nullptr)
      fmt::print("left out: {} (its library was not found when this was built)\n", kind.name);
  }
}

// A program: what it measures, what it is called with when nothing is said, and how.
struct Program {
  std::string description;
  std::vector<std::string> workloads;
  BenchmarkOptions options;
  std::function<void(const BenchmarkOptions&, std::uint64_t items, Report&)>
      measure;                                                    // once for each number of items
  std::function<void(CLI::App&)> add_options = [](CLI::App&) {};  // of its own

  int run(int argument_count, char** arguments) {
    CLI::App app(description);
    std::vector<std::string> names;
    for (const SubjectKind& kind : subject_kinds) names.push_back(kind.name);
    bool list = false;
    app.add_option("--only", options.only, "these workloads (separated by commas), not all of them")
        ->delimiter(',')
        ->check(CLI::IsMember(workloads));
    app.add_option("--items", options.items, "how many items; several numbers: one after the other")
        ->delimiter(',')
        ->check(CLI::Range(1'000, 100'000'000));
    app.add_option("--subjects", options.subjects, "these subjects, not all of them")
        ->delimiter(',')
        ->check(CLI::IsMember(names));
    app.add_option("--repetitions", options.repetitions, "how often everything is measured")
        ->check(CLI::Range(1, 1000))
        ->take_last();
    app.add_option("--reads", options.reads, "how many keys a repetition reads")
        ->check(CLI::Range(1'000, 100'000'000))
        ->take_last();
    app.add_option("--folder", options.directory, "where the files of the subjects lie")
        ->check(CLI::ExistingDirectory);
    app.add_option("--json", options.json, "file for the figures, one JSON object per line");
    app.add_flag("--list", list, "names the workloads, and measures nothing");
    add_options(app);
    CLI11_PARSE(app, argument_count, arguments);
    if (list) {
      for (const std::string& workload : workloads) fmt::print("{}\n", workload);
      return 0;
    }

    for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, [](int) { interrupted = true; });
    print_machine();
    std::fflush(stdout);
    Report report;
    try {
      for (const std::uint64_t items : options.items) measure(options, items, report);
      if (!options.json.empty()) report.write_json(options.json);
    } catch (const std::exception& error) {
      fmt::print(stderr, "{}: {}\n", arguments[0], error.what());
      return 1;
    }
    return 0;
  }
};

}  // namespace bench
