// The same reads with and without pages of 2 MiB. Workloads:
//
//   get_uniform_huge   get_uniform with the files on a tmpfs that is mounted with huge=always
//   get_uniform_small  the same with huge=never, measured in turn
//
// Figures are nanoseconds of processor time. The program mounts both in a mount namespace of its
// own.
// Without root, which that requires, the program prints a message and measures nothing. Only
// subjects that have files are measured.
#include <sched.h>
#include <sys/mount.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "bench/data.h"
#include "bench/program.h"
#include "bench/report.h"
#include "bench/runner.h"

namespace bench {
namespace {

// A directory with a tmpfs mounted on it.
class TmpfsMount {
 public:
  TmpfsMount(const std::string& parent, const std::string& mount_options) : directory_(parent) {
    mounted_ = ::mount("whycache_bench", directory_.path().c_str(), "tmpfs", 0,
                       mount_options.c_str()) == 0;
    if (!mounted_) throw std::runtime_error(std::string("cannot mount: ") + std::strerror(errno));
  }
  ~TmpfsMount() { ::umount2(directory_.path().c_str(), MNT_DETACH); }
  TmpfsMount(const TmpfsMount&) = delete;
  TmpfsMount& operator=(const TmpfsMount&) = delete;
  const std::string& path() const { return directory_.path(); }

 private:
  TemporaryDirectory directory_;
  bool mounted_ = false;
};

// Moves this process into a mount namespace of its own. Returns the reason if that is impossible.
std::optional<std::string> enter_mount_namespace() {
  if (::geteuid() != 0) return "not root";
  if (::unshare(CLONE_NEWNS) != 0 ||
      ::mount("none", "/", nullptr, MS_REC | MS_PRIVATE, nullptr) != 0) {
    return std::string("no mount namespace: ") + std::strerror(errno);
  }
  return std::nullopt;
}

std::string read_huge_page_bytes() {
  std::ifstream file("/proc/meminfo");
  for (std::string line; std::getline(file, line);) {
    if (line.starts_with("ShmemHugePages:")) return line.substr(line.find_first_of("0123456789"));
  }
  return "?";
}

struct PageSizeRun {
  std::string workload;
  std::unique_ptr<TmpfsMount> mount;
  std::vector<std::unique_ptr<Runner>> runners;
};

void measure(const BenchmarkOptions& options, std::uint64_t items, Report& report) {
  if (const std::optional<std::string> obstacle = enter_mount_namespace()) {
    fmt::print("left out: get_uniform_huge ({})\n", *obstacle);
    return;
  }
  const RandomOrder order(items, 1);
  const ReadSequence reads = ReadSequence::uniform(items, options.reads);
  std::vector<PageSizeRun> all;
  try {
    all.push_back({"get_uniform_huge",
                   std::make_unique<TmpfsMount>(options.directory, "huge=always,mode=0700"),
                   {}});
    all.push_back({"get_uniform_small",
                   std::make_unique<TmpfsMount>(options.directory, "huge=never,mode=0700"),
                   {}});
  } catch (const std::exception& error) {
    fmt::print("left out: get_uniform_huge ({})\n", error.what());
    return;
  }
  for (PageSizeRun& pages : all) {
    for (const SubjectKind& kind : options.kinds_to_measure()) {
      auto runner = std::make_unique<Runner>(kind, pages.mount->path(), items);
      if (!runner->subject().is_shared() || runner->subject().uses_server()) continue;
      runner->write(order, 1);
      pages.runners.push_back(std::move(runner));
    }
  }
  fmt::print("in huge pages: {}\n", read_huge_page_bytes());
  // The first round is a warm-up.
  for (int repetition = -1; repetition < options.repetitions; ++repetition) {
    for (const PageSizeRun& pages : all) {
      for (const std::unique_ptr<Runner>& runner : pages.runners) {
        const double ns = runner->read(ReadLoop::get, reads, pages.workload);
        if (repetition >= 0 && options.wants(pages.workload)) {
          report.add(pages.workload, items, runner->name(), "ns", ns);
        }
      }
    }
  }
  for (PageSizeRun& pages : all) report.print(pages.workload, items);
}

Program program = {
    .description = "Reads from huge pages; described at the top of bench/huge_pages.cc",
    .workloads = {"get_uniform_huge", "get_uniform_small"},
    .measure = measure};

}  // namespace
}  // namespace bench

int main(int argument_count, char** arguments) {
  return bench::program.run(argument_count, arguments);
}
