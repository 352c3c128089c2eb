#include "bench/program.h"

#include <fmt/format.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <fstream>
#include <stdexcept>

namespace bench {
namespace {

std::string read_first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line.empty() ? "?" : line;
}

void print_machine() {
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
  std::fflush(stdout);
}

void add_program_options(CLI::App& parser, Program& program, bool& list) {
  BenchmarkOptions& options = program.options;
  std::vector<std::string> names;
  for (const SubjectKind& kind : subject_kinds) names.push_back(kind.name);
  parser.add_option("--only", options.only, "measure only these workloads, separated by commas")
      ->delimiter(',')
      ->check(CLI::IsMember(program.workloads));
  parser
      .add_option("--items", options.items,
                  "number of items; measures each of several numbers in turn")
      ->delimiter(',')
      ->check(CLI::Range(1'000, 100'000'000));
  parser
      .add_option("--subjects", options.subjects,
                  "measure only these subjects, separated by commas")
      ->delimiter(',')
      ->check(CLI::IsMember(names));
  parser
      .add_option("--repetitions", options.repetitions, "how many times to repeat each measurement")
      ->check(CLI::Range(1, 1000))
      ->take_last();
  parser.add_option("--reads", options.reads, "number of keys that a repetition reads")
      ->check(CLI::Range(1'000, 100'000'000))
      ->take_last();
  parser.add_option("--folder", options.directory, "directory for the files of the subjects")
      ->check(CLI::ExistingDirectory);
  parser.add_option("--json", options.json, "file for the results, one JSON object per line");
  parser.add_flag("--list", list, "list the workloads without measuring");
  for (const NumberOption& option : program.own_options) {
    parser.add_option(option.name, *option.value, option.help)
        ->check(CLI::Range(option.min, option.max));
  }
}

}  // namespace

bool BenchmarkOptions::wants(const std::string& workload) const {
  return only.empty() || std::ranges::find(only, workload) != only.end();
}

std::vector<SubjectKind> BenchmarkOptions::kinds_to_measure(
    const std::vector<std::string>& usual) const {
  const std::vector<std::string>& wanted = subjects.empty() ? usual : subjects;
  std::vector<SubjectKind> result;
  for (const SubjectKind& kind : subject_kinds) {
    const bool is_wanted = wanted.empty() || std::ranges::find(wanted, kind.name) != wanted.end();
    if (is_wanted && kind.make != nullptr) result.push_back(kind);
  }
  return result;
}

void stop_if_interrupted() {
  if (interrupted) throw std::runtime_error("interrupted");
}

int Program::run(int argument_count, char** arguments) {
  CLI::App parser(description);
  bool list = false;
  add_program_options(parser, *this, list);
  CLI11_PARSE(parser, argument_count, arguments);
  if (list) {
    for (const std::string& workload : workloads) fmt::print("{}\n", workload);
    return 0;
  }

  for (const int signal : {SIGINT, SIGTERM}) std::signal(signal, [](int) { interrupted = true; });
  print_machine();
  Report report;
  try {
    for (const std::uint64_t item_count : options.items) measure(options, item_count, report);
    if (!options.json.empty()) report.write_json(options.json);
  } catch (const std::exception& error) {
    fmt::print(stderr, "{}: {}\n", arguments[0], error.what());
    return 1;
  }
  return 0;
}

}  // namespace bench
