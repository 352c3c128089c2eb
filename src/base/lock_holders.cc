#include "base/lock_holders.h"

#include <dirent.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>

#include <charconv>
#include <cstdio>
#include <fstream>
#include <memory>
#include <set>
#include <sstream>
#include <string_view>
#include <system_error>

namespace whycache {
namespace {

// Of this thread on a processor: a busy machine takes longer.
constexpr std::int64_t search_time_max_ns = 20'000'000;

std::int64_t thread_time_ns() {
  timespec time;
  ::clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return std::int64_t{time.tv_sec} * 1'000'000'000 + time.tv_nsec;
}

// A lock as /proc/locks and /proc/PID/fdinfo show it, after its number:
//
//   POSIX  ADVISORY  READ 4711 08:01:123456 1073741826 1073742335
//
// type, access, process, the file by its device in hexadecimal and its inode, first and last byte.
// A lock that a process waits for has "->" before the type. The process is 0 if it is in another
// PID namespace, and -1 if the lock belongs to an open file, whose fdinfo shows it.
struct LockLine {
  std::string type;
  int process = 0;
  std::string file;
  std::uint64_t first = 0;
  std::uint64_t last = 0;
};

std::optional<LockLine> parse_lock(const std::string& text) {
  std::istringstream fields(text);
  LockLine lock;
  std::string number;
  std::string mode;
  std::string access;
  std::string last;
  if (!(fields >> number >> lock.type >> mode >> access >> lock.process >> lock.file >>
        lock.first >> last))
    return std::nullopt;
  lock.last = ~std::uint64_t{0};
  if (last != "EOF") std::from_chars(last.data(), last.data() + last.size(), lock.last);
  return lock;
}

class HolderSearch {
 public:
  HolderSearch(const struct stat& file, std::optional<std::uint64_t> offset)
      : inode_(file.st_ino), device_(file.st_dev), offset_(offset) {
    char name[64];
    std::snprintf(name, sizeof name, "%02x:%02x:%llu", major(file.st_dev), minor(file.st_dev),
                  static_cast<unsigned long long>(file.st_ino));
    file_ = name;
  }

  std::set<int> find() {
    bool has_lock_of_open_file = false;
    std::ifstream locks("/proc/locks");
    for (std::string line; std::getline(locks, line);) {
      const std::optional<LockLine> lock = parse_lock(line);
      if (!lock || !is_wanted(*lock)) continue;
      if (lock->type == "POSIX" && lock->process > 0) processes_.insert(lock->process);
      has_lock_of_open_file = has_lock_of_open_file || lock->type == "OFDLCK";
    }
    if (has_lock_of_open_file)
      visit_numbers("/proc", [&](int process) { search_process(process); });
    return processes_;
  }

 private:
  bool is_wanted(const LockLine& lock) const {
    return lock.file == file_ && (!offset_ || (lock.first <= *offset_ && *offset_ <= lock.last));
  }

  template <typename Visit>
  void visit_numbers(const std::string& directory, const Visit& visit) const {
    const std::unique_ptr<DIR, int (*)(DIR*)> entries(::opendir(directory.c_str()), ::closedir);
    if (!entries) return;
    while (const dirent* const entry = ::readdir(entries.get())) {
      if (thread_time_ns() > end_ns_) return;
      const std::string_view name(entry->d_name);
      int number = 0;
      const auto [end, error] = std::from_chars(name.data(), name.data() + name.size(), number);
      if (error == std::errc{} && end == name.data() + name.size()) visit(number);
    }
  }

  void search_process(int process) {
    const std::string directory = "/proc/" + std::to_string(process);
    visit_numbers(directory + "/fd", [&](int descriptor) {
      const std::string name = std::to_string(descriptor);
      struct stat status;
      if (::stat((directory + "/fd/" + name).c_str(), &status) != 0) return;
      if (status.st_ino != inode_ || status.st_dev != device_) return;
      std::ifstream info(directory + "/fdinfo/" + name);
      for (std::string line; std::getline(info, line);) {
        constexpr std::string_view prefix = "lock:";
        if (!line.starts_with(prefix)) continue;
        const std::optional<LockLine> lock = parse_lock(line.substr(prefix.size()));
        if (lock && lock->type == "OFDLCK" && is_wanted(*lock)) processes_.insert(process);
      }
    });
  }

  ino_t inode_;
  dev_t device_;
  std::string file_;
  std::optional<std::uint64_t> offset_;
  std::int64_t end_ns_ = thread_time_ns() + search_time_max_ns;
  std::set<int> processes_;
};

}  // namespace

std::string lock_holders(const std::string& path, std::optional<std::uint64_t> offset) noexcept {
  try {
    struct stat status;
    if (::stat(path.c_str(), &status) != 0) return {};
    std::string text;
    for (const int process : HolderSearch(status, offset).find()) {
      std::string name;
      std::ifstream command("/proc/" + std::to_string(process) + "/comm");
      std::getline(command, name);
      text += (text.empty() ? "" : ", ") + std::to_string(process);
      if (!name.empty()) text.append(" (").append(name).append(")");
    }
    return text;
  } catch (const std::exception&) {  // no memory is left; the message can do without
    return {};
  }
}

}  // namespace whycache
