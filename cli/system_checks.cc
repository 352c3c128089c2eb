#include "cli/system_checks.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <linux/magic.h>
#include <linux/membarrier.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/utsname.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <fstream>
#include <limits>
#include <optional>
#include <system_error>

#include "base/boot.h"
#include "base/clock.h"
#include "base/file.h"
#include "base/file_system.h"
#include "base/process_lock.h"
#include "cli/format.h"
#include "state/file/layout.h"

namespace whycache::cli {
namespace {

constexpr std::uint64_t low_space_bytes = std::uint64_t{128} << 20;
constexpr std::uint64_t minimum_space_bytes = std::uint64_t{4} << 20;

std::string error_message(int error) { return std::system_category().message(error); }

std::string read_first_line(const char* path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

Finding check_kernel() {
  struct utsname names;
  if (::uname(&names) != 0)
    return Finding::warn("kernel", "unknown: " + error_message(errno), "use Linux 4.14 or later");
  int major = 0;
  int minor = 0;
  const char* const end = names.release + std::strlen(names.release);
  const auto [dot, error] = std::from_chars(names.release, end, major);
  const bool numbered =
      error == std::errc{} && dot != end && std::from_chars(dot + 1, end, minor).ec == std::errc{};
  const std::string found = fmt::format("{} {} {}", names.sysname, names.release, names.machine);
  if (numbered && (major < 4 || (major == 4 && minor < 14))) {
    return Finding::bad(
        "kernel", found,
        "use Linux 4.14 or later: it has open-file-description locks and membarrier",
        ExitCode::limit);
  }
  return Finding::ok("kernel", found);
}

Finding check_page_size() {
  const auto bytes = static_cast<std::uint64_t>(::sysconf(_SC_PAGESIZE));
  const std::string found = format_bytes(bytes);
  if (segment_bytes % bytes != 0)
    return Finding::bad("page size", found, "use pages that divide segments of 256 KiB",
                        ExitCode::limit);
  return Finding::ok("page size", found);
}

Finding check_boot_id() {
  const Uuid id = boot_id();
  if (id == Uuid{}) {
    return Finding::warn(
        "boot id", "/proc/sys/kernel/random/boot_id cannot be read",
        "make /proc visible: without it a state cannot be distinguished from one before a crash");
  }
  return Finding::ok("boot id", to_string(id));
}

Finding check_membarrier() {
  const long commands = ::syscall(SYS_membarrier, MEMBARRIER_CMD_QUERY, 0, 0);
  if (commands < 0) {
    return Finding::warn("membarrier", "not available: " + error_message(errno),
                         "allow the system call (seccomp): without it a process keeps every old "
                         "mapping until it ends");
  }
  if ((commands & MEMBARRIER_CMD_PRIVATE_EXPEDITED) == 0) {
    return Finding::warn("membarrier", "the private expedited command is missing",
                         "use Linux 4.14 or later");
  }
  return Finding::ok("membarrier", "available");
}

Finding check_address_space(std::uint64_t state_bytes_max) {
  struct rlimit limit;
  ::getrlimit(RLIMIT_AS, &limit);
  const std::string found =
      limit.rlim_cur == RLIM_INFINITY ? "unlimited" : format_bytes(limit.rlim_cur);
  void* const reserved = ::mmap(nullptr, state_bytes_max, PROT_NONE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (reserved == MAP_FAILED) {
    return Finding::warn(
        "address space",
        fmt::format("{}; {} cannot be reserved: {}", found, format_bytes(state_bytes_max),
                    error_message(errno)),
        "raise it (ulimit -v unlimited): a state cannot grow beyond what can be reserved");
  }
  ::munmap(reserved, state_bytes_max);
  return Finding::ok("address space",
                     fmt::format("{}; {} can be reserved", found, format_bytes(state_bytes_max)));
}

Finding check_file_size_limit() {
  struct rlimit limit;
  ::getrlimit(RLIMIT_FSIZE, &limit);
  if (limit.rlim_cur == RLIM_INFINITY) return Finding::ok("file size", "unlimited");
  return Finding::warn("file size", "limited to " + format_bytes(limit.rlim_cur),
                       "raise it (ulimit -f unlimited): state and log cannot grow beyond it");
}

Finding check_open_files_limit() {
  struct rlimit limit;
  ::getrlimit(RLIMIT_NOFILE, &limit);
  const std::string found =
      limit.rlim_cur == RLIM_INFINITY ? "unlimited" : std::to_string(limit.rlim_cur);
  if (limit.rlim_cur < 64)
    return Finding::warn("open files", found, "raise it (ulimit -n 1024): a cache uses about ten");
  return Finding::ok("open files", found);
}

Finding check_clock() {
  struct timespec now;
  if (::clock_gettime(CLOCK_BOOTTIME, &now) != 0) {
    return Finding::bad("clock", "CLOCK_BOOTTIME is not available: " + error_message(errno),
                        "use a kernel that has it: it measures staleness", ExitCode::limit);
  }
  // The least of several rounds: on a busy machine another process may run during one of them.
  constexpr int rounds = 100;
  constexpr int calls = 100;
  std::int64_t cost_ns = std::numeric_limits<std::int64_t>::max();
  for (int round = 0; round < rounds; ++round) {
    const std::int64_t began_ns = boot_time_ns();
    for (int i = 0; i < calls; ++i) boot_time_ns();
    cost_ns = std::min(cost_ns, (boot_time_ns() - began_ns) / calls);
  }
  const std::string source =
      read_first_line("/sys/devices/system/clocksource/clocksource0/current_clocksource");
  const std::string found =
      fmt::format("{}, {} ns to read", source.empty() ? "source unknown" : source, cost_ns);
  if (cost_ns > 300) {
    return Finding::warn("clock", found,
                         "choose a faster clock source (tsc, kvm-clock): update() with a staleness "
                         "bound reads it");
  }
  return Finding::ok("clock", found);
}

Finding check_wall_clock() {
  constexpr std::int64_t january_2024_us = 1'704'067'200'000'000;
  const std::int64_t now_us = wall_time_us();
  if (now_us < january_2024_us) {
    return Finding::warn("wall clock", format_time(now_us),
                         "set it: `whycache log` shows its times; nothing else depends on it");
  }
  return Finding::ok("wall clock", format_time(now_us));
}

Finding check_huge_pages() {
  const std::string modes = read_first_line("/sys/kernel/mm/transparent_hugepage/shmem_enabled");
  const std::size_t begin = modes.find('[');
  const std::size_t end = modes.find(']');
  if (begin == std::string::npos || end == std::string::npos) {
    return Finding::ok("huge pages",
                       "the kernel has none for shared memory (reads are about a tenth slower)");
  }
  const std::string mode = modes.substr(begin + 1, end - begin - 1);
  if (mode == "never" || mode == "deny") {
    return Finding::warn(
        "huge pages", "off for shared memory: " + mode,
        "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled: reads of "
        "a state in /dev/shm get about a tenth faster");
  }
  return Finding::ok("huge pages", "for shared memory: " + mode);
}

Finding check_shared_memory() {
  struct statvfs status;
  if (::statvfs("/dev/shm", &status) != 0) {
    return Finding::warn("/dev/shm", "cannot be used: " + error_message(errno),
                         "only needed for states that must not be on disk");
  }
  const std::uint64_t total = std::uint64_t{status.f_blocks} * status.f_frsize;
  const std::uint64_t free = std::uint64_t{status.f_bavail} * status.f_frsize;
  const std::string found = fmt::format("{}, {} free", format_bytes(total), format_bytes(free));
  if (free < low_space_bytes) {
    return Finding::warn("/dev/shm", found,
                         "enlarge it for a state there: mount -o remount,size=2G /dev/shm, or "
                         "docker run --shm-size=2g");
  }
  return Finding::ok("/dev/shm", found);
}

Finding check_file_system(const std::string& directory) {
  const std::optional<std::int64_t> type = file_system_type(directory);
  if (!type) {
    return Finding::bad("file system", "cannot be determined: " + error_message(errno),
                        "correct the path", ExitCode::usage);
  }
  const FileSystem* const known = find_file_system(*type);
  const std::string name =
      known == nullptr ? fmt::format("unknown, type {:#x}", *type) : known->name;
  if (known == nullptr || !known->shares_memory) {
    return Finding::bad(
        "file system", name + ": not known to share memory between processes",
        "choose a local disk or /dev/shm with --state; --any-file-system accepts it anyway",
        ExitCode::usage);
  }
  if (!known->rewrites_in_place) {
    return Finding::bad(
        "file system", name + ": a full disk would end writers by SIGBUS",
        "choose /dev/shm, or a disk with ext4 or xfs, with --state; --any-file-system accepts it "
        "anyway",
        ExitCode::usage);
  }
  if (*type == OVERLAYFS_SUPER_MAGIC) {
    return Finding::warn("file system", name + ": the state is deleted with the container",
                         "mount a volume or a tmpfs there, or use /dev/shm");
  }
  return Finding::ok("file system", name);
}

Finding check_free_space(const std::string& directory) {
  struct statvfs status;
  if (::statvfs(directory.c_str(), &status) != 0)
    return Finding::warn("room", "unknown: " + error_message(errno), "correct the path");
  const std::uint64_t free = std::uint64_t{status.f_bavail} * status.f_frsize;
  const std::string found = format_bytes(free) + " free";
  if ((status.f_flag & ST_RDONLY) != 0) {
    return Finding::bad("room", "the file system is mounted read-only",
                        "choose another path with --state", ExitCode::permission);
  }
  if (status.f_files > 0 && status.f_favail == 0)
    return Finding::bad("room", found + ", but no inodes", "remove files there", ExitCode::limit);
  if (free < minimum_space_bytes)
    return Finding::bad("room", found, "free space, or choose another path with --state",
                        ExitCode::limit);
  if (free < low_space_bytes)
    return Finding::warn("room", found, "free space: a state grows with its data");
  return Finding::ok("room", found);
}

Finding check_permissions(const std::string& directory) {
  struct stat status;
  if (::stat(directory.c_str(), &status) != 0) {
    return Finding::bad("folder", fmt::format("{}: {}", directory, error_message(errno)),
                        "create it, or choose another with --state", ExitCode::usage);
  }
  const std::string found =
      fmt::format("{}, mode {:04o}, owner {}", directory, status.st_mode & 07777, status.st_uid);
  try {
    check_directory_is_safe(directory);
  } catch (const Error& error) {
    return Finding::bad("folder", found, error.what(), exit_code_of(error));
  }
  if (::access(directory.c_str(), W_OK | X_OK) != 0) {
    return Finding::bad("folder", found + ": " + error_message(errno),
                        "run as its owner, or choose another with --state", ExitCode::permission);
  }
  return Finding::ok("folder", found);
}

// An unlinked file in the directory of the state, which behaves as the state would.
class ProbeFile {
 public:
  explicit ProbeFile(const std::string& directory) : path_(directory + "/.whycache-doctor-XXXXXX") {
    descriptor_ = FileDescriptor(::mkostemp(path_.data(), O_CLOEXEC));
    if (!descriptor_) throw system_error("cannot create a file", directory, errno);
    read_only_descriptor_ = FileDescriptor(::open(path_.c_str(), O_RDONLY | O_CLOEXEC));
    second_descriptor_ = FileDescriptor(::open(path_.c_str(), O_RDWR | O_CLOEXEC));
    ::unlink(path_.c_str());
  }

  Finding check_allocation() const {
    if (const int error = ::posix_fallocate(descriptor_.number(), 0, file_bytes); error != 0) {
      return Finding::bad("allocation", "fallocate fails: " + error_message(error),
                          "free space, or choose another path with --state", ExitCode::limit);
    }
    return Finding::ok("allocation", "fallocate works");
  }

  // A process that maps the file read-only must see the writes of another.
  Finding check_shared_mapping() const {
    void* const writer =
        ::mmap(nullptr, file_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor_.number(), 0);
    void* const reader =
        ::mmap(nullptr, file_bytes, PROT_READ, MAP_SHARED, read_only_descriptor_.number(), 0);
    if (writer == MAP_FAILED || reader == MAP_FAILED) {
      return Finding::bad("shared mapping", "cannot be created: " + error_message(errno),
                          "choose another path with --state", ExitCode::limit);
    }
    static_cast<volatile char*>(writer)[100] = 42;
    const bool seen = static_cast<volatile char*>(reader)[100] == 42;
    ::munmap(writer, file_bytes);
    ::munmap(reader, file_bytes);
    if (!seen) {
      return Finding::bad("shared mapping", "a process does not see the writes of another",
                          "choose another path with --state", ExitCode::usage);
    }
    return Finding::ok("shared mapping", "a process sees the writes of another");
  }

  Finding check_locks() const {
    try {
      const bool locked = try_lock_byte(descriptor_.number(), 7);
      const bool locked_again = try_lock_byte(second_descriptor_.number(), 7);
      unlock_byte(descriptor_.number(), 7);
      if (locked && !locked_again)
        return Finding::ok("locks", "open-file-description locks exclude each other");
      return Finding::bad("locks", "two holders of one lock, or none",
                          "choose another path with --state", ExitCode::usage);
    } catch (const Error& error) {
      return Finding::bad("locks", error.what(), "choose another path with --state",
                          ExitCode::usage);
    }
  }

 private:
  static constexpr std::size_t file_bytes = 4096;

  std::string path_;
  FileDescriptor descriptor_;
  FileDescriptor read_only_descriptor_;
  FileDescriptor second_descriptor_;
};

}  // namespace

std::vector<Finding> check_system(std::uint64_t state_bytes_max) {
  return {check_kernel(),
          check_page_size(),
          check_boot_id(),
          check_membarrier(),
          check_address_space(state_bytes_max),
          check_file_size_limit(),
          check_open_files_limit(),
          check_clock(),
          check_wall_clock(),
          check_huge_pages(),
          check_shared_memory()};
}

std::vector<Finding> check_directory(const std::string& directory) {
  std::vector<Finding> findings = {check_permissions(directory)};
  if (::access(directory.c_str(), F_OK) != 0) return findings;
  findings.push_back(check_file_system(directory));
  findings.push_back(check_free_space(directory));
  try {
    const ProbeFile probe(directory);
    findings.push_back(probe.check_allocation());
    if (findings.back().severity != Finding::Severity::bad)
      findings.push_back(probe.check_shared_mapping());
    findings.push_back(probe.check_locks());
  } catch (const Error& error) {
    findings.push_back(
        Finding::bad("trial file", error.what(), next_step(error), exit_code_of(error)));
  }
  return findings;
}

}  // namespace whycache::cli
